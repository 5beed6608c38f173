"""``irqchip="kernel"``: local APICs, I/O APIC, the 8259 pair and the 8254 are KVM's.

Source: Documentation/virt/kvm/api.rst, 4.24 (KVM_CREATE_IRQCHIP), 4.25 (KVM_IRQ_LINE), 4.52
(KVM_SET_GSI_ROUTING), 4.71 (KVM_CREATE_PIT2), 4.72 and 4.75 (KVM_IRQFD).
"""

from __future__ import annotations

import time
from errno import ENOMEM

from pykvm import layout
from pykvm._core import ffi, lib
from pykvm.bus import Area, Space
from pykvm.bus.device import NamedDevice
from pykvm.errors import ConfigError, KVMError, resource_error
from pykvm.irqchip.delivery import KernelInterrupts
from pykvm.irqchip.kernel_lapics import LOCAL_APIC, KernelLapics, StoppedTimer
from pykvm.kvm.constants import (
    KVM_IRQ_ROUTING_IRQCHIP,
    KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_PIT_FLAGS_HPET_LEGACY,
    KVM_PIT_SPEAKER_DUMMY,
)
from pykvm.kvm.uapi import (
    KVM_GET_IRQCHIP,
    KVM_GET_PIT2,
    KVM_SET_IRQCHIP,
    KVM_SET_PIT2,
    kvm_ioapic_state,
    kvm_irqchip,
    kvm_pic_state,
    kvm_pit_channel_state,
    kvm_pit_state2,
)
from pykvm.typed import TYPE_CHECKING
from pykvm.values.state import State

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pykvm.bus import Device
    from pykvm.bus.published import Published
    from pykvm.clock import Clock
    from pykvm.devices.hpet import Hpet, HpetState
    from pykvm.devices.line import InterruptLine
    from pykvm.kvm import VM
    from pykvm.values.state import S64
    from pykvm.vcpu.msr_exits import MsrExits

__all__ = ["KernelIrqChip", "KernelIrqChipState", "KernelLine", "PitState"]

# virt/kvm/ioapic.h and i8254.c have the lengths.
_DEVICES = (
    Area("KVM's I/O APIC", Space.MMIO, layout.IOAPIC, layout.IOAPIC + 0xFF),
    Area("KVM's 8259", Space.PIO, layout.PIC_MASTER, layout.PIC_MASTER + 1),
    Area("KVM's second 8259", Space.PIO, layout.PIC_SLAVE, layout.PIC_SLAVE + 1),
    Area("KVM's ELCR", Space.PIO, layout.PIC_ELCR, layout.PIC_ELCR + 1),
    Area("KVM's 8254", Space.PIO, layout.PIT, layout.PIT + 3),
    Area("KVM's speaker port", Space.PIO, layout.PORT_61, layout.PORT_61),
)


# By number, what KVM_GET_IRQCHIP returns of it.
_CHIPS = {
    KVM_IRQCHIP_PIC_MASTER: kvm_pic_state.size,
    KVM_IRQCHIP_PIC_SLAVE: kvm_pic_state.size,
    KVM_IRQCHIP_IOAPIC: kvm_ioapic_state.size,
}
_CHIP = kvm_irqchip.offset_of("chip")
_IMR = kvm_pic_state.offset_of("imr")
_IRR = kvm_ioapic_state.offset_of("irr")
_ENTRIES = kvm_ioapic_state.offset_of("redirtbl")
_MASK_BYTE, _MASK = 2, 1  # of a redirection entry's 8 bytes

_CHANNELS = 3
_CHANNEL = kvm_pit_channel_state.size
_LOADED = kvm_pit_channel_state.offset_of("count_load_time")
_MODE = kvm_pit_channel_state.offset_of("mode")
_LOAD_TIMES = tuple(_CHANNEL * channel + _LOADED for channel in range(_CHANNELS))
_NO_MODE = 0xFF  # destroys the timer: virt/kvm/i8254.c, pit_load_count


class PitState(State):
    """KVM's 8254: a kvm_pit_state2, and for how long each channel has counted, in nanoseconds.

    Of channel 0 KVM does not say that, and begins its period anew when it is set; many a KVM does
    so with the others.
    """

    registers: bytes
    counted: tuple[S64, S64, S64]


