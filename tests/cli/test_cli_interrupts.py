"""Signals that end a run, at whatever moment they come."""

from __future__ import annotations

import gc
import select
import signal
from collections.abc import Callable

import pytest

from pykvm.cli.interrupts import Interrupts
from pykvm.result import Ending, Outcome, Result
from support.resources import descriptors

RESULT = Result(
    Ending(Outcome.STOPPED, ""), exits={}, seconds=0.0, guest_seconds=0.0, outside_seconds=0.0
)


class Runner:
    """A machine that can be stopped once it runs."""

    def __init__(self, *, stoppable: bool = True) -> None:
        self.stoppable = stoppable
        self.stops = 0

    def stop(self) -> bool:
        self.stops += 1
        return self.stoppable


def send(number: signal.Signals = signal.SIGINT) -> None:
    signal.raise_signal(number)


def sending(times: int) -> Callable[[], Result]:
    def run() -> Result:
        for _ in range(times):
            send()
        return RESULT

    return run


def test_during_the_set_up_it_is_raised() -> None:
    with Interrupts(Runner().stop) as interrupts:
        with pytest.raises(KeyboardInterrupt):
            send()
        assert interrupts.received == signal.SIGINT


def test_before_the_run_it_waits_for_the_run() -> None:
    runner = Runner()
    with Interrupts(runner.stop) as interrupts:
        interrupts.hold()
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            interrupts.run(lambda: pytest.fail("it must not run"))
        assert (interrupts.received, runner.stops) == (signal.SIGTERM, 0)


def test_during_the_run_it_stops_the_run() -> None:
    runner = Runner()
    with Interrupts(runner.stop) as interrupts:
        interrupts.hold()
        assert interrupts.run(sending(1)) is RESULT
        assert runner.stops == 1


def test_the_second_signal_is_raised() -> None:
    with Interrupts(Runner().stop) as interrupts:
        interrupts.hold()
        with pytest.raises(KeyboardInterrupt):
            interrupts.run(sending(2))


def test_a_run_that_cannot_be_stopped_yet() -> None:
    with Interrupts(Runner(stoppable=False).stop) as interrupts:
        interrupts.hold()
        with pytest.raises(KeyboardInterrupt):
            interrupts.run(sending(1))


def test_after_the_run_it_is_only_remembered() -> None:
    runner = Runner()
    with Interrupts(runner.stop) as interrupts:
        interrupts.hold()
        interrupts.run(lambda: RESULT)
        send()
        send()
        assert (interrupts.received, runner.stops) == (signal.SIGINT, 0)


def test_a_wait_for_something_else_ends_by_it_too() -> None:
    with Interrupts(Runner().stop) as interrupts:
        interrupts.hold()
        assert select.select([interrupts.fd], [], [], 0)[0] == []
        send()
        assert select.select([interrupts.fd], [], [], 0)[0] == [interrupts.fd]


def test_handlers_and_descriptors_are_restored() -> None:
    gc.collect()  # what others forgot to close is not to go meanwhile
    before = [signal.getsignal(number) for number in range(1, 32)]
    opened = descriptors()
    with Interrupts(Runner().stop):
        pass
    assert [signal.getsignal(number) for number in range(1, 32)] == before
    assert descriptors() == opened


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts(Runner().stop) as interrupts:
            send(signal.SIGHUP)
            assert interrupts.received is None
    finally:
        signal.signal(signal.SIGHUP, before)
