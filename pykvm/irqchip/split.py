"""``irqchip="split"``: local APICs are KVM's, I/O APIC, the 8259 pair and the 8254 are ours.

Ours are those of `pykvm.interrupts` and `pykvm.devices`; they send their interrupts as messages.

Source: Documentation/virt/kvm/api.rst, 7.5 (KVM_CAP_SPLIT_IRQCHIP), 5 (KVM_EXIT_IOAPIC_EOI), 4.52
(KVM_SET_GSI_ROUTING) and 4.70 (KVM_SIGNAL_MSI).
"""

from __future__ import annotations

from pykvm.bus.device import NamedDevice
from pykvm.errors import ConfigError
from pykvm.irqchip.delivery import SplitInterrupts
from pykvm.irqchip.kernel_lapics import KernelLapics, StoppedTimer
from pykvm.kvm.constants import KVM_IRQ_ROUTING_MSI
from pykvm.kvm.uapi import KVM_CAP_SPLIT_IRQCHIP
from pykvm.layout import IOAPIC_PINS, ISA_IRQS, PIT_IRQ
from pykvm.typed import TYPE_CHECKING
from pykvm.values.spelling import option
from pykvm.values.state import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.bus import Device
    from pykvm.clock import Clock
    from pykvm.devices.line import InterruptLine
    from pykvm.interrupts.ioapic import IoApic, IoApicState
    from pykvm.interrupts.message import Message
    from pykvm.interrupts.pic import Pic8259Pair
    from pykvm.kvm import VM
    from pykvm.vcpu.msr_exits import MsrExits

__all__ = ["SplitIrqChip", "SplitIrqChipState", "msi_of"]


def msi_of(message: Message) -> tuple[int, int]:
    """The address and the data that send `message` (SDM 3A 11.11), as KVM takes them.

    >>> from pykvm.interrupts import Message
    >>> [hex(part) for part in msi_of(Message(1, False, 0, 0x31, level=True))]
    ['0xfee01000', '0xc031']
    """
    address = 0xFEE00000 | (message.destination & 0xFF) << 12 | message.logical << 2
    level = (1 << 15 | 1 << 14) if message.level else 0
    return address, level | (message.mode & 7) << 8 | message.vector & 0xFF


class _RoutedIoApic(NamedDevice):
    """An I/O APIC of ours over local APICs of the kernel's.

    The kernel reports the end of a level interrupt only if it finds the vector in its routes.
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
        self._ioapic.write(offset, size, value)
        self._route()

    def state(self) -> IoApicState:
        """See `IoApic.state`."""
        return self._ioapic.state()

    def restore(self, state: IoApicState) -> None:
        """See `IoApic.restore`."""
        self._ioapic.restore(state)
        self._route()

    def _route(self) -> None:
        """Tell KVM the routes, if they have changed."""
        from pykvm.interrupts.ioapic import message_of

        entries = list(self._ioapic.entries)
        if entries == self._routes:
            return
        routes = []
        for pin, entry in enumerate(entries):
            address, data = msi_of(message_of(entry))
            msi = {"address_lo": address, "address_hi": 0, "data": data}
            routes.append({"gsi": pin, "type": KVM_IRQ_ROUTING_MSI, "u": {"msi": msi}})
        self._vm.set_gsi_routing(routes)
        self._routes = entries


class _Wire:
    """The 8259's output, where the first vCPU has to come and fetch the vector."""

    def __init__(self, attend: Callable[[], None]) -> None:
        self._attend = attend

    def set(self, level: bool) -> None:
        """Call the vCPU."""
        if level:
            self._attend()


class SplitIrqChipState(State):
    """The timers of KVM's local APICs, if guest time stood still.

    The local APICs are their vCPUs' state, and the other controllers are devices on the bus.
    """

    timers: tuple[StoppedTimer, ...]


class SplitIrqChip(KernelLapics):
    """Local APICs in KVM; I/O APIC, the 8259 pair and the clocks in software."""

    def __init__(
        self, vm: VM, clock: Callable[[], Clock], msr_exits: MsrExits | None = None
    ) -> None:
        super().__init__(vm, clock, msr_exits)
        self.ioapic: IoApic | None = None
        self.pic: Pic8259Pair | None = None
        vm.enable_cap(KVM_CAP_SPLIT_IRQCHIP, IOAPIC_PINS)

    def _make_devices(self, clock: Clock) -> tuple[dict[str, Device], SplitInterrupts]:
        from pykvm.devices.pit import Pit8254
        from pykvm.devices.port61 import Port61
        from pykvm.interrupts.ioapic import IoApic
        from pykvm.interrupts.pic import Pic8259Pair

        ioapic = self.ioapic = IoApic(self._deliver)
        pic = self.pic = Pic8259Pair(_Wire(self._cpus[0].engine.attend))
        hpet = self._make_hpet(clock)
        pit = Pit8254(clock, hpet.legacy_input(PIT_IRQ))
        devices: dict[str, Device] = {
            "ioapic": _RoutedIoApic(ioapic, self._vm),
            "pic-master": pic.master,
            "pic-slave": pic.slave,
            "pic-elcr": pic.elcr,
            "pit": pit,
            "port61": Port61(clock, pit),
            "hpet": hpet,
            **self._make_clocks(clock, hpet),
        }
        return devices, SplitInterrupts(clock, pic)

    def _deliver(self, message: Message) -> bool:
        return self._vm.signal_msi(*msi_of(message)) > 0

    def line(self, irq: int) -> InterruptLine:
        """See `KernelLapics`."""
        from pykvm.irqchip.wiring import isa_line

        assert self.ioapic is not None, "attach comes first"
        assert self.pic is not None
        return self.ioapic.line(irq) if irq >= ISA_IRQS else isa_line(self.pic, self.ioapic, irq)

    def irqfd(self, fd: int, irq: int) -> None:
        """See `pykvm.irqchip.IrqChip`."""
        raise ConfigError(
            "an irqfd needs KVM's own I/O APIC", hint=f"{option('irqchip', 'kernel')} has it"
        )

    def end_of_interrupt(self, vector: int) -> None:
        """See `pykvm.irqchip.IrqChip`."""
        if self.ioapic is not None:
            self.ioapic.eoi(vector)

    def state(self) -> SplitIrqChipState:
        """See `IrqChip`."""
        return SplitIrqChipState(self._stopped)

    def restore(self, state: SplitIrqChipState) -> None:
        """See `IrqChip`."""
        self._restore_timers(state.timers)
