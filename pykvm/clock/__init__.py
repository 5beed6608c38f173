"""Guest time: what the guest's clocks show, and when their deadlines are due."""

from __future__ import annotations

from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.clock.clock import BATCH, NEVER, POLICIES, Clock, Timer, TimeSource
    from pykvm.clock.saved import ClockState, TimerState

__all__ = [
    "BATCH",
    "NEVER",
    "POLICIES",
    "Clock",
    "ClockState",
    "TimeSource",
    "Timer",
    "TimerState",
    "ticks_at",
    "time_of",
]

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


def __getattr__(name: str) -> object:
    # Many devices count ticks; few guests ever need a clock.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in ("ClockState", "TimerState"):
        from pykvm.clock import saved

        return getattr(saved, name)
    from pykvm.clock import clock

    return getattr(clock, name)
