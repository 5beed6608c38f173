"""A host whose time moves only when told to, and the lines of devices that run on it."""

from __future__ import annotations

from pykvm.clock import Clock


class Host:
    """The host's clock, in nanoseconds, and its TSC, which goes with it but for what is set."""

    def __init__(self, now: int = 5_000_000_000, *, khz: int = 2_596_120) -> None:
        self.now = now
        self.khz = khz
        self.tsc_at_zero = 77

    def read(self) -> int:
        return self.now

    def read_tsc(self) -> int:
        return self.tsc_at_zero + self.now * self.khz // 1_000_000

    def clock(self, policy: str = "realtime", *, movable: bool = True) -> Clock:
        """A clock on this host's time and TSC."""
        return Clock(
            policy,
            host_now=self.read,
            host_tsc=self.read_tsc,
            host_tsc_khz=self.khz,
            tsc_movable=movable,
        )


class Lines:
    """Interrupt lines that write down what happens to them, with the time."""

    def __init__(self, clock: Clock, count: int = 1) -> None:
        self.clock = clock
        self.log: list[tuple[int, int, bool]] = []
        self.lines = [Line(self, number) for number in range(count)]

    def __getitem__(self, number: int) -> Line:
        return self.lines[number]

    def times(self, number: int = 0) -> list[int]:
        """The guest times at which line `number` rose."""
        return [when for when, line, level in self.log if line == number and level]


class Line:
    """One of `Lines`."""

    def __init__(self, lines: Lines, number: int) -> None:
        self.number = number
        self.level = False
        self._lines = lines

    def set(self, level: bool) -> None:
        assert level != self.level, "set without a change"
        self.level = level
        self._lines.log.append((self._lines.clock.now(), self.number, level))
