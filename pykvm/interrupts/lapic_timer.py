"""The local APIC's timer: one-shot, periodic and TSC-deadline (SDM 3A 11.5.4).

Nothing counts here.  The timer remembers when the count was started and derives the current count
from the time that it is asked; it arms the clock only for an expiry that will interrupt.

A periodic timer that is late coalesces: however many ticks have gone by, the guest gets one
interrupt, the next tick comes where it would have come anyway, and `missed` counts the others.  So
a count of ticks plus `missed` is exact.  Interrupts of a periodic timer are at least
`MINIMUM_INTERVAL` apart, as KVM has them; faster ticks count as missed.
"""

from __future__ import annotations

from pykvm.clock import NEVER, ticks_at, time_of
from pykvm.errors import ConfigError
from pykvm.typed import TYPE_CHECKING, Protocol
from pykvm.values.checks import integer
from pykvm.values.state import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.clock import TimerState
    from pykvm.values.state import S64, S128, U2, U4, U32, U64

__all__ = ["ApicTimer", "ApicTimerState", "Timer", "TscClock"]

#: The rate before division: KVM's.
DEFAULT_HZ = 1_000_000_000

#: The least time between two interrupts of a periodic timer, in ns.
MINIMUM_INTERVAL = 200_000

# Timer modes: bits 17 and 18 of the LVT entry.  The fourth is reserved: it counts, mute.
ONE_SHOT = 0
PERIODIC = 1
DEADLINE = 2
MODES = ("one-shot", "periodic", "TSC-deadline", "reserved")

# By bits 0, 1 and 3 of the divide configuration register (SDM 3A figure 11-10).
_DIVISORS = (2, 4, 8, 16, 32, 64, 128, 1)


class ApicTimerState(State):
    """The registers; when tick 0 was, how many ticks are dealt with, and what the clock was asked.

    `deadline` is as IA32_TSC_DEADLINE has it, and `due` when that was to be, in guest time.
    """

    mode: U2
    masked: bool
    initial_count: U32
    divide: U4
    deadline: U64
    due: S128
    start: S64 | None
    ticks: U64
    missed: U64
    timer: TimerState | None


class Timer(Protocol):
    """One deadline of a clock."""

    def arm(self, when: int, /) -> None:
        """Ask for the callback at guest time `when` (ns), instead of what was asked before."""

    def cancel(self) -> None:
        """Ask for nothing."""

    def state(self) -> TimerState | None:
        """What is asked for."""

    def restore(self, state: TimerState | None, /) -> None:
        """Ask for that, without a look at it now."""


class TscClock(Protocol):
    """What the timer needs of the guest's clock."""

    #: Whether KVM alone moves the TSC: what it reads stands still outside KVM_RUN.
    tsc_by_kvm: bool

    def now(self) -> int:
        """Guest time, in ns.  Never goes back."""

    def tsc(self, now: int | None = None, /, *, cpu: int = 0) -> int:
        """The time-stamp counter of vCPU `cpu` at guest time `now`."""

    def tsc_time(self, value: int, /, *, cpu: int = 0) -> int:
        """The guest time at which the time-stamp counter of vCPU `cpu` reads `value`."""

    def timer(self, callback: Callable[[int], None], queue: int = 0, /) -> Timer:
        """A timer that calls ``callback(when)`` in the thread that serves `queue`."""


def divisor(divide: int) -> int:
    """How many cycles one count takes, by the divide configuration register.

    >>> [divisor(value) for value in (0b0000, 0b0011, 0b1011)]
    [2, 16, 1]
    """
    return _DIVISORS[divide & 3 | divide >> 1 & 4]


