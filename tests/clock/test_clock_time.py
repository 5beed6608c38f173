"""How host time becomes guest time: policies, stops, warps, a host clock that misbehaves."""

from __future__ import annotations

import threading
import time

import pytest
from clock.fake_host import Host
from hypothesis import given
from hypothesis import strategies as st

from pykvm.clock import NEVER, POLICIES, Clock, ticks_at, time_of
from pykvm.clock.tsc import signed
from pykvm.errors import ConfigError, StateError

SECOND = 1_000_000_000


def test_realtime_hides_nothing() -> None:
    host = Host()
    clock = host.clock("realtime")
    assert clock.now() == 0
    host.now += 3
    assert clock.now() == 3, "from creation on"
    clock.start()
    host.now += SECOND
    clock.stop()
    host.now += 10 * SECOND
    assert clock.now() == 11 * SECOND + 3
    assert clock.running


@pytest.mark.parametrize("policy", ["paused", "warp"])
def test_what_passes_outside_a_run_is_hidden(policy: str) -> None:
    host = Host()
    clock = host.clock(policy)
    host.now += 7 * SECOND
    assert (clock.now(), clock.running) == (0, False)
    clock.start()
    assert (clock.now(), clock.running) == (0, True)
    host.now += 5
    clock.stop()
    host.now += 10 * SECOND
    assert clock.now() == 5
    clock.start()
    host.now += 1
    assert clock.now() == 6


@pytest.mark.parametrize("policy", POLICIES)
def test_starting_and_stopping_twice_is_harmless(policy: str) -> None:
    host = Host()
    clock = host.clock(policy)
    clock.start()
    host.now += 10
    clock.start()
    host.now += 10
    clock.stop()
    once = clock.now()
    clock.stop()
    assert clock.now() == once == 20


def test_warp_jumps_exactly() -> None:
    host = Host()
    clock = host.clock("warp")
    clock.start()
    host.now += 100
    clock.warp_to(3_600 * SECOND)
    assert clock.now() == 3_600 * SECOND
    host.now += 1
    assert clock.now() == 3_600 * SECOND + 1
    clock.warp_to(5)
    clock.warp_to(3_600 * SECOND + 1)
    assert clock.now() == 3_600 * SECOND + 1, "never backwards"
    clock.warp_to(3_600 * SECOND + 2)
    assert clock.now() == 3_600 * SECOND + 2


def test_warp_while_stopped() -> None:
    host = Host()
    clock = host.clock("warp")
    clock.warp_to(50)
    host.now += 9
    assert clock.now() == 50
    clock.start()
    host.now += 9
    assert clock.now() == 59


def test_warp_ends_where_guest_time_does() -> None:
    clock = Host().clock("warp")
    clock.warp_to(1 << 64)
    assert clock.now() == NEVER


@pytest.mark.parametrize("policy", ["realtime", "paused"])
def test_other_policies_do_not_warp(policy: str) -> None:
    with pytest.raises(StateError, match=f"policy is '{policy}'"):
        Host().clock(policy).warp_to(1)


def test_no_such_policy() -> None:
    with pytest.raises(ConfigError, match="one of realtime, paused, warp, not 'fast'"):
        Clock("fast")


def test_a_host_clock_that_is_set_back() -> None:
    """Guest time goes on at once from where it was, and does not wait for the host to catch up."""
    host = Host()
    clock = host.clock("realtime")
    host.now += 1_000
    assert clock.now() == clock.now() == 1_000
    assert clock.steps_back == 0, "standing still is no step back"
    host.now -= 4 * SECOND
    assert (clock.now(), clock.steps_back) == (1_000, 1)
    host.now += 1
    assert (clock.now(), clock.steps_back) == (1_001, 1)


def test_a_host_clock_that_is_set_back_while_the_machine_is_stopped() -> None:
    host = Host()
    clock = host.clock("paused")
    clock.start()
    host.now += 10
    clock.stop()
    host.now -= SECOND
    clock.start()
    assert clock.now() == 10
    host.now += 5
    assert clock.now() == 15


def test_a_stall_is_time_like_any_other() -> None:
    """Catching up: guest time is the host's at once, and what came due runs in its order."""
    host = Host()
    clock = host.clock("paused")
    clock.start()
    ran: list[int] = []
    for when in (3 * SECOND, SECOND, 2 * SECOND, 7_200 * SECOND):
        clock.timer(ran.append).arm(when)
    host.now += 3_600 * SECOND
    assert clock.now() == 3_600 * SECOND
    assert clock.run_due(0) == 3
    assert ran == [SECOND, 2 * SECOND, 3 * SECOND]
    assert clock.next_deadline(0) == 7_200 * SECOND


