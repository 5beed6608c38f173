"""What is saved of guest time."""

from __future__ import annotations

from pykvm.typed import TYPE_CHECKING
from pykvm.values.state import State

if TYPE_CHECKING:
    from pykvm.values.state import S128, U32, U64

__all__ = ["ClockState", "TimerState"]


class TimerState(State):
    """A timer that is armed: for guest time `when`, as the `order`-th arming of its clock."""

    when: S128
    order: U64


class ClockState(State):
    """Guest time, and the time-stamp counter at that time.

    `tsc` is what a vCPU reads that has nothing in its IA32_TSC_ADJUST; None where guests read the
    host's TSC.  `adjust` is that MSR by vCPU.  `skipped` is the part of a ms, in ns, that jumps
    have left over (`pykvm.clock.tsc.Tsc.skip`); `order` is how often a timer was armed.
    """

    now: U64
    tsc: U64 | None
    adjust: tuple[tuple[U32, U64], ...]
    skipped: U32
    order: U64
