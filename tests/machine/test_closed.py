"""What a closed machine and its parts say: ClosedError, or nothing where that is harmless."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from pykvm import ClosedError, Machine
from pykvm.devices import PostPort
from pykvm.x86.state import CpuState
from support.irqchips import IRQCHIPS

pytestmark = pytest.mark.kvm


class Closed(NamedTuple):
    """A closed machine, and what was taken from it before."""

    machine: Machine
    state: CpuState
    line: Any
    clock: Any


@pytest.fixture(scope="module", params=IRQCHIPS)
def closed(request: pytest.FixtureRequest) -> Closed:
    machine = Machine(b"\xfa\xf4", mode="real", memory="1M", irqchip=request.param)
    machine.run(timeout=0.01)
    parts = Closed(machine, machine.vcpus[0].state, machine.line(4), machine.clock)
    machine.close()
    return parts


REFUSED: dict[str, Callable[[Closed], object]] = {
    "run": lambda c: c.machine.run(),
    "with": lambda c: c.machine.__enter__(),
    "add": lambda c: c.machine.add(PostPort("x"), pio=0x700, length=1),
    "remove": lambda c: c.machine.remove("com1"),
    "rax": lambda c: c.machine.vcpus[0].regs.rax,
    "set rax": lambda c: setattr(c.machine.vcpus[0].regs, "rax", 1),
    "cr0": lambda c: c.machine.vcpus[0].regs.cr0,
    "set cr0": lambda c: setattr(c.machine.vcpus[0].regs, "cr0", 1),
    "set cs": lambda c: setattr(c.machine.vcpus[0].regs, "cs", c.state.cs),
    "registers": lambda c: dict(c.machine.vcpus[0].regs),
    "state": lambda c: c.machine.vcpus[0].state,
    "set state": lambda c: setattr(c.machine.vcpus[0], "state", c.state),
    "cpu.read": lambda c: c.machine.vcpus[0].read(0, 4),
    "cpu.write": lambda c: c.machine.vcpus[0].write(0, b"x"),
    "translate": lambda c: c.machine.vcpus[0].translate(0),
    "exits": lambda c: next(c.machine.vcpus[0].raw_exits()),
    "run_page": lambda c: c.machine.vcpus[0].engine.run_page,
    "breakpoint": lambda c: c.machine.vcpus[0].debug.set_breakpoints("me", [1]),
    "single step": lambda c: c.machine.vcpus[0].debug.single_step(True),
    "kvm": lambda c: c.machine.vcpus[0].kvm.get_regs(),
    "memory.read": lambda c: c.machine.memory.read(0, 4),
    "memory.write": lambda c: c.machine.memory.write(0, b"x"),
    "memory.read_u32": lambda c: c.machine.memory.read_u32(0),
    "memory.find": lambda c: c.machine.memory.find(b"x"),
    "memory.add_ram": lambda c: c.machine.memory.add_ram(1 << 32, 4096),
}

HARMLESS: dict[str, Callable[[Closed], object]] = {
    "close": lambda c: c.machine.close(),
    "stop": lambda c: c.machine.stop(),
    "repr": lambda c: repr(c.machine) + repr(c.machine.vcpus[0]) + repr(c.machine.memory),
    "serial": lambda c: c.machine.serial.text,
    "symbols": lambda c: dict(c.machine.symbols),
    "kick": lambda c: c.machine.vcpus[0].kick(),
    "attend": lambda c: c.machine.vcpus[0].engine.attend(),
    "clock": lambda c: c.clock.now(),
    "timer": lambda c: c.clock.timer(print).arm(5),
    "regions": lambda c: c.machine.memory.regions,
    "covers": lambda c: c.machine.memory.covers(0, 1),
}

# What other threads may be in the middle of: either will do.
EITHER: dict[str, Callable[[Closed], object]] = {
    "line": lambda c: c.machine.line(5).set(True),
    "line made before": lambda c: c.line.set(True),
    "send_msi": lambda c: c.machine.send_msi(0xFEE00000, 0x31),
    "send": lambda c: c.machine.serial.send("x"),
}


@pytest.mark.parametrize("use", REFUSED.values(), ids=REFUSED)
def test_what_a_closed_machine_refuses(closed: Closed, use: Callable[[Closed], object]) -> None:
    with pytest.raises(ClosedError):
        use(closed)


@pytest.mark.parametrize("use", HARMLESS.values(), ids=HARMLESS)
def test_what_a_closed_machine_still_answers(
    closed: Closed, use: Callable[[Closed], object]
) -> None:
    use(closed)


@pytest.mark.parametrize("use", EITHER.values(), ids=EITHER)
def test_from_another_thread(closed: Closed, use: Callable[[Closed], object]) -> None:
    try:
        use(closed)
    except ClosedError as error:
        assert error.message
