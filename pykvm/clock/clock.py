"""Guest time: what the guest takes for the time, and the deadlines that hang off it.

Guest time is a count of nanoseconds since the clock was made.  It runs at the speed of the host's
CLOCK_MONOTONIC, and a policy says which part of the host's time the guest never sees:

``realtime``
    None is hidden.
``paused``
    Time passes only between `Clock.start` and `Clock.stop`, that is, while the machine runs.
``warp``
    As ``paused``; and `Clock.warp_to` skips what the guest would only have waited for.

Guest time never goes backwards.  If the host's clock does, guest time goes on from where it was.

Catching up: a stall (a busy host, a stopped process) is host time like any other, and guest time
follows it at once, never slowed down or sped up.  What came due meanwhile runs in the order of its
times, `BATCH` callbacks at a time, each told the time that it was armed for.  What a device with a
periodic timer makes of the periods that it missed is its own policy: one interrupt for them all, or
one each at a bounded rate; it counts those that it drops.  While the host is suspended,
CLOCK_MONOTONIC stands still, and guest time with it.

Guest time lasts 146 years (`NEVER`): a timer armed for later is armed, and never comes.
"""

from __future__ import annotations

import time
from _thread import allocate_lock
from bisect import insort

from pykvm.clock.saved import ClockState, TimerState
from pykvm.clock.tsc import Tsc
from pykvm.errors import ConfigError, StateError
from pykvm.typed import TYPE_CHECKING, Protocol
from pykvm.values.checks import callback as check_callback
from pykvm.values.checks import integer, one_of, unsigned
from pykvm.values.spelling import option
from pykvm.values.subscribers import Subscribers

if TYPE_CHECKING:
    from collections.abc import Callable

    _Entry = tuple[int, int, "Timer"]

__all__ = [
    "BATCH",
    "NEVER",
    "POLICIES",
    "Clock",
    "TimeSource",
    "Timer",
]

POLICIES = ("realtime", "paused", "warp")

#: The guest time that is never reached.
NEVER = 1 << 62

#: The most callbacks in one `Clock.run_due`: timers that are always due cannot keep a vCPU.
BATCH = 64

#: The TSC's default frequency: a tick is a nanosecond.
DEFAULT_TSC_KHZ = 1_000_000


def _place(entry: _Entry) -> tuple[int, int]:
    """By what entries are sorted: a state may have the same order twice."""
    return entry[:2]


class TimeSource(Protocol):
    """What a device may ask of a clock."""

    @property
    def made(self) -> bool:
        """Whether the machine has its clock yet; else the first `now` or `timer` makes it."""

    def now(self) -> int:
        """Guest time, in nanoseconds."""

    def timer(self, callback: Callable[[int], None], queue: int = 0) -> Timer:
        """A timer that calls ``callback(when)`` when it comes due."""


class _Queue:
    """The timers of a queue that are armed, in the order in which they come due."""

    __slots__ = ("entries", "looking")

    def __init__(self) -> None:
        self.entries: list[_Entry] = []
        #: Whether `run_due` is at it: its caller asks for the next deadline afterwards.
        self.looking = False


class Timer:
    """A deadline that can be armed; `Clock.timer` makes it.

    `when` is the guest time it is armed for, or None.  Coming due disarms it.
    """

    __slots__ = ("callback", "clock", "order", "queue", "when")

    def __init__(self, clock: Clock, callback: Callable[[int], None], queue: int) -> None:
        self.clock = clock
        self.callback = callback
        self.queue = queue
        #: Among timers armed for the same time, that of arming.
        self.order = 0
        self.when: int | None = None

    def arm(self, when: int) -> None:
        """Come due at guest time `when` instead of when armed for; in the past means at once."""
        self.clock.arm(self, when)

    def cancel(self) -> None:
        """Disarm.  Harmless if it is not armed.

        A callback that another thread's `Clock.run_due` has taken already may still be on its way.
        """
        self.clock.cancel(self)

    def state(self) -> TimerState | None:
        """What it is armed for, if it is."""
        when, order = self.when, self.order
        return None if when is None else TimerState(when, order)

    def restore(self, state: TimerState | None) -> None:
        """Be armed for that, or not.  No callback runs, however soon it is due.

        The clock is restored first.  Raises ConfigError for an arming that it has not had.
        """
        self.clock.restore_timer(self, state)

    def __repr__(self) -> str:
        return f"<Timer of queue {self.queue}, {'idle' if self.when is None else self.when}>"


