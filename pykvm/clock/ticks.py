"""Guest time as numbers: its end, and the ticks that a counter makes in it."""

from __future__ import annotations

__all__ = ["NEVER", "ticks_at", "time_of"]

#: The guest time that is never reached.
NEVER = 1 << 62

_SECOND = 1_000_000_000


def ticks_at(now: int, hz: int) -> int:
    """How many ticks a counter of `hz` has made by guest time `now`, from 0 on.

    >>> ticks_at(1_000_000_000, 3_579_545)
    3579545
    """
    return now * hz // _SECOND


def time_of(tick: int, hz: int) -> int:
    """The first nanosecond at which `ticks_at` gives `tick` or more.

    Timers that are armed tick by tick this way never drift, whatever `hz` is.

    >>> time_of(1, 3_579_545), ticks_at(279, 3_579_545), ticks_at(280, 3_579_545)
    (280, 0, 1)
    """
    return -(-tick * _SECOND // hz)
