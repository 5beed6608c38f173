"""An 8254 counter that does count: one CLK pulse at a time, as the data sheet has it.

It shares nothing with the model under test and is far too slow for anything but that.
"""

from __future__ import annotations


class PulseCounter:
    """CE, OUT and the flip-flops of one counter; `pulse` is the falling edge of CLK."""

    def __init__(self, *, gate: bool) -> None:
        self.gate = gate
        self.ce = 0
        self.out = True
        self.rises = 0
        self.setup(0x36)

    def setup(self, word: int) -> None:
        mode = word >> 1 & 7
        self.mode = mode if mode < 6 else mode - 4
        self.rw = word >> 4 & 3
        self.modulus = 10_000 if word & 1 else 65_536
        self.ce %= self.modulus
        self.null = True
        self.count = 0
        self.low: int | None = None
        self.written = False
        self.load = False
        self.trigger = False
        self.active = False
        self.fired = False

    def drive(self, out: bool) -> None:
        self.rises += out and not self.out
        self.out = out

    def control(self, word: int) -> None:
        self.setup(word)
        self.drive(self.mode != 0)

    def write(self, byte: int) -> None:
        if self.rw == 3 and self.low is None:
            self.low = byte
            if self.mode == 0:
                self.active = self.load = False
                self.drive(False)
            return
        raw = {1: byte, 2: byte << 8, 3: (self.low or 0) | byte << 8}[self.rw]
        self.low = None
        if self.modulus == 10_000:
            raw = sum((raw >> 4 * i & 15) * 10**i for i in range(4)) % 10_000
        self.count = raw or self.modulus
        self.null = True
        if self.mode == 0:
            self.active = False
            self.drive(False)
        if self.mode in (0, 4) or (self.mode in (2, 3) and not self.written):
            self.load = True
        self.written = True

    def set_gate(self, level: bool) -> None:
        if level and not self.gate:
            self.trigger = self.written
        if self.gate and not level and self.mode in (2, 3):
            self.drive(True)
            self.active = False
        self.gate = level

    def pulse(self) -> None:
        trigger, self.trigger = self.trigger, False
        if self.load or (trigger and self.mode in (1, 2, 3, 5)):
            self.load = False
            self.reload()
            self.active = self.gate or self.mode not in (2, 3)
            self.fired = False
            self.drive(self.mode not in (0, 1))
        elif self.active and (self.gate or self.mode in (1, 5)):
            (self.count_down, self.count_periods, self.count_halves)[
                {2: 1, 3: 2}.get(self.mode, 0)
            ]()

    def reload(self) -> None:
        self.null = False
        self.loaded = max(self.count, 2) if self.mode in (2, 3) else self.count
        start = self.loaded - self.loaded % 2 if self.mode == 3 else self.loaded
        self.ce = start % self.modulus

    def count_down(self) -> None:
        self.ce = (self.ce - 1) % self.modulus
        expires = self.ce == 0 and not self.fired
        self.fired |= expires
        if self.mode in (4, 5):
            self.drive(not expires)
        elif expires:
            self.drive(True)

    def count_periods(self) -> None:
        if self.ce == 1:
            self.reload()
            self.drive(True)
            return
        self.ce = (self.ce - 1) % self.modulus
        self.drive(self.ce != 1)

    def count_halves(self) -> None:
        last = 0 if self.out and self.loaded % 2 else 2
        if self.ce == last:
            self.reload()
            self.drive(not self.out)
        else:
            self.ce = (self.ce - 2) % self.modulus
