"""Guest time: what the guest's clocks show, and when their deadlines are due."""

from __future__ import annotations

from pykvm.clock.saved import ClockState, TimerState
from pykvm.clock.ticks import NEVER, ticks_at, time_of
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.clock.clock import BATCH, POLICIES, Clock, Timer, TimeSource

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


def __getattr__(name: str) -> object:
    # Many devices count ticks; few guests ever need a clock.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pykvm.clock import clock

    return getattr(clock, name)
