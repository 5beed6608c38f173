"""Exceptions aimed at the instants of a run, and what must hold after each of them."""

from __future__ import annotations

import ast
import gc
import inspect
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from types import FrameType
from typing import Any

from pykvm import Machine, Mode, Outcome
from support.listing import assemble

__all__ = ["SPIN", "Boom", "ctrl_c_at_lines", "real_alarm", "signals_at_the_ends"]

SPIN = assemble("""
    FA           cli
    EB FE        jmp $
""")

PACKAGES = ("/pykvm/", "/contextlib.py", "/threading.py")


class Boom(Exception):
    """What the handler raises."""


def boom(number: int, frame: FrameType | None) -> None:
    raise Boom


def real_alarm() -> Iterator[Callable[[float], None]]:
    """What the fixture `alarm` yields."""

    def arm(delay: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, delay)
        if not delay:
            # Python looks here for a signal that has come already: none is left for later.
            signal.pthread_sigmask(signal.SIG_BLOCK, [])

    # Python drops what is raised inside a __del__: the machines of other tests are not to go now.
    gc.collect()
    gc.disable()
    before = signal.signal(signal.SIGALRM, boom)
    try:
        yield arm
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()


def make(vcpus: int) -> Machine:
    machine = Machine(SPIN, mode=Mode.REAL, memory="1M", vcpus=vcpus)
    for cpu in machine.vcpus[1:]:
        cpu.state = machine.vcpus[0].state
        cpu.parked = False
    return machine


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def settled(wanted: int) -> bool:
    """Whether so many threads are left, once those that ended are gone from the kernel's list."""
    until = time.monotonic() + 20
    while threads() > wanted and time.monotonic() < until:
        time.sleep(0.001)
    return threads() <= wanted


def check(machine: Machine, blocked: set[int | signal.Signals]) -> None:
    """That a machine is as it was before what went wrong."""
    assert machine.run(timeout=0).outcome is Outcome.TIMEOUT
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == blocked
    assert machine.stop() is False
    assert "stopped" in repr(machine)


def signals_at_the_ends(vcpus: int, count: int, alarm: Callable[[float], None]) -> int:
    """Aim real signals at a short run, and return how many came out of it."""
    chance = random.Random(1)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    machine = make(vcpus)
    machine.run(timeout=0)
    began = time.perf_counter()
    for _ in range(20):
        machine.run(timeout=0)
    typical = (time.perf_counter() - began) / 20
    before = threads()
    struck = 0
    for _ in range(count):
        try:
            alarm(chance.uniform(10e-6, 2 * typical))
            machine.run(timeout=0)
            alarm(0)
        except Boom:
            struck += 1
        check(machine, blocked)
        assert settled(before)
    machine.close()
    return struck


@cache
def with_lines(module: str) -> frozenset[int]:
    """The lines on which a module's `with` statements begin."""
    try:
        source = inspect.getsource(sys.modules[module])
    except (OSError, TypeError, KeyError):
        return frozenset()
    return frozenset(n.lineno for n in ast.walk(ast.parse(source)) if isinstance(n, ast.With))


class Injector:
    """Sends SIGINT at the n-th line that a run executes inside pykvm."""

    def __init__(self, line: int) -> None:
        self.left = line
        self.place = ""
        self._entered: dict[int, set[int]] = {}

    def call(self, frame: FrameType, event: str, arg: object) -> Any:
        name = frame.f_code.co_filename
        return self.line if any(part in name for part in PACKAGES) else None

    def line(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "line" and not self._leaves_with(frame):
            self.left -= 1
            if self.left == 0:
                self.place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                sys.settrace(None)
                os.kill(os.getpid(), signal.SIGINT)
        return self.line

    def _leaves_with(self, frame: FrameType) -> bool:
        """Whether this line is a `with` again, on the way out.

        A trace function may raise there, before `__exit__` is called; a signal's handler cannot.
        """
        if frame.f_lineno not in with_lines(frame.f_globals.get("__name__", "")):
            return False
        entered = self._entered.setdefault(id(frame), set())
        if frame.f_lineno in entered:
            entered.discard(frame.f_lineno)
            return True
        entered.add(frame.f_lineno)
        return False


def strike(machine: Machine, line: int) -> str:
    """Run with Ctrl-C at that line; the place, empty if the run has not so many."""
    injector = Injector(line)
    sys.settrace(injector.call)
    try:
        machine.run(timeout=0.001)
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return injector.place


def ctrl_c_at_lines(vcpus: int, step: int) -> int:
    """Ctrl-C at every `step`-th line of a run, one after the other; how many lines that were."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    tracer = sys.gettrace()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    line, tried = 1, 0
    try:
        before = threads()
        while True:
            machine = make(vcpus)
            machine.run(timeout=0)
            place = strike(machine, line)
            if not place:
                machine.close()
                return tried
            check(machine, blocked)
            machine.close()
            assert settled(before), place
            tried += 1
            line += step
    finally:
        signal.signal(signal.SIGINT, handler)
        sys.settrace(tracer)
