"""A machine that was closed, forked away or forgotten: every use of it says so."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from typing import Any

import pytest

from pykvm import CPU, ClosedError, Machine
from pykvm.exits import Hlt
from pykvm.vcpu.kvm_engine import KvmEngine
from support.guest import MakeGuest
from support.listing import assemble

pytestmark = pytest.mark.kvm


EXIT_0 = assemble("""
    B0 00        mov al, 0
    E6 F4        out 0xf4, al
""")


class Device:
    name = "device"
    length = 1

    def read(self, offset: int, size: int) -> int:
        return 0


# What a closed machine still says: what it was, what its guest said, and that it is over.
STAYS = {
    Machine: {
        *("close", "closed", "stop", "vcpus", "serial", "console", "symbols", "symbol_at", "clock"),
        *("open_bus", "is_linux", "notes", "from_snapshot"),
    },
    CPU: {"close", "kick", "loop"},
    KvmEngine: {
        "close",
        "kick",
        "attend",
        "is_here",
        "is_elsewhere",
        "forget",
        "end_exit",
        "end_by_hand",
    },
}
ARGUMENTS: dict[str, Any] = {
    "address": 0x7C00,
    "length": 4,
    "data": b"data",
    "device": Device(),
    "pio": 0x500,
    "irq": 3,
    "fd": 0,
    "exit": Hlt(),
    "cpu": None,
    "run": lambda: None,
    "values": {},
    "surface": False,
    "sregs": None,
    "dispatch": None,
    "when": 0,
    "callback": print,
}


def call(method: Any) -> object:
    """Call a method with arguments that an open machine would take."""
    parameters = inspect.signature(method).parameters.values()
    positional = [p for p in parameters if p.kind is not p.VAR_POSITIONAL]
    required = {"pio"} | {p.name for p in positional if p.default is p.empty}
    given = {p.name: ARGUMENTS.get(p.name, 0) for p in parameters if p.name in required}
    result = method(**given)
    return next(result) if inspect.isgenerator(result) else result


def public(kind: type) -> list[str]:
    return [name for name in dir(kind) if not name.startswith("_")]


@pytest.mark.parametrize("kind", [Machine, CPU, KvmEngine])
def test_every_public_name_of_what_is_closed(guest: MakeGuest, kind: type) -> None:
    """New ones too: each raises ClosedError, or is one of those that stay."""
    machine = guest("F4  hlt")
    machine.run(timeout=10)
    cpu = machine.vcpus[0]
    _ = machine.clock, cpu.debug, cpu.regs.rax
    machine.close()
    of = {Machine: machine, CPU: cpu, KvmEngine: cpu.engine}[kind]
    for name in public(kind):
        if name in STAYS[kind]:
            continue
        with pytest.raises(ClosedError):
            member = getattr(of, name)
            call(member)
            pytest.fail(f"{kind.__name__}.{name} does not say that it is closed")
    assert STAYS[kind] <= set(public(kind))


def test_registers_memory_and_views(guest: MakeGuest) -> None:
    machine = guest("F4  hlt")
    cpu = machine.vcpus[0]
    machine.close()
    for use in (
        lambda: cpu.regs.rax,
        lambda: setattr(cpu.regs, "rax", 1),
        lambda: cpu.regs.cs,
        lambda: dict(cpu.regs),
        lambda: cpu.engine.page[0],
        lambda: machine.memory.read(0, 1),
        lambda: machine.memory.write(0, b"x"),
        lambda: machine.memory.view(0, 1),
        lambda: machine.memory.find(b"x"),
        lambda: next(cpu.raw_exits()),
    ):
        with pytest.raises(ClosedError):
            use()


def test_a_fork_while_another_thread_runs_the_machine() -> None:
    """The child can use nothing of it, `close` there returns, and the parent's run goes on."""
    program = f"""
import os, signal, threading
from pykvm import ClosedError, Machine, Mode
machine = Machine({assemble("FA EB FE  cli; jmp $")!r}, mode=Mode.REAL, memory="1M", vcpus=2)
for cpu in machine.vcpus[1:]:
    cpu.state = machine.vcpus[0].state
    cpu.parked = False
results = []
for round in range(20):
    thread = threading.Thread(target=lambda: results.append(machine.run(timeout=20)))
    thread.start()
    while "running" not in repr(machine):
        pass
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # ends a child that hangs
        cpu = machine.vcpus[0]
        uses = [
            lambda: machine.run(timeout=1),
            lambda: cpu.regs.rax,
            lambda: setattr(cpu.regs, "rax", 1),
            lambda: cpu.engine.page[0],
            lambda: next(cpu.raw_exits()),
            lambda: machine.line(5),
        ]
        refused = 0
        for use in uses:
            try:
                use()
            except ClosedError as error:
                refused += "fork" in error.message and "spawn" in error.hint
        stopped = machine.stop()
        machine.memory.read(0, 1)
        machine.close()
        machine.close()
        with Machine({EXIT_0!r}, mode=Mode.REAL) as own:
            os._exit(refused if own.run(timeout=20).exit_code == 0 and not stopped else 99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 6
    assert machine.stop()
    thread.join()
machine.close()
print(*{{result.outcome.name for result in results}}, len(results))
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False
    )
    assert (ran.stdout, ran.stderr) == ("STOPPED 20\n", "")


def test_a_fork_inside_a_device(guest: MakeGuest) -> None:
    """The child's run raises ClosedError, and it has its signals."""
    read, write = os.pipe()

    class Forks:
        name = "forks"
        child = 0

        def write(self, offset: int, size: int, value: int) -> None:
            Forks.child = os.fork()

    machine = guest("E6 10  out 0x10, al\nF4  hlt", devices=[])
    machine.add(Forks(), pio=0x10, length=1)
    try:
        result = machine.run(timeout=20)
    except ClosedError:
        import signal

        if Forks.child == 0:
            os.write(write, repr(signal.pthread_sigmask(signal.SIG_BLOCK, [])).encode())
            os._exit(0)
        raise
    finally:
        if Forks.child == 0:
            os._exit(1)
    os.waitpid(Forks.child, 0)
    os.close(write)
    assert os.read(read, 100) == b"set()"
    os.close(read)
    assert result.exits == {"IoOut": 1, "Hlt": 1}


def test_a_forgotten_machine_is_warned_of_by_name(tmp_path: Any) -> None:
    image = tmp_path / "hello.bin"
    image.write_bytes(b"\xf4")
    program = f"""
import gc, warnings
from pykvm import Machine
warnings.simplefilter("always")
for image in ({str(image)!r}, {b"x"!r}):
    Machine(image, mode="real")
    gc.collect()
with Machine(mode="real"):
    pass
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False
    )
    told = [line for line in ran.stderr.splitlines() if "was not closed" in line]
    assert [line.partition("ResourceWarning: ")[2] for line in told] == [
        "Machine 'hello.bin' was not closed",
        "Machine 'bytes' was not closed",
    ]
