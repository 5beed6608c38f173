"""Interrupt controllers in the kernel: ``irqchip="kernel"``, and ``"split"`` with half of them.

``kernel``: local APICs, I/O APIC, the 8259 pair and the 8254 are KVM's (KVM_CREATE_IRQCHIP,
KVM_CREATE_PIT2).  ``split``: only the local APICs are (KVM_CAP_SPLIT_IRQCHIP); the others are those
of `pykvm.interrupts` and `pykvm.devices`, which send their interrupts as messages.  RTC, HPET and
PM timer are in software in either.

Source: Documentation/virt/kvm/api.rst, 4.24, 4.25, 4.71, 4.72, 5 (KVM_EXIT_IOAPIC_EOI) and 7.5.
"""

from __future__ import annotations

from pykvm._core import ffi, lib
from pykvm.bus import Area, Placement, Space
from pykvm.errors import ConfigError, KVMError
from pykvm.irqchip.timekeeper import Timers
from pykvm.irqchip.user import set_kvmclock, set_tsc_offsets
from pykvm.kvm.constants import (
    KVM_IRQ_ROUTING_IRQCHIP,
    KVM_IRQ_ROUTING_MSI,
    KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_MP_STATE_HALTED,
    KVM_MP_STATE_UNINITIALIZED,
    KVM_PIT_FLAGS_HPET_LEGACY,
    KVM_PIT_SPEAKER_DUMMY,
)
from pykvm.kvm.run_page import IF_FLAG, READY_FOR_INTERRUPT_INJECTION, REQUEST_INTERRUPT_WINDOW
from pykvm.kvm.uapi import KVM_CAP_SPLIT_IRQCHIP
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from pykvm.bus import Bus, Device
    from pykvm.bus.published import Published
    from pykvm.clock import Clock
    from pykvm.devices.hpet import Hpet
    from pykvm.devices.line import Inlet, InterruptLine
    from pykvm.exits import RdMsr, WrMsr
    from pykvm.interrupts.ioapic import IoApic
    from pykvm.interrupts.message import Message
    from pykvm.interrupts.pic import Pic8259Pair
    from pykvm.kvm import VM, Record
    from pykvm.vcpu import CPU

__all__ = ["KernelChipset", "KernelTimekeeper"]

PINS = 24
ISA_IRQS = 16

_PLACES: dict[str, tuple[Space, int, int]] = {
    "rtc": (Space.PIO, 0x70, 2),
    "pm-timer": (Space.PIO, 0x608, 4),
    "hpet": (Space.MMIO, 0xFED00000, 0x400),
    "pic-master": (Space.PIO, 0x20, 2),
    "pic-slave": (Space.PIO, 0xA0, 2),
    "pic-elcr": (Space.PIO, 0x4D0, 2),
    "pit": (Space.PIO, 0x40, 4),
    "port61": (Space.PIO, 0x61, 1),
    "ioapic": (Space.MMIO, 0xFEC00000, 0x1000),
}

# What KVM answers itself, in either mode and only with its own irqchip (virt/kvm/ioapic.h and
# i8254.c have the lengths).
_LOCAL_APIC = Area("KVM's local APIC", Space.MMIO, 0xFEE00000, 0xFEE00FFF)
_KERNELS = (
    Area("KVM's I/O APIC", Space.MMIO, 0xFEC00000, 0xFEC000FF),
    Area("KVM's 8259", Space.PIO, 0x20, 0x21),
    Area("KVM's second 8259", Space.PIO, 0xA0, 0xA1),
    Area("KVM's ELCR", Space.PIO, 0x4D0, 0x4D1),
    Area("KVM's 8254", Space.PIO, 0x40, 0x43),
    Area("KVM's speaker port", Space.PIO, 0x61, 0x61),
)