class KernelIrqChipState(State):
    """KVM's 8259 pair (kvm_pic_state), I/O APIC (kvm_ioapic_state) and 8254.

    `timers` are those of the local APICs, if guest time stood still.
    """

    timers: tuple[StoppedTimer, ...]
    pic_master: bytes
    pic_slave: bytes
    ioapic: bytes
    pit: PitState

    def at_rest(self) -> KernelIrqChipState:
        """The same without what runs on by itself, to be compared."""
        changed: KernelIrqChipState = self.__replace__(pit=self.pit.__replace__(counted=(0, 0, 0)))
        return changed


def _isa_routes() -> list[dict[str, object]]:
    """Each ISA IRQ to its 8259, and each GSI to its pin of the I/O APIC, as on a PC."""
    to_pic = [
        _route(irq, KVM_IRQCHIP_PIC_SLAVE if irq >= 8 else KVM_IRQCHIP_PIC_MASTER, irq % 8)
        for irq in range(layout.ISA_IRQS)
    ]
    to_ioapic = [
        _route(irq, KVM_IRQCHIP_IOAPIC, layout.gsi_of(irq))
        for irq in range(layout.IOAPIC_PINS)
        if irq != layout.CASCADE_IRQ
    ]
    return to_pic + to_ioapic


def _route(gsi: int, chip: int, pin: int) -> dict[str, object]:
    return {
        "gsi": gsi,
        "type": KVM_IRQ_ROUTING_IRQCHIP,
        "u": {"irqchip": {"irqchip": chip, "pin": pin}},
    }


class _HpetBesideKernelPit(NamedDevice):
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

    def state(self) -> HpetState:
        """See `Hpet.state`."""
        return self._hpet.state()

    def restore(self, state: HpetState) -> None:
        """See `Hpet.restore`.  The 8254 is KVM's, and has a state of its own."""
        self._hpet.restore(state)
        self._legacy = self._hpet.legacy

    def write(self, offset: int, size: int, value: int) -> None:
        """See `Hpet.write`."""
        self._hpet.write(offset, size, value)
        if self._hpet.legacy != self._legacy:
            self._legacy = self._hpet.legacy
            state = self._vm.get_pit2()
            state.flags = KVM_PIT_FLAGS_HPET_LEGACY if self._legacy else 0
            self._vm.set_pit2(state)


class KernelLine:
    """One of the wires to an input of KVM's own, which is asserted while any of them is."""

    def __init__(self, vm: VM, lines: Any, irq: int) -> None:
        self._vm = vm
        core = lib.pykvm_line_new(lines, irq)
        if core == ffi.NULL and 0 <= irq < layout.IOAPIC_PINS:
            raise resource_error("no room for an interrupt line", ENOMEM)
        if core == ffi.NULL:
            raise ConfigError(
                f"an interrupt line of KVM's has a number below {layout.IOAPIC_PINS}, not {irq}"
            )
        #: struct pykvm_line, for `Published.wire`.
        self.core: Any = ffi.gc(core, lib.pykvm_line_free)

    def set(self, level: bool) -> None:
        """Assert the input, or stop doing so.  Raises ClosedError once the VM is closed."""
        self._vm.fd  # noqa: B018  a closed handle is refused here
        result = lib.pykvm_line_set(self.core, level)
        if result:
            raise KVMError("KVM_IRQ_LINE", -result)

    def restore(self, level: bool) -> None:
        """Have that level; KVM is told once all lines have theirs (`KernelIrqChip.restore`)."""
        lib.pykvm_line_restore(self.core, level)