@pytest.mark.parametrize("policy", POLICIES)
def test_host_deadline(policy: str) -> None:
    host = Host()
    clock = host.clock(policy)
    clock.start()
    host.now += 30
    assert clock.host_deadline(100) == host.now + 70
    assert clock.host_deadline(10) == host.now - 20
    host.now -= 1_000
    assert clock.host_deadline(100) == host.now + 70, "by the host's clock as it now is"


def test_host_deadline_after_a_warp_and_while_stopped() -> None:
    host = Host()
    clock = host.clock("warp")
    clock.warp_to(SECOND)
    assert clock.host_deadline(SECOND + 5) == host.now + 5, "as if it ran from now on"
    clock.start()
    host.now += 2
    assert clock.host_deadline(SECOND + 5) == host.now + 3


def test_the_hosts_own_clock() -> None:
    clock = Clock()
    before, first = time.monotonic_ns(), clock.now()
    second, after = clock.now(), time.monotonic_ns()
    assert 0 <= second - first <= after - before


def test_threads_never_see_time_go_back() -> None:
    clock = Clock("warp")
    wrong: list[tuple[int, int]] = []

    def look() -> None:
        last = 0
        for _ in range(2_000):
            now = clock.now()
            if now < last:
                wrong.append((last, now))
            last = now

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for step in range(2_000):
        (clock.start, clock.stop)[step % 2]()
        clock.warp_to(clock.now() + 1_000)
    for thread in threads:
        thread.join()
    assert wrong == []


def test_str() -> None:
    host = Host()
    clock = host.clock("warp")
    assert repr(clock) == "<Clock warp, stopped at 0.000000 s>"
    clock.start()
    host.now += 12_000
    assert repr(clock) == "<Clock warp, at 0.000012 s>"
    timer = clock.timer(print, 2)
    assert repr(timer) == "<Timer of queue 2, idle>"
    timer.arm(99)
    assert repr(timer) == "<Timer of queue 2, 99>"


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("host"), st.integers(0, 10**12)),
        st.tuples(st.just("back"), st.integers(1, 10**12)),
        st.tuples(st.just("start"), st.just(0)),
        st.tuples(st.just("stop"), st.just(0)),
        st.tuples(st.just("warp"), st.integers(-(10**6), 1 << 65)),
    ),
    max_size=30,
)


@given(policy=st.sampled_from(POLICIES), steps=STEPS)
def test_every_sequence_of_starts_stops_and_warps(
    policy: str, steps: list[tuple[str, int]]
) -> None:
    """Against the sum of what each step shows to the guest; the TSC goes along with it."""
    host = Host()
    clock = host.clock(policy)
    shown, running = 0, policy == "realtime"
    for step, amount in steps:
        before = clock.now()
        if step == "host":
            host.now += amount
            shown += amount * running
        elif step == "back":
            host.now -= amount
            host.tsc_at_zero += amount * host.khz // 1_000_000 + 1  # the TSC goes on
        elif step == "start":
            clock.start()
            running = True
        elif step == "stop":
            clock.stop()
            running = policy == "realtime"
        elif policy == "warp":
            clock.warp_to(amount)
            shown = max(shown, min(amount, NEVER))
        assert clock.now() == shown >= before
        assert clock.running == running
        # Each stop may cost it a fraction of a tick.
        exact = shown * host.khz // 1_000_000
        assert abs(signed(clock.tsc() - exact)) <= 2 * len(steps) + 1


HZ = st.sampled_from((1_193_182, 3_579_545, 32_768, 10_000_000, 24_000_000, 1_000_000_000, 1))


@given(tick=st.integers(0, 1 << 70), hz=HZ)
def test_a_tick_comes_at_its_time_and_not_before(tick: int, hz: int) -> None:
    when = time_of(tick, hz)
    assert ticks_at(when, hz) == tick
    assert tick == 0 or ticks_at(when - 1, hz) == tick - 1


@pytest.mark.parametrize(("policy", "now"), [("realtime", 7 * SECOND), ("paused", 0), ("warp", 0)])
def test_it_may_have_begun_before_it_is_made(policy: str, now: int) -> None:
    host = Host()
    began = host.now
    host.now += 7 * SECOND
    clock = Clock(policy, host_now=host.read, began=began)
    assert clock.now() == now
    clock.start()
    host.now += SECOND
    assert clock.now() == now + SECOND


def test_it_has_not_begun_in_the_future() -> None:
    host = Host()
    assert Clock(host_now=host.read, began=host.now + SECOND).now() == 0