class Clock:
    """The only source of time for a machine's devices.

    `policy` is one of `POLICIES`.  `host_now` gives the host's time in nanoseconds.  `host_tsc`
    reads the host's TSC, which runs at `host_tsc_khz` (else `tsc_khz`); without it the TSC is made
    from `host_now`.  `tsc_khz` is the guest's frequency (else the host's, else 1 GHz).
    `tsc_movable` says whether this host's guests see an offset that KVM is given.  Guest time is 0
    at `began` by the host's time (now, if that is None); by other policies than ``realtime`` it is
    0 until the first run.

    Deadlines are in queues: number n belongs to vCPU n, and what belongs to no vCPU is in 0.
    Every method may be called from any thread; callbacks run without the clock's lock.

    Raises ConfigError for a policy or a frequency that does not exist.

    >>> clock = Clock("warp")
    >>> timer = clock.timer(lambda when: print("due at", when))
    >>> timer.arm(3_600 * 10**9)
    >>> clock.warp_to(clock.next_deadline(0))
    >>> clock.run_due(0)
    due at 3600000000000
    1
    >>> clock.now(), clock.tsc()
    (3600000000000, 3600000000000)
    """

    #: See `TimeSource`.
    made = True

    def __init__(
        self,
        policy: str = "realtime",
        *,
        tsc_khz: int | None = None,
        host_now: Callable[[], int] = time.monotonic_ns,
        host_tsc: Callable[[], int] | None = None,
        host_tsc_khz: int | None = None,
        tsc_movable: bool = True,
        tsc_of_kvm: Callable[[int], int] | None = None,
        began: int | None = None,
    ) -> None:
        one_of("clock", policy, POLICIES)
        if tsc_khz is not None:
            tsc_khz = integer("tsc_khz", tsc_khz, 1)
        if host_tsc_khz is not None:
            host_tsc_khz = integer("host_tsc_khz", host_tsc_khz, 1)
        if host_tsc is not None and tsc_khz is None and host_tsc_khz is None:
            raise ConfigError("a host TSC needs its frequency: give host_tsc_khz or tsc_khz")
        self.policy = policy
        #: How often the host's clock was seen to go backwards.
        self.steps_back = 0
        self._earlier = Subscribers()
        self._publish: Callable[[int | None], None] | None = None
        self._lock = allocate_lock()
        self._host_now = host_now
        self._last_host = host_now()
        # Of the host's time: what is added to it so that it never goes backwards.
        self._correction = 0
        # Guest time is the host's less `_base`; while it stands still, `_stopped_at`.
        self._base = self._last_host if began is None else min(began, self._last_host)
        self._stopped_at: int | None = None if policy == "realtime" else 0
        self._queues: dict[int, _Queue] = {}
        self._order = 0
        if tsc_khz is None:
            tsc_khz = DEFAULT_TSC_KHZ if host_tsc_khz is None else host_tsc_khz
        self._khz = tsc_khz
        if host_tsc is None:
            host_tsc, host_tsc_khz = self._host_time_in_ticks, tsc_khz
        self._tsc = Tsc(
            host_tsc,
            khz=tsc_khz,
            host_khz=tsc_khz if host_tsc_khz is None else host_tsc_khz,
            movable=tsc_movable,
            of_kvm=tsc_of_kvm,
        )
        #: By vCPU, the offset that KVM was given last, kept by what gives it.
        self.shown_tsc_offsets: dict[int, int] = {}
        #: Whether KVM alone moves the TSC, and is asked what it reads.
        self.tsc_by_kvm = tsc_of_kvm is not None
        if self._stopped_at is not None:
            self._tsc.stop()

    def _host_time(self) -> int:
        """The host's time, less its steps backwards.  Call it with the lock."""
        host = self._host_now()
        if host < self._last_host:
            self._step_back(host)
        self._last_host = host
        return host + self._correction

    def _step_back(self, host: int) -> None:
        self._correction += self._last_host - host
        self.steps_back += 1

    def _host_time_in_ticks(self) -> int:
        # As `_host_time` last saw it: the TSC and guest time come of one look at the host's clock.
        return (self._last_host + self._correction) * self._khz // 1_000_000

    def _now(self) -> int:
        """Guest time.  Call it with the lock."""
        # As `_host_time`, without a call: this is asked several times an interrupt.
        host = self._host_now()
        if host < self._last_host:
            self._step_back(host)
        self._last_host = host
        stopped_at = self._stopped_at
        return host + self._correction - self._base if stopped_at is None else stopped_at

    def publish(self, publish: Callable[[int | None], None] | None) -> None:
        """Tell what guest time is less than CLOCK_MONOTONIC by, now and at each change.

        ``publish(None)`` is for: it stands still, or goes by another clock.  It is called with the
        clock's lock.
        """
        with self._lock:
            self._publish = publish
            self._tell()

    def _tell(self) -> None:
        if self._publish is not None:
            known = self._stopped_at is None and self._host_now is time.monotonic_ns
            self._publish(self._base - self._correction if known else None)

    def now(self) -> int:
        """Guest time: nanoseconds since it began, less what the policy hides."""
        with self._lock:
            return self._now()

    @property
    def running(self) -> bool:
        """Whether guest time passes at the moment."""
        return self._stopped_at is None

    def start(self) -> None:
        """The machine enters a run: time passes again.  Starting twice is harmless."""
        with self._lock:
            host = self._host_time()
            if self._stopped_at is not None:
                self._base = host - self._stopped_at
                self._stopped_at = None
                self._tsc.start()
                self._tell()

    def stop(self) -> None:
        """The machine leaves a run: time stands still, but for ``realtime``.

        Stopping twice is harmless.
        """
        with self._lock:
            now = self._now()
            if self.policy != "realtime":
                self._stopped_at = now
                self._tsc.stop()
                self._tell()

    def warp_to(self, when: int) -> None:
        """Skip to guest time `when`; if that is past already, nothing happens.

        Raises StateError if the policy is not ``warp``.
        """
        if self.policy != "warp":
            raise StateError(
                f"this clock's policy is {self.policy!r}: it skips no time",
                hint=f"{option('clock', 'warp')} does",
            )
        integer("when", when)
        with self._lock:
            self._skip_to(when)

    def warp(self, queues: int) -> bool:
        """Skip to the earliest deadline of the first `queues` queues; False if there is none.

        It may be past already.  Call it under the policy ``warp`` only.
        """
        with self._lock:
            when = self._earliest(queues)
            if when != NEVER:
                self._skip_to(when)
        return when != NEVER

    def _skip_to(self, when: int) -> None:
        step = min(when, NEVER) - self._now()
        if step > 0:
            if self._stopped_at is None:
                self._base -= step
            else:
                self._stopped_at += step
            if self._tsc.movable:
                self._tsc.skip(step)
            self._tell()

    def host_deadline(self, when: int) -> int:
        """When guest time `when` comes, by the host's clock, if nothing stops or skips time."""
        with self._lock:
            now = self._now()
            return self._last_host + when - now

    def timer(self, callback: Callable[[int], None], queue: int = 0) -> Timer:
        """A timer of `queue`, not armed: ``callback(when)`` is told the time it was armed for."""
        check_callback("callback", callback)
        integer("queue", queue, 0)
        return Timer(self, callback, queue)

    def arm(self, timer: Timer, when: int) -> None:
        """See `Timer.arm`."""
        if type(when) is not int:
            when = integer("when", when)
        with self._lock:
            queue = self._queues.get(timer.queue)
            if queue is None:
                queue = self._queues[timer.queue] = _Queue()
            entries = queue.entries
            earliest = entries[0][0] if entries else NEVER
            if timer.when is not None:
                self._remove(timer)
            timer.when = when
            if when < NEVER:
                self._order += 1
                timer.order = self._order
                insort(entries, (when, self._order, timer))
        if when < earliest and not queue.looking:
            self._earlier(timer.queue)

    def on_earlier(self, callback: Callable[[int], object]) -> Callable[[], None]:
        """Call ``callback(queue)`` when the earliest deadline of a queue has become an earlier one.

        Not during `run_due` of that queue, after which its caller asks for the next deadline.
        It is called in the thread that armed, outside the clock's lock.  Returns what ends that.
        """
        return self._earlier.add(callback)

    def cancel(self, timer: Timer) -> None:
        """See `Timer.cancel`."""
        with self._lock:
            self._remove(timer)

    def _remove(self, timer: Timer) -> None:
        when, timer.when = timer.when, None
        if when is not None and when < NEVER:
            self._queues[timer.queue].entries.remove((when, timer.order, timer))

    def next_deadline(self, queue: int) -> int | None:
        """The earliest guest time that a timer of `queue` is armed for, or None."""
        with self._lock:
            known = self._queues.get(queue)
            return known.entries[0][0] if known and known.entries else None

    def earliest(self, queues: int) -> int | None:
        """The earliest guest time that a timer of the first `queues` queues is armed for, or None.

        >>> clock = Clock()
        >>> for queue in (0, 1, 2):
        ...     clock.timer(print, queue).arm(30 - queue)
        >>> clock.earliest(2)
        29
        """
        with self._lock:
            found = self._earliest(queues)
        return None if found == NEVER else found

    def _earliest(self, queues: int) -> int:
        found = NEVER
        for queue, known in self._queues.items():
            if known.entries and queue < queues and known.entries[0][0] < found:
                found = known.entries[0][0]
        return found

    def alarm(self, queue: int) -> int | None:
        """When, by the host's clock, the earliest timer of `queue` comes due, or None."""
        with self._lock:
            known = self._queues.get(queue)
            if known is None or not known.entries:
                return None
            when = known.entries[0][0]
            if self._stopped_at is None:
                return when + self._base - self._correction
            now = self._now()
            return self._last_host + when - now

    def run_due(self, queue: int) -> int:
        """Run what is due by now in `queue`, earliest first, and return how many that was.

        Those armed for the same time run in the order of arming.  What a callback arms for the
        past runs too.  After `BATCH` of them the rest waits for the next call.  What a callback
        raises passes; the others stay armed.
        """
        known = self._queues.get(queue)
        if known is None or not known.entries:
            return 0
        entries, done = known.entries, 0
        known.looking = True
        try:
            now = self.now()
            while done < BATCH and entries:
                with self._lock:
                    # Another thread may have cancelled it.
                    if not entries or entries[0][0] > now:
                        break
                    when, _, timer = entries.pop(0)
                    timer.when = None
                timer.callback(when)
                done += 1
        finally:
            known.looking = False
        return done

    def state(self) -> ClockState:
        """Guest time now, and what belongs to it.  Timers are saved by those that arm them."""
        with self._lock:
            now = self._now()
            tsc, adjust, skipped = self._tsc.state()
            return ClockState(now, tsc, adjust, skipped, self._order)

    def restore(self, state: ClockState, catch_up: int = 0) -> None:
        """Let guest time go on from there, or from `catch_up` ns later, whatever the policy.

        What passes for the guest in between is nothing, or `catch_up`.  The TSC does the same,
        where guests see an offset.  Timers stay as they are: they are restored after this.
        Raises ConfigError for a time that guest time never reaches.
        """
        integer("catch_up", catch_up, 0, NEVER)
        now = integer("guest time", state.now + catch_up, 0, NEVER - 1)
        with self._lock:
            host = self._host_time()
            if self._stopped_at is None:
                self._base = host - now
            else:
                self._stopped_at = now
            self._tsc.restore(state.tsc, state.adjust, state.skipped)
            self._tsc.skip(catch_up)
            self._order = state.order
            self._tell()

    def restore_timer(self, timer: Timer, state: TimerState | None) -> None:
        """See `Timer.restore`."""
        if state is not None:
            integer("the time a timer is armed for", state.when, -NEVER)
            integer("the order of a timer", state.order, 0, self._order)
        with self._lock:
            entries = self._queues.setdefault(timer.queue, _Queue()).entries
            # By itself, not by its time: an exception may have interrupted the arming.
            entries[:] = [entry for entry in entries if entry[2] is not timer]
            timer.when = None
            if state is not None:
                timer.when, timer.order = state.when, state.order
                if state.when < NEVER:
                    insort(entries, (state.when, state.order, timer), key=_place)

    @property
    def tsc_khz(self) -> int:
        """The guest's TSC frequency."""
        return self._khz

    @property
    def tsc_movable(self) -> bool:
        """Whether guests see an offset; else they read the host's TSC, under every policy."""
        return self._tsc.movable

    @property
    def tsc_offset(self) -> int:
        """Guest TSC less host TSC times the ratio, signed, for all vCPUs; while stopped, as of now.

        Setting it raises HostError where guests do not see an offset, unless it is set to 0.
        """
        with self._lock:
            self._host_time()
            return self._tsc.offset

    @tsc_offset.setter
    def tsc_offset(self, offset: int) -> None:
        integer("tsc_offset", offset)
        with self._lock:
            self._host_time()
            self._tsc.offset = offset

    def vcpu_tsc_offset(self, cpu: int) -> int:
        """What KVM_VCPU_TSC_OFFSET of vCPU `cpu` has to be, with what its guest wrote."""
        with self._lock:
            self._host_time()
            return self._tsc.offset_of(cpu)

    def tsc(self, now: int | None = None, *, cpu: int = 0) -> int:
        """What RDTSC gives on vCPU `cpu` at guest time `now`, else at once."""
        with self._lock:
            here = self._now()
            return self._tsc.read(cpu, 0 if now is None else now - here)

    def tsc_time(self, value: int, *, cpu: int = 0) -> int:
        """The guest time at which vCPU `cpu` reads `value` in its TSC, or has read it.

        What is less than it reads now is past: the counter does not wrap in practice.
        """
        with self._lock:
            return self._now() + self._tsc.until(cpu, value)

    def write_tsc(self, cpu: int, value: int) -> None:
        """The guest of vCPU `cpu` writes IA32_TSC: its IA32_TSC_ADJUST moves by as much."""
        unsigned("value", value, 64)
        with self._lock:
            self._host_time()
            self._tsc.write(cpu, value)

    def tsc_adjust(self, cpu: int) -> int:
        """IA32_TSC_ADJUST of vCPU `cpu`."""
        with self._lock:
            return self._tsc.adjust(cpu)

    def write_tsc_adjust(self, cpu: int, value: int) -> None:
        """The guest of vCPU `cpu` writes IA32_TSC_ADJUST: its TSC moves by as much."""
        unsigned("value", value, 64)
        with self._lock:
            self._tsc.write_adjust(cpu, value)

    def reset_tsc(self) -> None:
        """RESET, of all vCPUs: every TSC and IA32_TSC_ADJUST is 0, where guests see an offset."""
        with self._lock:
            self._host_time()
            self._tsc.reset()

    def __repr__(self) -> str:
        doing = "at" if self.running else "stopped at"
        return f"<Clock {self.policy}, {doing} {self.now() / 1e9:.6f} s>"