class ApicTimer:
    """The timer: LVT timer, initial count, current count, divide and IA32_TSC_DEADLINE.

    `fire` is called at each expiry that is not masked, and returns whether the interrupt is a new
    one (False: it merged with one that still waits).  All methods belong to the vCPU's thread.
    """

    __slots__ = (
        "_clock",
        "_cpu",
        "_due",
        "_fire",
        "_hz",
        "_shortest",
        "_start",
        "_ticks",
        "_timer",
        "deadline",
        "divide",
        "initial_count",
        "masked",
        "missed",
        "mode",
    )

    def __init__(
        self,
        clock: TscClock,
        fire: Callable[[], bool],
        *,
        cpu: int = 0,
        hz: int = DEFAULT_HZ,
    ) -> None:
        """The timer of vCPU `cpu`, whose clock queue and TSC it uses; `hz` is undivided."""
        if hz <= 0:
            raise ConfigError(f"an APIC timer of {hz} Hz: it needs at least 1")
        self._clock = clock
        self._fire = fire
        self._hz = hz
        # `MINIMUM_INTERVAL` in cycles.
        self._shortest = ticks_at(MINIMUM_INTERVAL, hz)
        self._cpu = cpu
        self._timer = clock.timer(self._expired, cpu)
        #: Periodic ticks that had no interrupt of their own.
        self.missed = 0
        self.reset()

    def reset(self) -> None:
        """Stop, with every register as at power-on."""
        self.mode = ONE_SHOT
        self.masked = True
        self.initial_count = 0
        self.divide = 0
        #: When the deadline mode's interrupt is due, as TSC value; 0 for never.
        self.deadline = 0
        # Guest time at which the clock was last asked to call for it.
        self._due = NEVER
        # Guest time at which tick 0 was; None while the count stands at 0.
        self._start: int | None = None
        # Ticks since then that are dealt with.
        self._ticks = 0
        self._timer.cancel()

    def state(self) -> ApicTimerState:
        """See `pykvm.values.state.Stateful`."""
        return ApicTimerState(
            self.mode,
            self.masked,
            self.initial_count,
            self.divide,
            self.deadline,
            self._due,
            self._start,
            self._ticks,
            self.missed,
            self._timer.state(),
        )

    def restore(self, state: ApicTimerState) -> None:
        """See `pykvm.values.state.Stateful`.  Raises ConfigError for ticks that have not been."""
        if state.start is not None:
            period = integer("the initial count", state.initial_count, 1) * divisor(state.divide)
            past = integer("time since the timer started", self._clock.now() - state.start, 0)
            integer("ticks dealt with", state.ticks, 0, ticks_at(past, self._hz) // period)
        self.mode = state.mode
        self.masked = state.masked
        self.initial_count = state.initial_count
        self.divide = state.divide
        self.deadline = state.deadline
        self._due = state.due
        self._start = state.start
        self._ticks = state.ticks
        self.missed = state.missed
        self._timer.restore(state.timer)

    def configure(self, lvt: int) -> None:
        """Take mode and mask from the LVT entry.

        Going into or out of deadline mode disarms the timer (SDM 3A 11.5.4.1).
        """
        self._settle(self._clock.now())
        mode = lvt >> 17 & 3
        if (mode == DEADLINE) != (self.mode == DEADLINE):
            self.initial_count = 0
            self.deadline = 0
            self._start = None
        self.mode = mode
        self.masked = bool(lvt >> 16 & 1)
        self._arm()

    def write_initial_count(self, count: int) -> None:
        """Start counting down from `count`; 0 stops.  Nothing happens in deadline mode."""
        if self.mode == DEADLINE:
            return
        now = self._clock.now()
        self._settle(now)
        self.initial_count = count
        self._start = now if count else None
        self._ticks = 0
        self._arm()

    def write_divide(self, divide: int) -> None:
        """Count at another rate, from the count that is reached."""
        now = self._clock.now()
        self._settle(now)
        if self._start is not None:
            old, new = divisor(self.divide), divisor(divide)
            into_tick = ticks_at(now - self._start, self._hz) - self._ticks * self._period
            self._start = now - time_of(into_tick * new // old, self._hz)
            self._ticks = 0
        self.divide = divide
        self._arm()

    def write_deadline(self, tsc: int) -> None:
        """Ask for an interrupt when the TSC has reached `tsc`; 0 disarms.

        Nothing happens in other modes.
        """
        if self.mode == DEADLINE:
            self._settle(self._clock.now())
            self.deadline = tsc
            self._due = NEVER
            self._rearm()

    def read_deadline(self) -> int:
        """The deadline that is armed; 0 when it has passed, and in other modes."""
        self._settle(self._clock.now())
        return self.deadline

    def read_current_count(self) -> int:
        """The count now; an expiry that is due happens first."""
        now = self._clock.now()
        self._settle(now)
        return self.count_at(now)

    def count_at(self, now: int) -> int:
        """The count at guest time `now`, without any effect."""
        if self._start is None:
            return 0
        counts = ticks_at(now - self._start, self._hz) // divisor(self.divide)
        done = counts - self._ticks * self.initial_count
        if self.mode == PERIODIC:
            done %= self.initial_count
        return max(0, self.initial_count - done)

    def peek_count(self) -> int:
        """The count now, without any effect."""
        return self.count_at(self._clock.now())

    def tsc_moved(self) -> None:
        """The TSC was written or its rate changed: the deadline comes at another time."""
        if self.deadline:
            self._rearm()

    # Inside

    @property
    def _period(self) -> int:
        """From tick to tick, in cycles of the undivided clock."""
        return self.initial_count * divisor(self.divide)

    def _expired(self, when: int) -> None:
        self._rearm()

    def _rearm(self) -> None:
        self._settle(self._clock.now())
        self._arm()

    def _settle(self, now: int) -> None:
        """Let everything happen that is due by `now`."""
        if self.deadline:
            if self._has_reached_deadline(now):
                self.deadline = 0
                if not self.masked:
                    self._fire()
        elif self._start is not None:
            ticks = ticks_at(now - self._start, self._hz) // self._period
            due = ticks - self._ticks
            if due <= 0:
                return
            self._ticks = ticks
            if self.mode != PERIODIC:
                self._start = None
                if self.mode == ONE_SHOT and not self.masked:
                    self._fire()
            elif not self.masked:
                self.missed += due - 1 if self._fire() else due

    def _has_reached_deadline(self, now: int) -> bool:
        # A TSC that KVM keeps catches up only when the vCPU enters the guest (kvm_arch_vcpu_load
        # with an unstable host TSC): a halted vCPU would wait for it for ever.
        if self._clock.tsc_by_kvm and now >= self._due:
            return True
        return self._clock.tsc(now, cpu=self._cpu) >= self.deadline

    def _arm(self) -> None:
        """Arm the clock for the next expiry that will interrupt."""
        when = None if self.masked else self._next_expiry()
        if when is None:
            self._timer.cancel()
        else:
            self._timer.arm(when)

    def _next_expiry(self) -> int | None:
        if self.deadline:
            # It was not due a moment ago; if the clock's rounding says now, look again later.
            due = self._clock.tsc_time(self.deadline, cpu=self._cpu)
            self._due = max(due, self._clock.now() + 1)
            return self._due
        if self._start is None or self.mode > PERIODIC:
            return None
        period, step = self._period, 1
        if self._ticks and period < self._shortest:
            step = -(-self._shortest // period)
        return self._start + time_of((self._ticks + step) * period, self._hz)

    def __str__(self) -> str:
        if self.deadline:
            return f"{MODES[self.mode]}, due at TSC {self.deadline:#x}"
        count = self.peek_count()
        missed = f", missed {self.missed}" if self.missed else ""
        divided = f"/{divisor(self.divide)}"
        return f"{MODES[self.mode]}, {count} of {self.initial_count}, {divided}{missed}"
