"""``irqchip="kernel"``: local APICs, I/O APIC, the 8259 pair and the 8254 are KVM's.

Source: Documentation/virt/kvm/api.rst, 4.24 (KVM_CREATE_IRQCHIP), 4.25 (KVM_IRQ_LINE), 4.52
(KVM_SET_GSI_ROUTING), 4.71 (KVM_CREATE_PIT2), 4.72 and 4.75 (KVM_IRQFD).
"""

from __future__ import annotations

from pykvm import layout
from pykvm._core import ffi, lib
from pykvm.bus import Area, Space
from pykvm.bus.device import NamedDevice
from pykvm.errors import ConfigError, KVMError
from pykvm.irqchip.delivery import KernelInterrupts
from pykvm.irqchip.kernel_lapics import LOCAL_APIC, KernelLapics
from pykvm.kvm.constants import (
    KVM_IRQ_ROUTING_IRQCHIP,
    KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_PIT_FLAGS_HPET_LEGACY,
    KVM_PIT_SPEAKER_DUMMY,
)
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pykvm.bus import Device
    from pykvm.bus.published import Published
    from pykvm.clock import Clock
    from pykvm.devices.hpet import Hpet
    from pykvm.devices.line import InterruptLine
    from pykvm.kvm import VM, Record

__all__ = ["KernelIrqChip", "KernelLine"]

# virt/kvm/ioapic.h and i8254.c have the lengths.
_DEVICES = (
    Area("KVM's I/O APIC", Space.MMIO, layout.IOAPIC, layout.IOAPIC + 0xFF),
    Area("KVM's 8259", Space.PIO, layout.PIC_MASTER, layout.PIC_MASTER + 1),
    Area("KVM's second 8259", Space.PIO, layout.PIC_SLAVE, layout.PIC_SLAVE + 1),
    Area("KVM's ELCR", Space.PIO, layout.PIC_ELCR, layout.PIC_ELCR + 1),
    Area("KVM's 8254", Space.PIO, layout.PIT, layout.PIT + 3),
    Area("KVM's speaker port", Space.PIO, layout.PORT_61, layout.PORT_61),
)


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


class KernelIrqChip(KernelLapics):
    """All interrupt controllers and the 8254 in KVM, and in software the clocks that it has not."""

    areas = (LOCAL_APIC, *_DEVICES)

    def __init__(self, vm: VM, clock: Callable[[], Clock]) -> None:
        super().__init__(vm, clock)
        self._pit: Record | None = None
        self._lines: Any = ffi.gc(lib.pykvm_lines_new(vm.fd), lib.pykvm_lines_free)
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
        self._pit = self._vm.get_pit2()

    def resume(self) -> None:
        """See `KernelLapics`."""
        pit, self._pit = self._pit, None
        if pit is not None:
            self._vm.set_pit2(pit)
        super().resume()
