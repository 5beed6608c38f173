"""An exception at any instant of a run: Ctrl-C, or what a signal's handler raises.

Afterwards the machine runs again, `close` returns, no thread is left and no signal stays blocked.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest
from machine.exceptions import (
    SPIN,
    Boom,
    ctrl_c_in_a_run,
    ctrl_c_while_closing,
    ctrl_c_while_making,
    no_collector,
    real_alarm,
    signals_at_the_ends,
)

from pykvm import MachineConfig, Outcome
from pykvm.kvm import System
from pykvm.machine.board import Board
from pykvm.machine.guest import memory_of
from pykvm.memory import GuestMemory
from pykvm.vcpu import CPU
from pykvm.x86.entry import real_mode
from support.guest import MakeGuest
from support.host import host_probe, require_host

pytestmark = pytest.mark.kvm

# A word of memory that changes as long as the guest runs.
COUNT = """
    FF 06 00 05  inc word [0x500]
    EB FA        jmp $-4
"""


@host_probe("becomes-another-user")
def becomes_another_user() -> str | None:
    """Only root can: a limit on processes holds for a user, who has to have none yet."""
    return None if os.getuid() == 0 else "the tests are not run by root"


@pytest.fixture
def alarm() -> Iterator[Callable[[float], None]]:
    """Arms a real SIGALRM, whose handler raises Boom; 0 disarms it."""
    yield from real_alarm()


@pytest.mark.parametrize("vcpus", [1, 2])
def test_signals_at_the_ends_of_a_short_run(vcpus: int, alarm: Callable[[float], None]) -> None:
    assert signals_at_the_ends(vcpus, 400, alarm) > 20


@pytest.mark.parametrize(("vcpus", "step"), [(1, 4), (2, 9)])
def test_ctrl_c_at_instants_of_a_run(vcpus: int, step: int) -> None:
    assert ctrl_c_in_a_run(vcpus, step) > 20


def test_ctrl_c_at_instants_of_making_a_machine() -> None:
    """Nothing is left of it: no descriptor, no memory, and no warning."""
    assert ctrl_c_while_making(97) > 20


def test_a_board_that_is_not_yet_built_waits_for_no_collector() -> None:
    """An exception after the first step of making a machine: no machine knows what to close."""
    config = MachineConfig()
    with no_collector():
        board = Board(memory_of(config), config, irqchip="user")
        left = weakref.ref(board)
        del board
        assert left() is None


def test_a_vcpu_that_nothing_has_yet_waits_for_no_collector() -> None:
    with System() as system, system.create_vm() as vm, no_collector():
        cpu = CPU(vm.create_vcpu(0), GuestMemory())
        left = weakref.ref(cpu)
        del cpu
        assert left() is None


def test_ctrl_c_at_instants_of_closing_a_machine() -> None:
    """The next `close` gives back what is left."""
    assert ctrl_c_while_closing(3) > 20


def test_guest_memory_stands_still_after_an_exception(
    guest: MakeGuest, alarm: Callable[[float], None]
) -> None:
    machine = guest(COUNT, vcpus=2)
    machine.vcpus[1].state = machine.vcpus[0].state
    machine.vcpus[1].parked = False
    machine.run(timeout=0.01)
    for delay in range(60, 2000, 20):
        try:
            alarm(delay / 1e6)
            machine.run(timeout=0.001)
            alarm(0)
        except Boom:
            pass
        seen = machine.memory.read_u16(0x500)
        time.sleep(0.0005)
        assert machine.memory.read_u16(0x500) == seen


def test_an_exception_leaves_a_loop_by_hand_and_nothing_else(
    guest: MakeGuest, alarm: Callable[[float], None]
) -> None:
    machine = guest("E6 80  out 0x80, al; EB FC  jmp $-2".replace(";", "\n"), devices=[])
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    loops = []
    for delay in range(20, 1500, 20):
        try:
            alarm(delay / 1e6)
            loop = machine.vcpus[0].raw_exits()
            loops.append(loop)
            for _ in loop:
                pass
        except Boom:
            pass
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == blocked
        assert machine.run(timeout=5).outcome is Outcome.CRASHED
    machine.close()


def test_a_thread_that_cannot_start_leaves_none_in_the_guest() -> None:
    """As another user, with no process left to make."""
    program = f"""
