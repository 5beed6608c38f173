"""Kicks: from any thread, at any moment; none lost, none late by a run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from pykvm import Machine, Mode, Outcome
from pykvm._core import lib
from pykvm.bus import Placement, Space
from pykvm.exits import Hlt, Interrupted, IoOut
from support.guest import MakeGuest
from support.guest_code import MIXED, Ignore, no_posted

pytestmark = pytest.mark.kvm

SPIN = """
    FA           cli
    EB FE        jmp $
"""
OUTS = """
    E6 80        out 0x80, al
    EB FC        jmp $-2
"""


@pytest.mark.parametrize("listing", [SPIN, OUTS, MIXED], ids=["spin", "outs", "mixed"])
@pytest.mark.parametrize("posts", [False, True], ids=["device", "posted"])
def test_kicks_from_another_thread_at_random_moments(
    guest: MakeGuest, listing: str, posts: bool
) -> None:
    """Over the six cases 10,200 stops: each that found a run ended that run, and no other."""
    runs = 1700
    options: dict[str, Any] = {} if posts else {"devices": no_posted()}
    machine = guest(listing, **options)
    chance = random.Random(1)
    begin, stopped = threading.Event(), threading.Event()
    answers: list[bool] = []
    over = False

    def stopper() -> None:
        while True:
            begin.wait()
            begin.clear()
            if over:
                return
            for _ in range(chance.randrange(400)):
                pass
            while not machine.stop():
                pass
            answers.append(True)
            stopped.set()

    thread = threading.Thread(target=stopper)
    thread.start()
    try:
        for _ in range(runs):
            stopped.clear()
            begin.set()
            result = machine.run(timeout=20)
            assert result.outcome is Outcome.STOPPED, result
            assert stopped.wait(20)
        # Nothing is left over: a run that is not stopped goes on.
        assert machine.run(timeout=0.02).outcome is Outcome.TIMEOUT
    finally:
        over = True
        begin.set()
        thread.join()
    assert len(answers) == runs


def test_a_storm_of_kicks_from_several_threads(guest: MakeGuest) -> None:
    machine = guest(MIXED, devices=no_posted())
    over = False

    def storm() -> None:
        while not over:
            machine.vcpus[0].kick()

    threads = [threading.Thread(target=storm) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        result = machine.run(timeout=0.5)
    finally:
        over = True
        for thread in threads:
            thread.join()

    assert result.outcome is Outcome.TIMEOUT
    # The storm is over, and the guest goes on.
    assert machine.run(timeout=0.1).exits["IoOut"] > 0


def test_a_kick_is_an_exit_of_its_own_in_a_loop_by_hand(guest: MakeGuest) -> None:
    machine = guest(SPIN)
    timer = threading.Timer(0.05, machine.vcpus[0].kick)
    timer.start()
    exits = machine.vcpus[0].raw_exits(timeout=20)

    assert next(exits) == Interrupted()
    timer.join()


def test_a_kick_without_a_run_is_not_kept(guest: MakeGuest) -> None:
    machine = guest("F4  hlt")

    assert machine.vcpus[0].kick() is False
    assert next(machine.vcpus[0].raw_exits()) == Hlt()


def test_the_deadline_of_a_loop_by_hand(guest: MakeGuest) -> None:
    with pytest.raises(TimeoutError, match="vCPU 0 still runs after"):
        next(guest(SPIN).vcpus[0].raw_exits(timeout=0.02))


def ticks_that_come(within: float) -> int:
    """How often the kick's signal came to this thread, which blocks it meanwhile."""
    kick = {lib.pykvm_kick_signal()}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, kick)
    try:
        time.sleep(within)
        count = 0
        while signal.sigtimedwait(kick, 0) is not None:
            count += 1
        return count
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_the_timer_of_a_loop_by_hand_ends_with_it(guest: MakeGuest) -> None:
    exits = guest(OUTS, devices=[]).vcpus[0].raw_exits()
    assert isinstance(next(exits), IoOut)
    exits.close()

    assert ticks_that_come(0.12) == 0


def test_a_loop_that_is_left_has_one_tick_to_come(guest: MakeGuest) -> None:
    exits = guest(OUTS, devices=[]).vcpus[0].raw_exits()
    assert isinstance(next(exits), IoOut)

    assert [ticks_that_come(0.12), ticks_that_come(0.12)] == [1, 0]
    assert isinstance(next(exits), IoOut)


def test_a_tick_between_two_steps_does_not_stop_the_clock(guest: MakeGuest) -> None:
    """The next step sets the timer anew, without which a guest that spins has no deadline."""
    machine = guest("E6 80  out 0x80, al\nFA  cli\nEB FE  jmp $", devices=[])
    exits = machine.vcpus[0].raw_exits(timeout=0.2)
    assert isinstance(next(exits), IoOut)
    time.sleep(0.06)

    with pytest.raises(TimeoutError):
        next(exits)


def test_stray_signals_do_nothing() -> None:
    os.kill(os.getpid(), lib.pykvm_kick_signal())


