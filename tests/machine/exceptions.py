"""Exceptions aimed at the instants of a machine's life, and what must hold after each of them."""

from __future__ import annotations

import dis
import gc
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from pykvm import Machine, Mode, Outcome
from support.listing import assemble

__all__ = [
    "SPIN",
    "Boom",
    "ctrl_c_in_a_run",
    "ctrl_c_while_closing",
    "ctrl_c_while_making",
    "no_collector",
    "real_alarm",
    "signals_at_the_ends",
]

SPIN = assemble("""
    FA           cli
    EB FE        jmp $
""")

PACKAGES = ("/pykvm/", "/contextlib.py", "/threading.py")


class Boom(Exception):
    """What the handler raises."""


def real_alarm() -> Iterator[Callable[[float], None]]:
    """What the fixture `alarm` yields."""
    stopped = False

    def boom(number: int, frame: FrameType | None) -> None:
        # Another thread may have taken the signal, and be late with it.
        if not stopped:
            raise Boom

    def arm(delay: float) -> None:
        nonlocal stopped
        stopped = delay == 0
        signal.setitimer(signal.ITIMER_REAL, delay)

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
def looks(code: CodeType) -> frozenset[int]:
    """Where Python looks at its signals in a function: at its start and after each call.

    What a handler raises belongs to the call, and what a trace function raises to the instruction
    after it.  Where these are not in the same `with` or `try`, no signal strikes as we do.
    """
    ranges = getattr(dis.Bytecode(code), "exception_entries", ())

    def caught(offset: int) -> list[int]:
        return [entry.target for entry in ranges if entry.start <= offset < entry.end]

    found = set()
    call: int | None = None
    fresh = True
    for instruction in dis.get_instructions(code):
        here = instruction.offset
        if instruction.opname not in ("CACHE", "RESUME"):
            if fresh or (call is not None and caught(call) == caught(here)):
                found.add(here)
            fresh, call = False, None
        if instruction.opname.startswith("CALL"):
            call = here
    return frozenset(found)


class CtrlC:
    """Raises KeyboardInterrupt at the n-th time that Python could, inside pykvm."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.place = ""

    def call(self, frame: FrameType, event: str, arg: object) -> Any:
        code = frame.f_code
        # What is raised in a __del__ Python prints and drops, whatever it is.
        if code.co_name == "__del__" or not any(part in code.co_filename for part in PACKAGES):
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        return self.instruction

    def instruction(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "opcode" and frame.f_lasti in looks(frame.f_code):
            self.left -= 1
            if self.left == 0:
                self.place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                sys.settrace(None)
                raise KeyboardInterrupt
        return self.instruction


def strike(action: Callable[[], object], number: int) -> str:
    """Do it with Ctrl-C at that instant; the place, empty if it has not so many."""
    ctrl_c = CtrlC(number)
    before = sys.gettrace()
    sys.settrace(ctrl_c.call)
    try:
        action()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return ctrl_c.place


def ctrl_c_in_a_run(vcpus: int, step: int) -> int:
    """Ctrl-C at every `step`-th instant of a run, one after the other; how many those were."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    before = threads()
    for number in range(1, 1 << 20, step):
        machine = make(vcpus)
        machine.run(timeout=0)
        place = strike(partial(machine.run, 0.001), number)
        if place:
            check(machine, blocked)
        machine.close()
        if not place:
            return number // step
        assert settled(before), place
    raise AssertionError("a run without end")


# The guest's memory, which is not touched: what is mapped beside it is far less.
LARGE = 1 << 30


def held() -> tuple[int, int, int]:
    """Descriptors, what is mapped in all, and run pages of vCPUs."""
    size = pages = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(number, 16) for number in line.split()[0].split("-"))
        size += end - start
        pages += "kvm-vcpu" in line
    return len(os.listdir("/proc/self/fd")), size, pages


def check_held(before: tuple[int, int, int], place: str) -> None:
    """That as much is held as before, but for what Python keeps for itself."""
    descriptors, size, pages = held()
    assert (descriptors, pages) == (before[0], before[2]), place
    assert size < before[1] + LARGE // 2, place


@contextmanager
def no_collector() -> Iterator[None]:
    """What is given back is given back at once."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def ctrl_c_while_making(step: int, **options: Any) -> int:
    """Ctrl-C at every `step`-th instant of making a machine; how many those were."""

    def make() -> None:
        machines.append(Machine(SPIN, mode=Mode.REAL, memory=LARGE, **options))

    machines: list[Machine] = []
    make()
    machines.pop().close()
    with no_collector():
        for number in range(1, 1 << 20, step):
            # Anew: what Python objects hold one another waits for the collector.
            before = held()
            place = strike(make, number)
            if not place:
                machines.pop().close()
                return number // step
            assert not machines
            check_held(before, place)
    raise AssertionError("a machine that is never made")


def ctrl_c_while_closing(step: int, **options: Any) -> int:
    """Ctrl-C at every `step`-th instant of closing one, and closed again; how many those were."""
    with no_collector():
        before = held()
        for number in range(1, 1 << 20, step):
            machine = Machine(SPIN, mode=Mode.REAL, memory=LARGE, **options)
            machine.run(timeout=0)
            place = strike(machine.close, number)
            machine.close()
            check_held(before, place)
            if not place:
                return number // step
    raise AssertionError("a machine that is never closed")