class KernelIrqChip(KernelLapics):
    """All interrupt controllers and the 8254 in KVM, and in software the clocks that it has not."""

    areas = (LOCAL_APIC, *_DEVICES)

    def __init__(
        self, vm: VM, clock: Callable[[], Clock], msr_exits: MsrExits | None = None
    ) -> None:
        super().__init__(vm, clock, msr_exits)
        # While guest time stands still.
        self._pit: PitState | None = None
        lines = lib.pykvm_lines_new(vm.fd)
        if lines == ffi.NULL:
            raise resource_error("no room for interrupt lines", ENOMEM)
        self._lines: Any = ffi.gc(lines, lib.pykvm_lines_free)
        vm.create_irqchip()
        vm.set_gsi_routing(_isa_routes())
        vm.create_pit2(KVM_PIT_SPEAKER_DUMMY)

    def _make_devices(self, clock: Clock) -> tuple[dict[str, Device], KernelInterrupts]:
        hpet = self._make_hpet(clock)
        devices = {"hpet": _HpetBesideKernelPit(hpet, self._vm), **self._make_clocks(clock, hpet)}
        return devices, KernelInterrupts(clock)

    def line(self, irq: int) -> InterruptLine:
        """See `KernelLapics`."""
        return KernelLine(self._vm, self._lines, irq)

    def irqfd(self, fd: int, irq: int) -> None:
        """See `pykvm.irqchip.IrqChip`."""
        self._vm.irqfd(fd, irq)

    def end_of_interrupt(self, vector: int) -> None:
        """KVM's own I/O APIC hears of it."""

    def pause(self) -> None:
        """See `KernelLapics`."""
        super().pause()
        self._stop_pit(self._pit or self._get_pit())

    def resume(self) -> None:
        """See `KernelLapics`."""
        if self._pit is not None:
            self._set_pit(self._pit)
            self._pit = None
        super().resume()

    def _stop_pit(self, pit: PitState) -> None:
        """Let it stand still in that state until `resume`."""
        self._pit = pit
        stopped = bytearray(pit.registers)
        stopped[_MODE] = _NO_MODE
        self._vm.ioctl(KVM_SET_PIT2, stopped)

    def _get_pit(self) -> PitState:
        registers = bytearray(kvm_pit_state2.size)
        self._vm.ioctl(KVM_GET_PIT2, registers)
        now, counted = time.monotonic_ns(), []
        for at in _LOAD_TIMES:
            counted.append(now - int.from_bytes(registers[at : at + 8], "little", signed=True))
            registers[at : at + 8] = bytes(8)
        first, second, third = counted
        return PitState(bytes(registers), (first, second, third))

    def _set_pit(self, pit: PitState) -> None:
        registers, now = bytearray(pit.registers), time.monotonic_ns()
        for at, counted in zip(_LOAD_TIMES, pit.counted, strict=True):
            loaded = (now - counted) % (1 << 64)
            registers[at : at + 8] = loaded.to_bytes(8, "little")
        self._vm.ioctl(KVM_SET_PIT2, registers)

    def state(self) -> KernelIrqChipState:
        """See `IrqChip`.  Routes are fixed, and irqfds the host's."""
        master, slave, ioapic = map(self._get_chip, _CHIPS)
        return KernelIrqChipState(
            self._stopped, master, slave, ioapic, self._pit or self._get_pit()
        )

    def restore(self, state: KernelIrqChipState) -> None:
        """See `IrqChip`.

        KVM keeps the level of each line, and does not show it.  Where a line has another level now
        it is driven there while every input is masked, so that no interrupt comes of it; after that
        the chips get their state, with what they made of the lines then.

        The 8254 comes first: what its timer has brought until then goes by the chips' state.
        """
        chips = (state.pic_master, state.pic_slave, state.ioapic)
        _check(state, chips)
        self._restore_timers(state.timers)
        if state.timers:
            self._stop_pit(state.pit)
        else:
            self._pit = None
            self._set_pit(state.pit)
        if lib.pykvm_lines_differ(self._lines):
            for number, chip in zip(_CHIPS, chips, strict=True):
                self._set_chip(number, _masked(number, chip))
            result = lib.pykvm_lines_drive(self._lines)
            if result:
                raise KVMError("KVM_IRQ_LINE", -result)
        for number, chip in zip(_CHIPS, chips, strict=True):
            self._set_chip(number, chip)

    def _get_chip(self, number: int) -> bytes:
        chip = bytearray(kvm_irqchip.pack({"chip_id": number}))
        self._vm.ioctl(KVM_GET_IRQCHIP, chip)
        return bytes(chip[_CHIP : _CHIP + _CHIPS[number]])

    def _set_chip(self, number: int, chip: bytes) -> None:
        head = number.to_bytes(_CHIP, "little")
        self._vm.ioctl(KVM_SET_IRQCHIP, bytearray(head + chip).ljust(kvm_irqchip.size, b"\0"))


def _check(state: KernelIrqChipState, chips: tuple[bytes, ...]) -> None:
    """Raise ConfigError unless each part is as long as KVM takes it."""
    sizes = [*_CHIPS.values(), kvm_pit_state2.size]
    for part, size in zip((*chips, state.pit.registers), sizes, strict=True):
        if len(part) != size:
            raise ConfigError(f"the state of an interrupt controller has {len(part)} bytes")


def _masked(number: int, chip: bytes) -> bytes:
    """A chip that does not look at its inputs."""
    masked = bytearray(chip)
    if number != KVM_IRQCHIP_IOAPIC:
        masked[_IMR] = 0xFF
        return bytes(masked)
    masked[_IRR : _IRR + 4] = bytes(4)
    for entry in range(_ENTRIES, len(masked), 8):
        masked[entry + _MASK_BYTE] |= _MASK
    return bytes(masked)