def test_the_kick_signal_is_blocked_only_during_a_run(guest: MakeGuest) -> None:
    seen = []

    class Look(Ignore):
        def write(self, offset: int, size: int, value: int) -> None:
            seen.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
            machine.stop()

    machine = guest(OUTS, devices=[Placement(Look(), Space.PIO, 0x80, 1)])
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    machine.run(timeout=10)

    assert seen[0] - before == {lib.pykvm_kick_signal()}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_one_machine_inside_a_device_of_another(guest: MakeGuest) -> None:
    """The inner machine's run may swallow the outer one's signal, not its kick or its deadline."""
    inner = guest(SPIN)

    class Nested(Ignore):
        def write(self, offset: int, size: int, value: int) -> None:
            outer.vcpus[0].kick()
            assert inner.run(timeout=0.01).outcome is Outcome.TIMEOUT
            outer.stop()

    outer = guest(OUTS, devices=[Placement(Nested(), Space.PIO, 0x80, 1)])
    assert outer.run(timeout=20).outcome is Outcome.STOPPED

    class Slow(Ignore):
        def write(self, offset: int, size: int, value: int) -> None:
            inner.run(timeout=0.05)

    outer = guest(OUTS, devices=[Placement(Slow(), Space.PIO, 0x80, 1)])
    assert outer.run(timeout=0.02).outcome is Outcome.TIMEOUT


def test_a_loop_by_hand_inside_a_device_of_another(guest: MakeGuest) -> None:
    """Each of its steps gives the outer run its signal back, and is not cut short by that."""
    inner = guest(MIXED, devices=[])
    seen: list[object] = []

    class Nested(Ignore):
        def write(self, offset: int, size: int, value: int) -> None:
            outer.vcpus[0].kick()
            exits = inner.vcpus[0].raw_exits(timeout=20)
            seen.extend(next(exits) for _ in range(3))
            outer.stop()

    outer = guest(OUTS, devices=[Placement(Nested(), Space.PIO, 0x80, 1)])
    assert outer.run(timeout=20).outcome is Outcome.STOPPED
    assert [type(exit) for exit in seen] == [IoOut] * 3


CTRL_C = """
import os, signal, sys, threading, time
from pykvm import Machine, Mode
machine = Machine(bytes.fromhex({code!r}), mode=Mode.REAL, memory="1M", devices={devices})
for _ in range({rounds}):
    try:
        threading.Timer({delay}, os.kill, (os.getpid(), signal.SIGINT)).start()
        machine.run(timeout=30)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
print(machine.run(timeout=0.01).outcome.name)
"""


@pytest.mark.parametrize("code", ["fa eb fe", "e6 80 eb fc"], ids=["spin", "outs"])
def test_ctrl_c_comes_out_of_run_in_the_main_thread(code: str) -> None:
    program = CTRL_C.format(code=code, rounds=30, delay=0.005, devices=None)
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False
    )
    assert ran.stderr == ""
    assert ran.stdout.split() == ["interrupted"] * 30 + ["TIMEOUT"]


def test_ctrl_c_in_a_run_of_another_thread_reaches_the_main_thread(guest: MakeGuest) -> None:
    machine = guest(SPIN)
    results = []
    thread = threading.Thread(target=lambda: results.append(machine.run(timeout=20)))
    thread.start()
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        time.sleep(20)
    machine.stop()
    thread.join()
    timer.join()

    assert results[0].outcome is Outcome.STOPPED


def test_exits_are_whole_after_a_kick_in_the_middle_of_reads(guest: MakeGuest) -> None:
    """A read that a kick meets is answered once, with the right value."""

    class Numbers:
        name = "numbers"
        next = 0

        def read(self, offset: int, size: int) -> int:
            self.next += 1
            if self.next % 7 == 0:
                machine.vcpus[0].kick()
            return self.next & 0xFF

    numbers = Numbers()
    # Sums up 200 reads.
    machine = guest(
        """
        31 DB        xor bx, bx
        B9 C8 00     mov cx, 200
        E4 10        in al, 0x10
        30 E4        xor ah, ah
        01 C3        add bx, ax
        E2 F8        loop $-6
        B0 00        mov al, 0
        E6 11        out 0x11, al
        """,
        devices=[],
    )
    machine.add(numbers, pio=0x10, length=1)
    result = machine.run(timeout=20)

    assert result.exit == IoOut(port=0x11, size=1, data=b"\0")
    assert machine.vcpus[0].regs.rbx & 0xFFFF == sum(range(1, 201))


def test_machines_in_many_threads_at_once(guest: MakeGuest) -> None:
    machines: list[Machine] = [guest(MIXED, mode=Mode.REAL) for _ in range(8)]
    outcomes: list[Outcome] = []

    def live(machine: Machine) -> None:
        for _ in range(20):
            threading.Timer(random.random() / 100, machine.stop).start()
            outcomes.append(machine.run(timeout=0.02).outcome)

    threads = [threading.Thread(target=live, args=(machine,)) for machine in machines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)

    assert len(outcomes) == 160
    assert set(outcomes) <= {Outcome.STOPPED, Outcome.TIMEOUT}
