"""Attention and alarms: what takes a vCPU out of the guest for timers and interrupts."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from pykvm.result import Ending, Outcome
from support.guest import MakeGuest

pytestmark = pytest.mark.kvm

SPIN = """
    FA           cli
    EB FE        jmp $
"""


class Watcher:
    """A Board that ends the run after so many calls for attention."""

    check = None

    def __init__(self, calls: int, then: Any = lambda cpu: None) -> None:
        self.calls: list[int] = []
        self.wanted = calls
        self.then = then

    def take_attention(self, cpu: Any) -> Ending | None:
        self.calls.append(time.monotonic_ns())
        self.then(cpu)
        return Ending(Outcome.UNTIL, "seen") if len(self.calls) == self.wanted else None

    def take_exit(self, cpu: Any) -> Ending | None:
        return None

    def take_tick(self, cpu: Any) -> Ending | None:
        return None

    def take_kick(self, cpu: Any) -> Ending | None:
        return None

    def take_deadline(self, cpu: Any) -> Ending:
        return Ending(Outcome.TIMEOUT, "too late")


def run(machine: Any, board: Watcher, timeout: float = 20) -> Ending:
    cpu = machine.vcpus[0]
    ending: Ending = cpu.engine.hold(lambda: cpu.loop.run(board), int(timeout * 1e9))
    return ending


def test_attention_before_a_run_is_not_lost(guest: MakeGuest) -> None:
    machine = guest(SPIN)
    machine.vcpus[0].engine.attend()
    assert run(machine, Watcher(1)).outcome is Outcome.UNTIL


def test_attention_from_other_threads(guest: MakeGuest) -> None:
    """A thousand calls, each after the one before was seen: none is lost."""
    machine = guest(SPIN)
    seen = threading.Semaphore(0)
    board = Watcher(1000, lambda cpu: seen.release())

    def attend() -> None:
        for _ in range(1000):
            machine.vcpus[0].engine.attend()
            assert seen.acquire(timeout=20)

    thread = threading.Thread(target=attend)
    thread.start()
    assert run(machine, board).outcome is Outcome.UNTIL
    thread.join()


def test_attention_by_the_vcpus_own_thread(guest: MakeGuest) -> None:
    machine = guest(SPIN)
    board = Watcher(100, then=lambda cpu: cpu.engine.attend())
    machine.vcpus[0].engine.attend()
    assert run(machine, board).outcome is Outcome.UNTIL


def test_an_alarm_takes_the_guest_out_and_is_gone(guest: MakeGuest) -> None:
    machine = guest(SPIN)
    when = time.monotonic_ns() + 20_000_000
    first = Watcher(1)
    machine.vcpus[0].engine.attend()
    first.then = lambda cpu: cpu.engine.set_alarm(when)
    first.wanted = 2

    assert run(machine, first).outcome is Outcome.UNTIL
    assert first.calls[1] >= when
    assert run(machine, Watcher(1), timeout=0.1).outcome is Outcome.TIMEOUT


def test_alarms_one_after_the_other(guest: MakeGuest) -> None:
    """Fifty of them, a millisecond apart: each comes, and none before its time."""
    times: list[int] = []

    def next_one(cpu: Any) -> None:
        times.append(time.monotonic_ns() + 1_000_000)
        cpu.engine.set_alarm(times[-1])

    machine = guest(SPIN)
    machine.vcpus[0].engine.attend()
    board = Watcher(51, then=next_one)
    assert run(machine, board).outcome is Outcome.UNTIL
    assert all(seen >= due for seen, due in zip(board.calls[1:], times, strict=False))


def test_an_alarm_in_the_past_and_none(guest: MakeGuest) -> None:
    machine = guest(SPIN)
    machine.vcpus[0].engine.attend()
    board = Watcher(2, then=lambda cpu: cpu.engine.set_alarm(1))
    assert run(machine, board).outcome is Outcome.UNTIL

    machine.vcpus[0].engine.attend()

    def cancelled(cpu: Any) -> None:
        cpu.engine.set_alarm(time.monotonic_ns() + 10_000_000)
        cpu.engine.set_alarm(None)

    assert run(machine, Watcher(2, then=cancelled), timeout=0.1).outcome is Outcome.TIMEOUT
