"""Timers and their queues."""

from __future__ import annotations

import threading

import pytest
from clock.fake_host import Host
from hypothesis import given
from hypothesis import strategies as st

from pykvm.clock import BATCH, NEVER, Clock, Timer


def test_a_timer_is_told_the_time_it_was_armed_for() -> None:
    host = Host()
    clock = host.clock()
    ran: list[int] = []
    timer = clock.timer(ran.append)
    timer.arm(100)
    assert timer.when == clock.next_deadline(0) == 100
    host.now += 99
    assert clock.run_due(0) == 0
    host.now += 50
    assert clock.run_due(0) == 1
    assert ran == [100]
    assert clock.next_deadline(0) is None
    assert clock.run_due(0) == 0
    timer.cancel()
    assert repr(timer) == "<Timer of queue 0, idle>"


def test_arming_again_replaces() -> None:
    host = Host()
    clock = host.clock()
    ran: list[int] = []
    timer = clock.timer(ran.append)
    for when in (50, 10, 30, 30):
        timer.arm(when)
    assert clock.next_deadline(0) == 30
    host.now += 60
    assert clock.run_due(0) == 1
    assert ran == [30]


def test_cancel() -> None:
    host = Host()
    clock = host.clock()
    ran: list[int] = []
    timer, other = clock.timer(ran.append), clock.timer(ran.append)
    timer.cancel()
    timer.arm(5)
    other.arm(5)
    timer.cancel()
    timer.cancel()
    assert timer.when is None
    host.now += 5
    assert clock.run_due(0) == 1


@pytest.mark.parametrize("when", [0, -1, -(1 << 70)])
def test_the_past_is_due_at_once(when: int) -> None:
    clock = Host().clock()
    ran: list[int] = []
    clock.timer(ran.append).arm(when)
    assert clock.run_due(0) == 1
    assert ran == [when]


def test_ties_run_in_the_order_of_arming() -> None:
    host = Host()
    clock = host.clock()
    ran: list[str] = []
    timers = {name: clock.timer(lambda _, name=name: ran.append(name)) for name in "abcd"}  # type: ignore[misc]
    for name in "dbac":
        timers[name].arm(7)
    timers["b"].arm(7)
    host.now += 7
    assert clock.run_due(0) == 4
    assert ran == ["d", "a", "c", "b"]


def test_queues_are_apart() -> None:
    host = Host()
    clock = host.clock()
    ran: list[tuple[int, int]] = []
    for queue in (0, 1, 7):
        clock.timer(lambda when, queue=queue: ran.append((queue, when)), queue).arm(queue)  # type: ignore[misc]
    host.now += 10
    assert [clock.next_deadline(queue) for queue in (0, 1, 2, 7)] == [0, 1, None, 7]
    assert clock.run_due(1) == 1
    assert clock.run_due(2) == 0
    assert ran == [(1, 1)]
    assert clock.next_deadline(0) == 0


def test_a_callback_arms_and_cancels() -> None:
    host = Host()
    clock = host.clock()
    ran: list[str] = []

    def first(when: int) -> None:
        ran.append("first")
        victim.cancel()
        past.arm(when - 1)
        future.arm(when + 100)

    victim = clock.timer(lambda _: ran.append("victim"))
    past = clock.timer(lambda _: ran.append("past"))
    future = clock.timer(lambda _: ran.append("future"))
    clock.timer(first).arm(10)
    victim.arm(11)
    host.now += 20
    assert clock.run_due(0) == 2
    assert ran == ["first", "past"]
    assert clock.next_deadline(0) == 110


def test_a_timer_that_is_always_due_does_not_keep_the_loop() -> None:
    clock = Host().clock()
    timer: Timer = clock.timer(lambda when: timer.arm(when))
    timer.arm(0)
    assert clock.run_due(0) == BATCH
    assert clock.next_deadline(0) == 0, "and goes on at the next call"
    assert clock.run_due(0) == BATCH


def test_an_exception_passes_and_the_others_stay_armed() -> None:
    clock = Host().clock()
    ran: list[int] = []

    def fail(when: int) -> None:
        raise RuntimeError("from a callback")

    clock.timer(fail).arm(-2)
    clock.timer(ran.append).arm(-1)
    with pytest.raises(RuntimeError):
        clock.run_due(0)
    assert clock.run_due(0) == 1
    assert ran == [-1]


@pytest.mark.parametrize("when", [NEVER, (1 << 64) - 1, 1 << 100])
def test_what_lies_beyond_the_end_of_time_never_comes(when: int) -> None:
    clock = Host().clock("warp")
    calls: list[int] = []
    clock.on_earlier(calls.append)
    timer = clock.timer(calls.append)
    timer.arm(when)
    assert (timer.when, clock.next_deadline(0), calls) == (when, None, [])
    clock.warp_to(when)
    assert clock.run_due(0) == 0
    timer.arm(3)
    assert (clock.next_deadline(0), calls) == (3, [0])
    timer.arm(when)
    timer.cancel()
    assert (timer.when, clock.next_deadline(0)) == (None, None)


