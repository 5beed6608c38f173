"""The models with KVM's deviations from the data sheets put in: one override for each."""

from __future__ import annotations

from typing import Any, ClassVar

from pykvm.devices import InterruptLine
from pykvm.interrupts.input_driver import InputDriver
from pykvm.interrupts.pic import (
    ICW1,
    ICW1_SINGLE,
    OCW2_EOI,
    OCW2_SPECIFIC,
    OCW3,
    POLL_REQUEST,
    SPURIOUS,
    Pic8259,
    Pic8259Pair,
)
from pykvm.layout import CASCADE_IRQ

CASCADE_BIT = 1 << CASCADE_IRQ


class KvmPic(Pic8259):
    """An in-kernel 8259A."""

    def reset(self) -> None:
        """ICW3 does nothing: the chips know their places from the start."""
        super().reset()
        self.slaves, self.identity = CASCADE_BIT * self.master, CASCADE_IRQ

    def _icw1(self, value: int) -> None:
        """SNGL is ignored; the inputs whose edges are dropped are no longer in service."""
        self.isr &= ~(self.irr & ~self.elcr)
        super()._icw1(value & ~ICW1_SINGLE)
        self.slaves, self.identity = CASCADE_BIT * self.master, CASCADE_IRQ

    def _icw3(self, value: int) -> None:
        pass

    _WORDS: ClassVar[dict[int, Any]] = {**Pic8259._WORDS, 3: _icw3}

    def request(self) -> int | None:
        """Initialized or not; special full nesting opens the master for whatever is below."""
        requests = self.irr & ~self.imr
        served = self.isr
        if self.fully_nested and self.master:
            served &= ~CASCADE_BIT
        if not requests:
            return None
        found = self._first(requests)
        return found if not served or self._rank(found) < self._rank(self._first(served)) else None

    @property
    def requests(self) -> bool:
        """Initialized or not."""
        return self.request() is not None

    def _served(self) -> int:
        """Special mask mode does nothing."""
        return self.isr

    def poll(self) -> int:
        """A poll ends service rather than starting it, and drops a level."""
        found = self.request()
        if found is None:
            return SPURIOUS
        self.irr &= ~(1 << found)
        self.isr &= ~(1 << found)
        return POLL_REQUEST | found

    def choose_level_triggered(self, elcr: int) -> None:
        """The lines are not looked at."""
        self.elcr = elcr


class KvmPair(Pic8259Pair):
    """The in-kernel pair."""

    def __init__(self) -> None:
        super().__init__()
        self.chips = KvmPic(master=True), KvmPic(master=False)

    def line(self, irq: int) -> InterruptLine:
        """IRQ 2 is an input."""
        return InputDriver(self._drive, self._count, irq)

    def _write(self, which: int, a0: int, value: int) -> None:
        """INT and the cascade are looked at after a mask, an EOI or a new priority only."""
        chip = self.chips[which]
        served, initializing = chip.isr, bool(chip._awaited)
        chip.write(a0, value)
        ends = bool(value & OCW2_SPECIFIC and value & 0xA0) or bool(value & OCW2_EOI and served)
        if (a0 and not initializing) or (not a0 and not value & (ICW1 | OCW3) and ends):
            self._update()

    def _write_elcr(self, which: int, value: int) -> None:
        self.chips[which].choose_level_triggered(value & (0xF8, 0xDE)[which])

    def _poll(self, chip: Pic8259) -> int:
        """Polling the slave ends the service of the master's input 2."""
        answer = chip.read(0)
        if answer & POLL_REQUEST and not chip.master:
            self.chips[0].irr &= ~CASCADE_BIT
            self.chips[0].isr &= ~CASCADE_BIT
        if not chip.master or answer != POLL_REQUEST | CASCADE_IRQ:
            self._update()
        return answer

    def _update(self) -> None:
        """The slave's request is made anew each time."""
        self._update_master()

    def _update_master(self) -> None:
        """So it is whatever has changed."""
        master, slave = self.chips
        if slave.request() is not None:
            master.drive(CASCADE_IRQ, True)
            master.drive(CASCADE_IRQ, False)
        super()._update_master()
