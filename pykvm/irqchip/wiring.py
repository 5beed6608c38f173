"""The interrupt controllers and clocks of a PC, wired together in software.

It knows interrupts and devices, never KVM: what a processor does with an interrupt is left to the
`CpuPort` of each local APIC.
"""

from __future__ import annotations

from functools import partial

from pykvm.bus.device import NamedDevice
from pykvm.devices.hpet import Hpet
from pykvm.devices.line import edge_of, restore_level
from pykvm.devices.pit import Pit8254
from pykvm.devices.pm_timer import AcpiPmTimer
from pykvm.devices.port61 import Port61
from pykvm.devices.rtc import Rtc146818
from pykvm.interrupts.apicbus import ApicBus
from pykvm.interrupts.ioapic import MASKED, IoApic
from pykvm.interrupts.lapic import LocalApic
from pykvm.interrupts.message import NMI
from pykvm.interrupts.pic import Pic8259Pair
from pykvm.layout import DEVICE_IRQS, IOAPIC_PINS, ISA_IRQS, PIT_IRQ, RTC_IRQ, gsi_of
from pykvm.typed import TYPE_CHECKING, Protocol
from pykvm.values.frozen import NamedTuple
from pykvm.values.state import State

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from pykvm.bus import Device
    from pykvm.clock import Clock
    from pykvm.devices.line import InterruptLine
    from pykvm.interrupts.lapic_core import CpuPort, LocalApicState
    from pykvm.values.state import Plain

__all__ = ["ApicPage", "ApicTraits", "Platform", "PlatformState", "Processor", "isa_line"]


class Both:
    """One wire to two places: a PC's IRQs reach the 8259 and the I/O APIC."""

    def __init__(self, *lines: InterruptLine) -> None:
        self._lines = lines
        self._edges = tuple(edge_of(line) for line in lines)

    def set(self, level: bool) -> None:
        """Drive all of them."""
        for line in self._lines:
            line.set(level)

    def edge(self) -> None:
        """See `pykvm.devices.line.edge_of`."""
        for edge in self._edges:
            edge()

    def restore(self, level: bool) -> None:
        """Let all of them have that level, and drive none."""
        for line in self._lines:
            restore_level(line, level)


def isa_line(pic: Pic8259Pair, ioapic: IoApic, irq: int) -> InterruptLine:
    """An ISA interrupt request: input `irq` of the 8259 pair, and its pin of the I/O APIC."""
    return Both(pic.line(irq), ioapic.line(gsi_of(irq)))


class Virtual8259Wire:
    """The 8259's INT output, on LINT0 of a local APIC."""

    def __init__(self, lapic: LocalApic) -> None:
        #: Drive the pin.
        self.set: Callable[[bool], None] = partial(lapic.set_lint, 0)


class Processor(Protocol):
    """A vCPU as its local APIC's page sees it."""

    lapic: LocalApic | None

    def before_access(self) -> None:
        """The guest is about to read or write a register."""

    def after_access(self) -> None:
        """It has."""


class ApicPage(NamedDevice):
    """The page of local APIC registers: every processor finds its own there.

    `current` is the processor whose thread calls.
    """

    name = "lapic"
    #: What it shows is each local APIC's.
    stateless = True

    def __init__(self, current: Callable[[], Processor]) -> None:
        self._current = current

    def read(self, offset: int, size: int) -> int:
        """See `LocalApic.read`."""
        processor = self._current()
        processor.before_access()
        return processor.lapic.read(offset, size) if processor.lapic else -1

    def write(self, offset: int, size: int, value: int) -> None:
        """See `LocalApic.write`."""
        processor = self._current()
        processor.before_access()
        if processor.lapic:
            processor.lapic.write(offset, size, value)
        processor.after_access()


class ApicTraits(NamedTuple):
    """What the guest is told of its local APICs elsewhere, by which they have to abide.

    `x2apic` and `tsc_deadline` are CPUID.1:ECX[21] and [24], `cmci` is IA32_MCG_CAP[10], and
    `physical_bits` MAXPHYADDR.
    """

    x2apic: bool = True
    tsc_deadline: bool = True
    cmci: bool = False
    physical_bits: int = 52


class PlatformState(State):
    """The local APICs, and the devices by name."""

    lapics: tuple[LocalApicState, ...]
    devices: tuple[tuple[str, Plain], ...]


class Platform:
    """All of it, for the processors at `ports`.

    `devices` has what goes on the bus, by name (`pykvm.irqchip.places.PLACES`); `line` is where a
    device's interrupt request goes.
    """

    def __init__(
        self,
        clock: Clock,
        ports: Sequence[CpuPort],
        current: Callable[[], Processor],
        traits: ApicTraits = ApicTraits(),  # noqa: B008 - immutable
    ) -> None:
        """`current` is as for `ApicPage`."""
        self.clock = clock
        self.apics = ApicBus()
        self.lapics = tuple(
            LocalApic(number, clock, port, self.apics.send, **traits._asdict())
            for number, port in enumerate(ports)
        )
        self.ioapic = IoApic(self.apics.deliver)
        for lapic in self.lapics:
            lapic.on_eoi = self._eoi
            self.apics.add(lapic)
        self.pic = Pic8259Pair(Virtual8259Wire(self.lapics[0]))
        lines = {irq: self.line(irq) for irq in DEVICE_IRQS}
        lines |= {pin: self.ioapic.line(pin) for pin in range(ISA_IRQS, IOAPIC_PINS)}
        self.hpet = Hpet(clock, lines)
        self.pit = Pit8254(clock, self.hpet.legacy_input(PIT_IRQ))
        self.rtc = Rtc146818(clock, self.hpet.legacy_input(RTC_IRQ))
        self.devices: dict[str, Device] = {
            "pic-master": self.pic.master,
            "pic-slave": self.pic.slave,
            "pic-elcr": self.pic.elcr,
            "pit": self.pit,
            "port61": Port61(clock, self.pit),
            "rtc": self.rtc,
            "pm-timer": AcpiPmTimer(clock),
            "ioapic": self.ioapic,
            "hpet": self.hpet,
            "lapic": ApicPage(current),
        }

    def power_on(self, pristine: PlatformState) -> None:
        """Be as if all of it were made now; `pristine` is the state that it had when it was.

        Lines are as their devices drive them, and rise now.
        """
        for lapic, state in zip(self.lapics, pristine.lapics, strict=True):
            lapic.restore(state)
        for name, device in self.stateful():
            if name != "rtc":
                device.restore(dict(pristine.devices)[name])
        self.rtc.power_on()
        self.pic.raise_lines()
        self.ioapic.raise_lines()

    def state(self) -> PlatformState:
        """All of it, but for time that passes."""
        return PlatformState(
            tuple(lapic.state() for lapic in self.lapics),
            tuple((name, device.state()) for name, device in self.stateful()),
        )

    def stateful(self) -> list[tuple[str, Any]]:
        """The devices that have a state, by name."""
        return [(name, device) for name, device in self.devices.items() if hasattr(device, "state")]

    def line(self, irq: int) -> InterruptLine:
        """See `isa_line`."""
        return isa_line(self.pic, self.ioapic, irq)

    def has_nmi_source(self) -> bool:
        """Whether anything but another processor could send an NMI."""
        entries = self.ioapic.entries
        return any(entry >> 8 & 7 == NMI and not entry & MASKED for entry in entries) or any(
            lapic.has_nmi_pin for lapic in self.lapics
        )

    def _eoi(self, vector: int, level: bool) -> None:
        if level:
            self.ioapic.eoi(vector)