def _isa_routes() -> list[dict[str, object]]:
    """Each ISA IRQ to its 8259 and to the I/O APIC, IRQ 0 there to pin 2, as on a PC."""
    to_pic = [
        _route(irq, KVM_IRQCHIP_PIC_SLAVE if irq >= 8 else KVM_IRQCHIP_PIC_MASTER, irq % 8)
        for irq in range(ISA_IRQS)
    ]
    to_ioapic = [
        _route(irq, KVM_IRQCHIP_IOAPIC, 2 if irq == 0 else irq) for irq in range(PINS) if irq != 2
    ]
    return to_pic + to_ioapic


def _route(gsi: int, chip: int, pin: int) -> dict[str, object]:
    return {
        "gsi": gsi,
        "type": KVM_IRQ_ROUTING_IRQCHIP,
        "u": {"irqchip": {"irqchip": chip, "pin": pin}},
    }


def msi_of(message: Message) -> tuple[int, int]:
    """The address and the data that send `message` (SDM 3A 11.11), as KVM takes them.

    >>> from pykvm.interrupts import Message
    >>> [hex(part) for part in msi_of(Message(1, False, 0, 0x31, level=True))]
    ['0xfee01000', '0xc031']
    """
    address = 0xFEE00000 | (message.destination & 0xFF) << 12 | message.logical << 2
    level = (1 << 15 | 1 << 14) if message.level else 0
    return address, level | (message.mode & 7) << 8 | message.vector & 0xFF


class KernelTimekeeper(Timers):
    """The timers of a machine whose interrupts are the kernel's: `pykvm.machine.run.Interrupts`."""

    #: Parked vCPUs wait for their start-up IPI inside KVM_RUN.
    can_start = False

    def __init__(self, clock: Clock, pic: Pic8259Pair | None) -> None:
        super().__init__(clock)
        self._pic = pic

    def reset_by_init(self, cpu: CPU) -> bool:
        """The kernel carries out INIT."""
        return False

    def awake(self, cpu: CPU) -> bool:
        """HLT waits in the kernel."""
        return True

    def start(self, cpu: CPU) -> bool:
        """Nothing to do."""
        return False

    def serve(self, cpu: CPU) -> None:
        """Hand the kernel the vector of an 8259 that is ours (split)."""
        if self._pic is None or cpu.index:
            return
        page = cpu.engine.page
        if self._pic.pending and page[READY_FOR_INTERRUPT_INJECTION]:
            page[READY_FOR_INTERRUPT_INJECTION] = 0
            cpu.kvm.interrupt(self._pic.acknowledge())
        page[REQUEST_INTERRUPT_WINDOW] = self._pic.pending

    def can_wake(self, cpus: Sequence[CPU]) -> bool:
        """Never asked: no vCPU waits outside KVM_RUN."""
        return True

    def warp(self) -> bool:
        """Time in the kernel cannot be skipped."""
        return False

    def dead(self, cpu: CPU) -> bool:
        """Whether this vCPU has halted with interrupts off, or was never started."""
        state = cpu.kvm.get_mp_state()
        if state == KVM_MP_STATE_UNINITIALIZED:
            return True
        return state == KVM_MP_STATE_HALTED and not cpu.engine.page[IF_FLAG]


class _RoutedIoApic:
    """An I/O APIC of ours over local APICs of the kernel's.

    The kernel tells of the end of a level interrupt only if it finds the vector in its routes.
    """

    name = "ioapic"

    def __init__(self, ioapic: IoApic, vm: VM) -> None:
        self._ioapic = ioapic
        self._vm = vm
        self._routes: list[int] = []

    def read(self, offset: int, size: int) -> int:
        """See `IoApic.read`."""
        return self._ioapic.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """See `IoApic.write`."""
        from pykvm.interrupts.ioapic import message_of

        self._ioapic.write(offset, size, value)
        entries = list(self._ioapic.entries)
        if entries == self._routes:
            return
        self._routes = entries
        routes = []
        for pin, entry in enumerate(entries):
            address, data = msi_of(message_of(entry))
            msi = {"address_lo": address, "address_hi": 0, "data": data}
            routes.append({"gsi": pin, "type": KVM_IRQ_ROUTING_MSI, "u": {"msi": msi}})
        self._vm.set_gsi_routing(routes)


