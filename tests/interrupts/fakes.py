"""Stand-ins for what surrounds an interrupt controller: a clock, a processor, a line, a board."""

from __future__ import annotations

from collections.abc import Callable

from pykvm.clock import TimerState
from pykvm.interrupts import ApicBus, LocalApic


class FakeTimer:
    """A deadline of a FakeClock; `armed` is how often it was armed."""

    def __init__(self, clock: FakeClock, callback: Callable[[int], None], queue: int) -> None:
        self.callback = callback
        self.queue = queue
        self.when: int | None = None
        self.armed = 0
        clock.timers.append(self)

    def arm(self, when: int) -> None:
        self.when = when
        self.armed += 1

    def cancel(self) -> None:
        self.when = None

    def state(self) -> TimerState | None:
        return None if self.when is None else TimerState(self.when, 0)

    def restore(self, state: TimerState | None) -> None:
        self.when = None if state is None else state.when


class FakeClock:
    """Guest time that moves when told to, and a TSC of `tsc_khz` that starts at `tsc_offset`."""

    tsc_by_kvm = False

    def __init__(self, *, tsc_khz: int = 2_000_000, tsc_offset: int = 0) -> None:
        self.time = 0
        self.tsc_khz = tsc_khz
        self.tsc_offset = tsc_offset
        self.timers: list[FakeTimer] = []

    def now(self) -> int:
        return self.time

    def tsc(self, now: int | None = None, *, cpu: int = 0) -> int:
        return self.tsc_offset + (self.time if now is None else now) * self.tsc_khz // 1_000_000

    def tsc_time(self, value: int, *, cpu: int = 0) -> int:
        return -(-(value - self.tsc_offset) * 1_000_000 // self.tsc_khz)

    def timer(self, callback: Callable[[int], None], queue: int = 0) -> FakeTimer:
        return FakeTimer(self, callback, queue)

    @property
    def deadline(self) -> int | None:
        """The earliest time that anything is armed for."""
        return min((t.when for t in self.timers if t.when is not None), default=None)

    def advance(self, nanoseconds: int, *, limit: int = 10_000) -> int:
        """Let time pass, each deadline on time; how many there were."""
        end = self.time + nanoseconds
        for done in range(limit):
            when = self.deadline
            if when is None or when > end:
                self.time = end
                return done
            self.time = max(self.time, when)
            self._run()
        raise AssertionError(f"more than {limit} deadlines")

    def stall(self, nanoseconds: int) -> None:
        """Let time pass unobserved, then run what has come due."""
        self.time += nanoseconds
        self._run()

    def _run(self) -> None:
        for timer in self.timers:
            if timer.when is not None and timer.when <= self.time:
                when, timer.when = timer.when, None
                timer.callback(when)


class FakePort:
    """A processor that writes down what it is asked for: ``["nmi", ("sipi", 8)]``."""

    def __init__(self) -> None:
        self.requests: list[object] = []
        self.wakes = 0

    def request_nmi(self) -> None:
        self.requests.append("nmi")

    def request_init(self) -> None:
        self.requests.append("init")

    def request_sipi(self, vector: int) -> None:
        self.requests.append(("sipi", vector))

    def wake(self) -> None:
        self.wakes += 1


class Board:
    """Some local APICs on one bus with one clock, and their processors."""

    def __init__(
        self,
        ids: tuple[int, ...] = (0,),
        *,
        timer_hz: int = 1_000_000_000,
        x2apic: bool = True,
        tsc_deadline: bool = True,
        directed_eoi: bool = False,
        cmci: bool = False,
        clock: FakeClock | None = None,
    ) -> None:
        self.clock = clock or FakeClock()
        self.ports = [FakePort() for _ in ids]
        self.bus = ApicBus()
        for cpu, (id, port) in enumerate(zip(ids, self.ports, strict=True)):
            lapic = LocalApic(
                id,
                self.clock,
                port,
                self.bus.send,
                bsp=cpu == 0,
                cpu=cpu,
                timer_hz=timer_hz,
                x2apic=x2apic,
                tsc_deadline=tsc_deadline,
                directed_eoi=directed_eoi,
                cmci=cmci,
            )
            self.bus.add(lapic)
        self.lapics = self.bus.lapics
        self.lapic = self.lapics[0]
        self.port = self.ports[0]
