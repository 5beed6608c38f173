"""The loop of a run in C: it calls the devices, and leaves the rest to Python."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from pykvm import Machine, Outcome, Placement, Space
from support.guest import MakeGuest

pytestmark = pytest.mark.kvm

OUTS = """
    E6 80        out 0x80, al
    EB FC        jmp $-2
"""
ASK_AND_SAY = """
    E4 10        in al, 0x10
    E6 11        out 0x11, al
    F4           hlt
"""


class Echo:
    """Answers 7, and keeps what it is written."""

    name = "echo"

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []

    def read(self, offset: int, size: int) -> int:
        self.calls.append((offset, size))
        return 7

    def write(self, offset: int, size: int, value: int) -> None:
        self.calls.append((offset, size, value))


def with_echo(guest: MakeGuest) -> tuple[Machine, Echo]:
    echo = Echo()
    return guest(ASK_AND_SAY, devices=[Placement(echo, Space.PIO, 0x10, 2)]), echo


def test_a_device_is_called_for_each_access(guest: MakeGuest) -> None:
    machine, echo = with_echo(guest)

    assert machine.run(timeout=10).outcome is Outcome.HALTED
    assert echo.calls == [(0, 1), (1, 1, 7)]


def test_a_device_that_another_thread_has_just_removed_is_an_open_bus(guest: MakeGuest) -> None:
    """C has found its range, and Python no longer knows the slot."""
    machine, echo = with_echo(guest)
    dispatch = machine.vcpus[0].loop._dispatch
    assert dispatch is not None
    dispatch.reads.clear()

    machine.run(timeout=10)
    assert echo.calls == [(1, 1, 0xFF)]

    machine, echo = with_echo(guest)
    dispatch = machine.vcpus[0].loop._dispatch
    assert dispatch is not None
    dispatch.writes.clear()

    assert machine.run(timeout=10).outcome is Outcome.HALTED
    assert echo.calls == [(0, 1)]


def test_what_an_odd_answer_raises_comes_out(guest: MakeGuest) -> None:
    class Odd(Echo):
        def read(self, offset: int, size: int) -> Any:
            return Index()

    class Index:
        def __index__(self) -> int:
            raise ZeroDivisionError

    machine = guest(ASK_AND_SAY, devices=[Placement(Odd(), Space.PIO, 0x10, 2)])
    with pytest.raises(ZeroDivisionError):
        machine.run(timeout=10)


def test_until_is_looked_at_after_each_access(guest: MakeGuest) -> None:
    echo = Echo()
    machine = guest(OUTS, devices=[Placement(echo, Space.PIO, 0x80, 1)])

    result = machine.run(timeout=10, until=lambda _: len(echo.calls) == 3)

    assert result.outcome is Outcome.UNTIL
    assert len(echo.calls) == 3


def test_a_signals_exception_comes_out_though_no_bytecode_runs(guest: MakeGuest) -> None:
    """The device's method is in C: Python has its next look at a tick."""

    class InC:
        name = "in C"
        write: Any = staticmethod(max)

    def ring(number: int, frame: object) -> None:
        raise InterruptedError

    machine = guest(OUTS, devices=[Placement(InC(), Space.PIO, 0x80, 1)])
    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with pytest.raises(InterruptedError):
            machine.run(timeout=20)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    # The run is over, and another can begin.
    assert machine.run(timeout=0.02).outcome is Outcome.TIMEOUT