class _HpetBesideKernelPit:
    """An HPET whose legacy replacement cuts the kernel's 8254 off from IRQ 0."""

    name = "hpet"

    def __init__(self, hpet: Hpet, vm: VM) -> None:
        self._hpet = hpet
        self._vm = vm
        self._legacy = False

    def publish(self, published: Published) -> None:
        """See `pykvm.bus.published.Publishing`: nothing but reads, which the HPET has."""
        self._hpet.publish(published)

    def read(self, offset: int, size: int) -> int:
        """See `Hpet.read`."""
        return self._hpet.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """See `Hpet.write`."""
        self._hpet.write(offset, size, value)
        if self._hpet.legacy != self._legacy:
            self._legacy = self._hpet.legacy
            state = self._vm.get_pit2()
            state.flags = KVM_PIT_FLAGS_HPET_LEGACY if self._legacy else 0
            self._vm.set_pit2(state)


class _Wire:
    """The 8259's output, where the first vCPU has to come and fetch the vector."""

    def __init__(self, attend: Callable[[], None]) -> None:
        self._attend = attend

    def set(self, level: bool) -> None:
        """Call the vCPU."""
        if level:
            self._attend()


class KernelLine:
    """One of the wires to an input of KVM's own, which is asserted while any of them is."""

    def __init__(self, vm: VM, lines: Any, irq: int) -> None:
        self._vm = vm
        core = lib.pykvm_line_new(lines, irq)
        if core == ffi.NULL:
            raise ConfigError(f"an interrupt line of KVM's has a number below {PINS}, not {irq}")
        #: struct pykvm_line, for `Published.wire`.
        self.core: Any = ffi.gc(core, lib.pykvm_line_free)

    def set(self, level: bool) -> None:
        """Assert the input, or stop doing so.  Raises ClosedError once the VM is closed."""
        self._vm.fd  # noqa: B018  a closed handle is refused here
        result = lib.pykvm_line_set(self.core, level)
        if result:
            raise KVMError("KVM_IRQ_LINE", -result)


