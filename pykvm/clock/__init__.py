"""Guest time: what the guest's clocks show, and when their deadlines are due."""

from pykvm.clock.clock import (
    BATCH,
    NEVER,
    POLICIES,
    Clock,
    Timer,
    TimeSource,
    ticks_at,
    time_of,
)

__all__ = [
    "BATCH",
    "NEVER",
    "POLICIES",
    "Clock",
    "TimeSource",
    "Timer",
    "ticks_at",
    "time_of",
]
