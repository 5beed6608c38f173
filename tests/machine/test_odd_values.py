"""Values of any type, everywhere in the API: taken, or an error of pykvm's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from pykvm import GuestMemory, Machine, PykvmError
from support.odd import ODD

pytestmark = pytest.mark.kvm

HALT = b"\xfa\xf4"


def bears(call: Callable[[], object]) -> None:
    try:
        call()
    except PykvmError as error:
        assert str(error)


@pytest.mark.parametrize("option", inspect.signature(Machine).parameters)
def test_odd_values_for_options_of_a_machine(option: str) -> None:
    for value in ODD:
        options = {"image": HALT, "mode": "real", "memory": "1M", option: value}
        bears(lambda options=options: Machine(**options).close())  # type: ignore[misc]


def never_if_callable(value: Any) -> Any:
    """A condition that may be asked: what a function raises comes out of `run` as it is."""
    return (lambda machine: False) if callable(value) else value


# Every public method and what it is given, one argument at a time in place of the right ones.
METHODS: dict[str, tuple[Callable[[Machine], Callable[..., object]], tuple[Any, ...]]] = {
    "run": (lambda m: lambda a: m.run(timeout=a), (0,)),
    "run until": (lambda m: lambda a: m.run(timeout=0, until=never_if_callable(a)), ("x",)),
    "run fail": (lambda m: lambda a: m.run(timeout=0, fail=never_if_callable(a)), ("x",)),
    "run on_exit": (lambda m: lambda a: m.run(timeout=0, on_exit=a), (None,)),
    "run on_answer": (lambda m: lambda a: m.run(timeout=0, on_answer=a), (None,)),
    "check": (lambda m: lambda a: m.run(timeout=0).check(expect=a), (0,)),
    "add": (lambda m: lambda d, p, n: m.add(d, pio=p, length=n), (object(), 0x700, 1)),
    "add mmio": (lambda m: lambda d, a, n: m.add(d, mmio=a, length=n), (object(), 1 << 32, 1)),
    "remove": (lambda m: m.remove, ("x",)),
    "line": (lambda m: m.line, (4,)),
    "send_msi": (lambda m: m.send_msi, (0xFEE00000, 0x31)),
    "irqfd": (lambda m: m.irqfd, (0, 4)),
    "ioeventfd": (lambda m: lambda f, p, n: m.ioeventfd(f, pio=p, length=n), (0, 0x700, 1)),
    "symbol_at": (lambda m: m.symbol_at, (0x7C00,)),
    "symbols": (lambda m: lambda a: m.symbols[a], ("main",)),
    "rax": (lambda m: lambda a: setattr(m.vcpus[0].regs, "rax", a), (0,)),
    "cr2": (lambda m: lambda a: setattr(m.vcpus[0].regs, "cr2", a), (0,)),
    "cs": (lambda m: lambda a: setattr(m.vcpus[0].regs, "cs", a), (None,)),
    "gdt": (lambda m: lambda a: setattr(m.vcpus[0].regs, "gdt", a), (None,)),
    "state": (lambda m: lambda a: setattr(m.vcpus[0], "state", a), (None,)),
    "cpu.read": (lambda m: m.vcpus[0].read, (0, 4)),
    "cpu.write": (lambda m: m.vcpus[0].write, (0, b"x")),
    "cpu.read_cstring": (lambda m: m.vcpus[0].read_cstring, (0, 4)),
    "cpu.translate": (lambda m: m.vcpus[0].translate, (0,)),
    "cpu.walk": (lambda m: lambda a, b: m.vcpus[0].walk(a, access=b), (0, "read")),
    "breakpoints": (lambda m: m.vcpus[0].debug.set_breakpoints, ("me", [])),
    "single_step": (lambda m: m.vcpus[0].debug.single_step, (False,)),
    "exits": (lambda m: lambda a: m.vcpus[0].raw_exits(timeout=a).close(), (0,)),
    "memory.read": (lambda m: m.memory.read, (0, 4)),
    "memory.write": (lambda m: m.memory.write, (0, b"x")),
    "memory.view": (lambda m: m.memory.view, (0, 4)),
    "memory.compare_exchange": (lambda m: m.memory.compare_exchange, (0, bytes(16), bytes(16))),
    "memory.freeze": (lambda m: m.memory.freeze, (None,)),
    "memory.thaw": (lambda m: m.memory.thaw, (None,)),
    "memory.mark_dirty": (lambda m: m.memory.mark_dirty, (0, 4)),
    "memory.fill": (lambda m: m.memory.fill, (0, 4, 0)),
    "memory.find": (lambda m: m.memory.find, (b"x", 0, 16)),
    "memory.read_cstring": (lambda m: m.memory.read_cstring, (0, 16)),
    "memory.write_cstring": (lambda m: m.memory.write_cstring, (0, "x")),
    "memory.read_u32": (lambda m: m.memory.read_u32, (0,)),
    "memory.write_u8": (lambda m: m.memory.write_u8, (0, 1)),
    "memory.write_u64": (lambda m: m.memory.write_u64, (0, 1)),
    "memory.covers": (lambda m: m.memory.covers, (0, 1)),
    "memory.region_at": (lambda m: m.memory.region_at, (0,)),
    "memory.add_ram": (lambda m: m.memory.add_ram, (1 << 40, 0x1000)),
    "memory.remove": (lambda m: m.memory.remove, (None,)),
    "send": (lambda m: m.serial.send, ("x",)),
    "on_output": (lambda m: lambda a: m.serial.on_output(a)(), (print,)),
    "on_drained": (lambda m: lambda a: m.serial.on_drained(a)(), (print,)),
    "on_emulated": (lambda m: lambda a: m.on_emulated(a)(), (print,)),
    "on_change": (lambda m: lambda a: m.bus.on_change(a)(), (print,)),
    "on_add": (lambda m: lambda a: m.memory.on_add(a)(), (print,)),
    "on_earlier": (lambda m: lambda a: m.clock.on_earlier(a)(), (print,)),
}


@pytest.mark.parametrize("name", METHODS)
def test_odd_values_for_methods_of_a_machine(name: str) -> None:
    method, right = METHODS[name]
    with Machine(HALT, mode="real", memory="1M") as machine:
        call = method(machine)
        for position in range(len(right)):
            for value in ODD:
                arguments = [*right[:position], value, *right[position + 1 :]]
                bears(lambda arguments=arguments: call(*arguments))  # type: ignore[misc]


def test_odd_values_for_memory() -> None:
    for value in ODD:
        bears(lambda value=value: GuestMemory(overcommit=value).close())  # type: ignore[misc]
        for option in ("name", "backing", "shared", "huge_pages"):
            with GuestMemory() as memory:
                bears(
                    lambda memory=memory, option=option, value=value: memory.add_ram(  # type: ignore[misc]
                        0, 0x1000, **{option: value}
                    )
                )