class KernelChipset:
    """The kernel's interrupt controllers, and around them the clocks that it has not."""

    def __init__(self, vm: VM, bus: Bus, clock: Callable[[], Clock], *, split: bool) -> None:
        """Made before the vCPUs, as KVM wants it."""
        self._vm = vm
        self._bus = bus
        self._make_clock = clock
        self.split = split
        #: See `UserChipset`.
        self.inlets: list[Inlet] = []
        #: See `UserChipset`; the kernel's HLT with interrupts on waits anyway.
        self.has_outside_lines = False
        self.timekeeper: KernelTimekeeper | None = None
        self.ioapic: IoApic | None = None
        self.pic: Pic8259Pair | None = None
        self._cpus: Sequence[CPU] = ()
        self._lapics: list[bytes] = []
        self._pit: Record | None = None
        self._lines: Any = ffi.gc(lib.pykvm_lines_new(vm.fd), lib.pykvm_lines_free)
        if split:
            vm.enable_cap(KVM_CAP_SPLIT_IRQCHIP, PINS)
        else:
            vm.create_irqchip()
            vm.set_gsi_routing(_isa_routes())
            vm.create_pit2(KVM_PIT_SPEAKER_DUMMY)

    @property
    def areas(self) -> tuple[Area, ...]:
        """Where KVM answers itself, so that no device is ever asked."""
        return (_LOCAL_APIC,) if self.split else (_LOCAL_APIC, *_KERNELS)

    def attach(self, cpus: Sequence[CPU]) -> dict[str, Device]:
        """These are the vCPUs: make the devices around them, which are returned by name."""
        from pykvm.devices.hpet import Hpet
        from pykvm.devices.pm_timer import AcpiPmTimer
        from pykvm.devices.rtc import Rtc146818

        self._cpus = cpus
        for cpu in cpus:
            cpu.parked = False
        clock = self._make_clock()
        devices: dict[str, Device] = {}
        if self.split:
            devices.update(self._make_user_half())
        lines = {irq: self.line(irq) for irq in range(PINS) if irq != 2}
        hpet = Hpet(clock, lines)
        devices["hpet"] = hpet if self.split else _HpetBesideKernelPit(hpet, self._vm)
        devices["rtc"] = Rtc146818(clock, hpet.behind(8))
        devices["pm-timer"] = AcpiPmTimer(clock)
        if self.split:
            from pykvm.devices.pit import Pit8254
            from pykvm.devices.port61 import Port61

            pit = Pit8254(clock, hpet.behind(0))
            devices["pit"] = pit
            devices["port61"] = Port61(clock, pit)
        self.timekeeper = KernelTimekeeper(clock, self.pic)
        clock.on_earlier = self._earlier
        self._bus.add_all([Placement(device, *_PLACES[n]) for n, device in devices.items()])
        return devices

    def _make_user_half(self) -> dict[str, Device]:
        from pykvm.interrupts.ioapic import IoApic
        from pykvm.interrupts.pic import Pic8259Pair

        self.ioapic = IoApic(self._deliver)
        self.pic = Pic8259Pair(_Wire(self._cpus[0].engine.attend))
        return {
            "ioapic": _RoutedIoApic(self.ioapic, self._vm),
            "pic-master": self.pic.master,
            "pic-slave": self.pic.slave,
            "pic-elcr": self.pic.elcr,
        }

    def _deliver(self, message: Message) -> bool:
        return self._vm.signal_msi(*msi_of(message)) > 0

    def _earlier(self, queue: int) -> None:
        if queue < len(self._cpus):
            self._cpus[queue].engine.attend()

    def line(self, irq: int) -> InterruptLine:
        """Where a device's interrupt request goes: ISA IRQ `irq`, or I/O APIC pin from 16 on."""
        if self.ioapic is not None and self.pic is not None:
            from pykvm.irqchip.wiring import Both

            if irq >= ISA_IRQS:
                return self.ioapic.line(irq)
            return Both(self.pic.line(irq), self.ioapic.line(2 if irq == 0 else irq))
        return KernelLine(self._vm, self._lines, irq)

    def send_msi(self, address: int, data: int) -> bool:
        """Send a message-signalled interrupt, and return whether a local APIC took it."""
        return self._vm.signal_msi(address, data) > 0

    def irqfd(self, fd: int, irq: int) -> None:
        """KVM_IRQFD."""
        if self.split:
            raise ConfigError(
                "an irqfd needs KVM's own I/O APIC", hint="Machine(irqchip='kernel') has it"
            )
        self._vm.irqfd(fd, irq)

    def end_of_interrupt(self, vector: int) -> None:
        """KVM_EXIT_IOAPIC_EOI."""
        if self.ioapic is not None:
            self.ioapic.eoi(vector)

    # -- time --------------------------------------------------------------------------------

    def pause(self) -> None:
        """Take the time out of the kernel's timers: the machine stands still."""
        self._lapics = [cpu.kvm.get_lapic() for cpu in self._cpus]
        self._pit = None if self.split else self._vm.get_pit2()

    def resume(self) -> None:
        """Let them go on from where they were, and kvmclock and TSC follow the clock."""
        for cpu, registers in zip(self._cpus, self._lapics, strict=False):
            cpu.kvm.set_lapic(registers)
        if self._pit is not None:
            self._vm.set_pit2(self._pit)
        self._lapics, self._pit = [], None
        if self.timekeeper is not None:
            set_kvmclock(self._vm, self.timekeeper.clock)
            set_tsc_offsets(self._cpus, self.timekeeper.clock)

    # -- MSRs: all of them are the kernel's --------------------------------------------------

    def read_msr(self, cpu: CPU, exit: RdMsr) -> None:
        """Nobody knows it: #GP."""
        exit.fail()

    def write_msr(self, cpu: CPU, exit: WrMsr) -> None:
        """Nobody knows it: #GP."""
        exit.fail()