def test_on_earlier_reports_earlier_deadlines_only() -> None:
    clock = Host().clock()
    calls: list[int] = []
    clock.on_earlier(calls.append)
    a, b = clock.timer(print, 3), clock.timer(print, 3)
    told = []
    for timer, when in ((a, 100), (b, 100), (b, 99), (b, 120), (b, 110), (a, 200), (b, 109)):
        timer.arm(when)
        told.append(bool(calls))
        calls.clear()
    #       first  tie    99    later  behind a  a leaves  110 to 109
    assert told == [True, False, True, False, False, False, True]
    a.cancel()
    assert calls == []
    clock.timer(print, 4).arm(500)
    assert calls == [4]


def test_on_earlier_hears_nothing_of_a_queue_that_is_looked_at() -> None:
    """`run_due` is followed by a look at the next deadline."""
    clock = Host().clock()
    calls: list[int] = []
    clock.on_earlier(calls.append)
    other = clock.timer(print, 1)

    def again(when: int) -> None:
        timer.arm(when + 100)
        other.arm(when + 100)

    timer = clock.timer(again)
    timer.arm(0)
    calls.clear()
    assert clock.run_due(0) == 1
    assert (clock.next_deadline(0), calls) == (100, [1])
    timer.arm(50)
    assert calls == [1, 0], "afterwards it does again"


def test_on_earlier_hears_again_after_a_callback_that_raised() -> None:
    clock = Host().clock()
    calls: list[int] = []
    clock.on_earlier(calls.append)

    def fail(when: int) -> None:
        raise RuntimeError("from a callback")

    clock.timer(fail).arm(0)
    with pytest.raises(RuntimeError):
        clock.run_due(0)
    calls.clear()
    clock.timer(print).arm(100)
    assert calls == [0]


def test_the_earliest_of_some_queues() -> None:
    clock = Host().clock("warp")
    assert clock.earliest(3) is None
    assert not clock.warp(3)
    for queue, when in ((2, 5), (0, 30), (1, 20)):
        clock.timer(print, queue).arm(when)
    assert [clock.earliest(queues) for queues in (0, 1, 2, 3)] == [None, 30, 20, 5]
    assert clock.warp(2)
    assert clock.now() == 20
    assert clock.warp(3), "it is past"
    assert clock.now() == 20
    assert not clock.warp(0)


def test_the_alarm_is_where_the_deadline_is_for_the_host() -> None:
    host = Host()
    clock = host.clock("warp")
    assert clock.alarm(0) is None
    clock.timer(print).arm(1_000)
    host.now += 7
    assert clock.alarm(0) == host.now + 1_000, "time stands still"
    clock.start()
    began = host.now
    host.now += 40
    assert clock.alarm(0) == began + 1_000
    assert clock.now() == 40
    host.now -= 30  # the host's clock goes backwards
    assert clock.now() == 40
    assert clock.alarm(0) == host.now + 960
    clock.warp_to(900)
    assert clock.alarm(0) == host.now + 100


def test_on_earlier_may_use_the_clock() -> None:
    clock = Host().clock()
    seen: list[tuple[int, int | None, int]] = []
    clock.on_earlier(lambda queue: seen.append((queue, clock.next_deadline(queue), clock.now())))
    clock.timer(print, 1).arm(40)
    assert seen == [(1, 40, 0)]


def test_arming_over_and_over_keeps_nothing() -> None:
    clock = Host().clock()
    timer = clock.timer(print)
    for when in range(10_000):
        timer.arm(when)
    assert len(clock._queues[0].entries) == 1


def test_arming_from_other_threads_loses_nothing() -> None:
    clock = Clock()
    ran: list[int] = []

    def arm() -> None:
        for _ in range(200):
            clock.timer(ran.append).arm(0)

    threads = [threading.Thread(target=arm) for _ in range(4)]
    for thread in threads:
        thread.start()
    done = 0
    while any(thread.is_alive() for thread in threads):
        done += clock.run_due(0)
    while count := clock.run_due(0):
        done += count
    assert done == len(ran) == 800


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("arm"), st.integers(0, 4), st.integers(-5, 60)),
        st.tuples(st.just("cancel"), st.integers(0, 4), st.just(0)),
        st.tuples(st.just("pass"), st.just(0), st.integers(0, 20)),
    ),
    max_size=40,
)


@given(OPERATIONS)
def test_callbacks_come_due_in_order_and_once(operations: list[tuple[str, int, int]]) -> None:
    """Against a table of who is armed for when."""
    host = Host()
    clock = host.clock()
    ran: list[tuple[int, int]] = []
    timers = [
        clock.timer(lambda when, number=number: ran.append((when, number)))  # type: ignore[misc]
        for number in range(5)
    ]
    armed: dict[int, int] = {}
    for operation, number, amount in operations:
        if operation == "arm":
            timers[number].arm(amount)
            armed.pop(number, None)
            armed[number] = amount
        elif operation == "cancel":
            timers[number].cancel()
            armed.pop(number, None)
        else:
            host.now += amount
            now = clock.now()
            due = sorted(
                ((when, number) for number, when in armed.items() if when <= now),
                key=lambda pair: pair[0],
            )
            ran.clear()
            assert clock.run_due(0) == len(due)
            assert ran == due
            for _, number in due:
                del armed[number]
        assert clock.next_deadline(0) == min(armed.values(), default=None)
        assert [timer.when for timer in timers] == [armed.get(n) for n in range(5)]
