"""Local APICs of KVM's that keep no interrupt in service, and levels that so arrive twice.

An interrupt stays in service from the moment that the processor takes it until its EOI (SDM 3A
12.8.4): until then no interrupt of its class is taken, and the I/O APIC does not send a level again
(82093AA data sheet, "Remote IRR").  Where nothing is in service the I/O APIC sends a level for as
long as the line is up, and a device that lowers its line in the handler is served once more.
"""

from __future__ import annotations

from contextlib import ExitStack, closing

from pykvm.exits import IoOut
from pykvm.host import Host
from pykvm.kvm.constants import KVM_IRQCHIP_IOAPIC
from pykvm.memory import GuestMemory
from pykvm.quirks.quirk import Quirk
from pykvm.typed import TYPE_CHECKING
from pykvm.vcpu import CPU
from pykvm.x86.entry import real_mode

if TYPE_CHECKING:
    from pykvm.quirks.probe_vm import ProbeVM

__all__ = ["IN_SERVICE", "LEVEL"]

VECTOR = 0x41
PIN = 5
_LEVEL = 1 << 15
_EXTD = 1 << 10
_SVR, _SVR_ENABLE = 0xF0, 0x1FF

_MAIN, _HANDLER = 0x1000, 0x1800
_READY, _WAITING, _SERVED = 0x80, 0x81, 0x82
# Takes interrupts, reports each, and then does nothing but leave the guest.
_MAIN_CODE = bytes.fromhex("FB E680 E681 EBFC")
# Reports to the host, with the ISR's word of the vector in EAX; then ends the interrupt.
_HANDLER_CODE = bytes.fromhex(
    "66 B9 12080000"  # mov ecx, 0x812: vectors 64 to 95
    "0F32"  # rdmsr
    "66 E782"  # out 0x82, eax
    "66 B9 0B080000"  # mov ecx, 0x80b: EOI
    "66 31C0  66 31D2"  # xor eax, eax; xor edx, edx
    "0F30"  # wrmsr
    "CF"  # iret
)
# Exits in which a second interrupt would have come.
_PATIENCE = 50
_TIMEOUT = 2.0


def served() -> list[int]:
    """What a level of KVM's own I/O APIC makes a guest do, whose device lowers it in the handler.

    The word of the ISR that has the vector, for each time that the handler ran.
    """
    with ExitStack() as stack:
        host = Host()
        stack.callback(host.close)
        vm = host.create_vm()
        stack.callback(vm.close)
        vm.create_irqchip()
        memory = GuestMemory()
        stack.callback(memory.close)
        memory.add_ram(0, 1 << 16)
        memory.attach(vm)
        memory.write(_MAIN, _MAIN_CODE)
        memory.write(_HANDLER, _HANDLER_CODE)
        memory.write_u32(4 * VECTOR, _HANDLER)
        vcpu = vm.create_vcpu(0)
        vcpu.set_cpuid2(host.cpuid("baseline", 0, 1, irqchip="kernel"))
        cpu = CPU(vcpu, memory)
        stack.callback(cpu.close)
        state = real_mode(ip=_MAIN)
        state.apic_base |= _EXTD
        cpu.state = state
        lapic = bytearray(vcpu.get_lapic())
        lapic[_SVR : _SVR + 4] = _SVR_ENABLE.to_bytes(4, "little")
        vcpu.set_lapic(lapic)
        chip = vm.get_irqchip(KVM_IRQCHIP_IOAPIC)
        chip.chip.ioapic.redirtbl[PIN].bits = VECTOR | _LEVEL
        vm.set_irqchip(chip)

        found: list[int] = []
        waited = 0
        exits = stack.enter_context(closing(cpu.raw_exits(timeout=_TIMEOUT)))
        while waited < _PATIENCE:
            exit = next(exits)
            port = exit.port if isinstance(exit, IoOut) else None
            if port == _READY:
                vm.irq_line(PIN, 1)
            elif isinstance(exit, IoOut) and port == _SERVED:
                vm.irq_line(PIN, 0)
                found.append(exit.value)
            else:
                waited += 1
        return found


def _keeps_nothing(vm: ProbeVM) -> bool:
    return any(not word >> VECTOR % 32 & 1 for word in served())


def _twice(vm: ProbeVM) -> bool:
    return len(served()) > 1


IN_SERVICE = Quirk(
    "in-service", "KVM's own local APICs keep no interrupt in service: ISR is 0", _keeps_nothing
)
LEVEL = Quirk("level-twice", "KVM's own I/O APIC sends a level interrupt twice", _twice)
