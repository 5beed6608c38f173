"""A host whose time moves only when told to."""

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
