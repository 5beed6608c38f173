"""Guest time and timers are saved, and go on elsewhere."""

from __future__ import annotations

import json
import time

import pytest
from clock.fake_host import Host
from hypothesis import given
from hypothesis import strategies as st

from pykvm.clock import NEVER, POLICIES, Clock, ClockState, TimerState
from pykvm.errors import ConfigError
from pykvm.values.state import decode, encode


def through_json(state: ClockState) -> ClockState:
    return decode(json.loads(json.dumps(encode(state))), ClockState)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("host"), st.integers(0, 5_000_000_000)),
        st.just(("start", 0)),
        st.just(("stop", 0)),
        st.tuples(st.just("warp"), st.integers(0, 10_000_000_000)),
        st.tuples(st.just("write_tsc"), st.sampled_from([0, 1, 1 << 63, (1 << 64) - 1])),
        st.tuples(st.just("adjust"), st.sampled_from([0, 1, (1 << 64) - 1])),
        st.tuples(st.just("offset"), st.integers(-(1 << 63), (1 << 63) - 1)),
        st.just(("reset", 0)),
    ),
    max_size=12,
)


class Timed:
    """A clock, and what can be done to it."""

    def __init__(self, policy: str, now: int) -> None:
        self.host = Host(now)
        self.clock = self.host.clock(policy)
        self.clock.start()

    def step(self, kind: str, value: int) -> object:
        clock = self.clock
        if kind == "host":
            self.host.now += value
        elif kind == "start":
            clock.start()
        elif kind == "stop":
            clock.stop()
        elif kind == "warp" and clock.policy == "warp":
            clock.warp_to(value)
        elif kind == "write_tsc":
            clock.write_tsc(1, value)
        elif kind == "adjust":
            clock.write_tsc_adjust(0, value)
        elif kind == "offset":
            clock.tsc_offset = value
        elif kind == "reset":
            clock.reset_tsc()
        return clock.now(), clock.tsc(), clock.tsc(cpu=1), clock.tsc_adjust(0), clock.tsc_adjust(1)


@given(st.sampled_from(POLICIES), STEPS, STEPS)
def test_guest_time_and_tsc_go_on_where_they_were(
    policy: str, first: list[tuple[str, int]], rest: list[tuple[str, int]]
) -> None:
    # An offset is by the host's TSC, which is another one elsewhere, and so is a RESET's.
    rest = [step for step in rest if step[0] != "offset"]
    one, other = Timed(policy, 5_000_000_000), Timed(policy, 123_000_000_000)
    for step in first:
        one.step(*step)
    saved = one.clock.state()
    if not one.clock.running:
        other.clock.stop()
    # To the fraction of a tick, which no host has in common with another.
    other.host.now += one.host.now % 1_000_000
    other.clock.restore(through_json(saved))
    assert other.clock.state() == saved
    told = [one.step(*step) for step in rest]
    assert [other.step(*step) for step in rest] == told

    # It has run on since.
    one.clock.restore(saved)
    one.clock.restore(saved)
    assert one.clock.state() == saved


@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_what_comes_after_can_catch_up(passed: int, missed: int) -> None:
    host, later = Host(), Host(9_000_000_000)
    clock, restored = host.clock(), later.clock()
    host.now += passed
    restored.restore(clock.state(), catch_up=missed)
    host.now += missed
    assert restored.now() == clock.now()
    # Fractions of a tick are those of a skip.
    assert abs(restored.tsc() - clock.tsc()) <= 1


def test_a_tsc_that_is_the_host_s_is_left_alone() -> None:
    host = Host()
    clock = host.clock(movable=False)
    saved = clock.state()
    assert saved.tsc is None
    host.now += 1_000_000
    tsc = clock.tsc()
    clock.restore(saved)
    assert clock.tsc() == tsc
    assert clock.now() == saved.now


def test_c_is_told_the_time_that_is_restored() -> None:
    clock = Clock()
    told: list[int | None] = []
    clock.publish(told.append)
    saved = clock.state()
    clock.restore(saved, catch_up=10**15)
    assert told[-1] is not None
    assert 0 <= time.monotonic_ns() - told[-1] - saved.now - 10**15 < 10**11


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0, 10, 10, 20, NEVER])), max_size=20),
    st.integers(0, 20),
)
def test_timers_come_in_the_order_in_which_they_were_armed(
    armings: list[tuple[int, int]], cut: int
) -> None:
    def make(now: int) -> tuple[Host, Clock, list[list[int]]]:
        host = Host(now)
        return host, host.clock(), []

    def timers(clock: Clock, ran: list[list[int]]) -> list[object]:
        return [
            clock.timer(lambda when, number=number: ran.append([number, when]))  # type: ignore[misc]
            for number in range(4)
        ]

    host, clock, ran = make(5)
    own = timers(clock, ran)
    for number, when in armings[:cut]:
        own[number].arm(when)  # type: ignore[attr-defined]
    called: list[int] = []
    saved = clock.state(), [timer.state() for timer in own]  # type: ignore[attr-defined]

    other_host, other_clock, other_ran = make(77)
    others = timers(other_clock, other_ran)
    other_clock.on_earlier(called.append)
    others[0].arm(3)  # type: ignore[attr-defined]
    called.clear()
    for _ in range(2):
        other_clock.restore(saved[0])
        for timer, state in reversed(list(zip(others, saved[1], strict=True))):
            timer.restore(state)
    assert called == []
    assert [timer.state() for timer in others] == saved[1]  # type: ignore[attr-defined]

    for timer_list in (own, others):
        for number, when in armings[cut:]:
            timer_list[number].arm(when)  # type: ignore[attr-defined]
    host.now += 100
    other_host.now += 100
    clock.run_due(0)
    other_clock.run_due(0)
    assert other_ran == ran


@pytest.mark.parametrize(
    "change",
    [{"now": NEVER}, {"skipped": 1_000_000}, {"adjust": ((0, 1 << 64),)}],
)
def test_a_time_that_never_was_is_refused(change: dict[str, object]) -> None:
    clock = Clock()
    with pytest.raises(ConfigError):
        clock.restore(clock.state().__replace__(**change))


@pytest.mark.parametrize(
    "state", [TimerState(0, 2), TimerState(-NEVER - 1, 0), TimerState(-(1 << 127), 1)]
)
def test_an_arming_that_never_was_is_refused(state: TimerState) -> None:
    clock = Clock()
    timer = clock.timer(lambda when: None)
    timer.arm(NEVER - 1)
    with pytest.raises(ConfigError):
        timer.restore(state)


def test_two_timers_of_one_order() -> None:
    clock = Clock()
    one, other = clock.timer(lambda when: None), clock.timer(lambda when: None)
    one.arm(NEVER - 1)
    state = one.state()
    other.restore(state)
    one.restore(state)
    one.cancel()
    assert clock.next_deadline(0) == NEVER - 1
    other.cancel()
    assert clock.next_deadline(0) is None