import os, resource, sys, time
from pykvm import HostError, Machine, Mode
machine = Machine({SPIN!r}, mode=Mode.REAL, memory="1M", vcpus=3)
for cpu in machine.vcpus[1:]:
    cpu.state = machine.vcpus[0].state
    cpu.parked = False
os.setresuid(54321, 54321, 54321)
most = resource.getrlimit(resource.RLIMIT_NPROC)[1]
for allowed in (1, 2):
    resource.setrlimit(resource.RLIMIT_NPROC, (allowed, most))
    try:
        machine.run(timeout=5)
        print("ran")
    except HostError as error:
        print(error.message.partition(":")[0])
    until = time.monotonic() + 20
    while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < until:
        time.sleep(0.001)
    print(len(os.listdir("/proc/self/task")), machine)
resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
print(machine.run(timeout=0.001).outcome.name)
machine.close()
"""
    require_host("becomes-another-user")
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.stderr == ""
    lines = ran.stdout.splitlines()
    assert lines[0] == "this host gives no thread for vCPU 1"
    assert lines[2] == "this host gives no thread for vCPU 2"
    assert lines[1].startswith("1 <Machine stopped")
    assert lines[3].startswith("1 <Machine stopped")
    assert lines[4] == "TIMEOUT"


def test_a_worker_thread_leaves_the_process_its_signals(guest: MakeGuest) -> None:
    """All but the kick's and those of its own faults are blocked in it, until its run is over."""
    seen: list[set[int | signal.Signals]] = []

    class Look:
        name = "look"

        def write(self, offset: int, size: int, value: int) -> None:
            seen.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
            machine.stop()

    machine = guest("E6 80  out 0x80, al\nEB FC  jmp $-2", devices=[])
    machine.add(Look(), pio=0x80, length=1)

    def work() -> None:
        seen.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
        machine.run(timeout=20)
        seen.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen[0] == seen[2]
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1} <= seen[1]
    assert not {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL} & seen[1]


def test_ctrl_c_while_the_first_vcpu_sleeps(guest: MakeGuest) -> None:
    """And another one polls a device all the time."""
    # F4 is reached with interrupts on and a line that may still come: it waits.
    machine = guest("FB  sti\nF4  hlt\nEB FD  jmp $-1", vcpus=2, irqchip="user")
    machine.line(5)
    machine.memory.write(0x2000, bytes.fromhex("BA FD 03 EC EB FD"))  # in al, 0x3fd; jmp
    machine.vcpus[1].state = real_mode(ip=0x2000)
    machine.vcpus[1].parked = False
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for _ in range(10):
            killer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
            killer.start()
            with pytest.raises(KeyboardInterrupt):
                machine.run(timeout=20)
            killer.join()
    finally:
        signal.signal(signal.SIGINT, handler)


def test_ctrl_c_again_and_again_does_not_wait_for_a_device_that_hangs(
    guest: MakeGuest, alarm: Callable[[float], None]
) -> None:
    go_on = threading.Event()
    inside = threading.Event()
    over = threading.Event()

    class Stuck:
        name = "stuck"

        def write(self, offset: int, size: int, value: int) -> None:
            inside.set()
            go_on.wait(50)

    machine = guest("FA EB FE  cli; jmp $", vcpus=2)
    machine.add(Stuck(), pio=0x10, length=1)
    machine.memory.write(0x2000, b"\xe6\x10\xf4")
    machine.vcpus[1].state = real_mode(ip=0x2000)
    machine.vcpus[1].parked = False

    def press() -> None:
        inside.wait(20)
        while not over.wait(0.05):
            os.kill(os.getpid(), signal.SIGALRM)

    presser = threading.Thread(target=press)
    presser.start()
    began = time.monotonic()
    try:
        with pytest.raises(Boom):
            machine.run(timeout=40)
        # Not an assertion about speed: the device hangs for 50 s.
        assert time.monotonic() - began < 40
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        over.set()
        presser.join()
    # The next run waits for that thread, which is in no guest, to come out of the device.
    threading.Timer(0.1, go_on.set).start()
    assert machine.run(timeout=0.01).outcome is Outcome.TIMEOUT
