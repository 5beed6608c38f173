"""An HPET with time that moves when told to, and lines that remember."""

from __future__ import annotations

from clock.fake_host import Host

from pykvm.clock import Clock
from pykvm.devices.hpet import (
    CONFIGURATION,
    ENABLE_CNF,
    INT_ENB_CNF,
    LEG_RT_CNF,
    ROUTE_SHIFT,
    TICK_NS,
    TYPE_CNF,
    VAL_SET_CNF,
    Hpet,
)
from support.lines import Lines

ONES32 = (1 << 32) - 1
ONES64 = (1 << 64) - 1
IRQS = (0, 8, 11, 20, 21, 22, 23)
PERIODIC = INT_ENB_CNF | TYPE_CNF | VAL_SET_CNF


def config(number: int) -> int:
    return 0x100 + 0x20 * number


def comparator(number: int) -> int:
    return 0x108 + 0x20 * number


def route(irq: int) -> int:
    return irq << ROUTE_SHIFT


class Rig:
    """An HPET on a host whose time stands still, with the lines of a PC."""

    def __init__(self) -> None:
        self.host = Host()
        self.clock: Clock = self.host.clock()
        self.lines = Lines(self.clock, 24)
        self.hpet = Hpet(self.clock, {irq: self.lines[irq] for irq in IRQS})

    def read(self, offset: int, size: int = 8) -> int:
        return self.hpet.read(offset, size)

    def write(self, offset: int, value: int, size: int = 8) -> None:
        self.hpet.write(offset, size, value)

    def start(self, *, legacy: bool = False) -> None:
        self.write(CONFIGURATION, ENABLE_CNF | LEG_RT_CNF * legacy)

    def stop(self) -> None:
        self.write(CONFIGURATION, 0)

    def set(self, number: int, bits: int, value: int | None = None) -> None:
        """Write timer `number`'s configuration and, if given, its comparator."""
        self.write(config(number), bits)
        if value is not None:
            self.write(comparator(number), value)

    def idle(self, ticks: int) -> None:
        """Let time pass without a look at it, as a busy host does."""
        self.host.now += ticks * TICK_NS

    def run(self, ticks: int) -> None:
        """Let time pass, with every deadline served on time."""
        end = self.clock.now() + ticks * TICK_NS
        while (when := self.clock.next_deadline(0)) is not None and when <= end:
            self.host.now += max(when - self.clock.now(), 0)
            self.clock.run_due(0)
        self.host.now += end - self.clock.now()

    def rises(self, irq: int) -> list[int]:
        """The times, in ticks, at which a line rose."""
        return [when // TICK_NS for when in self.lines.times(irq)]

    def level(self, irq: int) -> bool:
        return self.lines[irq].level
