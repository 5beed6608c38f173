"""Machines by hand in another one's state: memory and vCPUs, without devices; guests for that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm.vcpu.saved import VcpuState
from pykvm.vcpu.saving import show_all_events

if TYPE_CHECKING:
    from typing import Any

    from pykvm import Machine

__all__ = [
    "COUNTING",
    "ECHO",
    "EXIT_3",
    "FOUR_NOPS",
    "HALT",
    "IF",
    "PORT",
    "WAIT",
    "Log",
    "Saved",
    "changed",
    "differing",
    "saved",
]

PORT = 0x90
IF = 1 << 9

#: A number, one higher each time.
COUNTING = """
    FE C0        inc al
    E6 90        out 0x90, al
    EB FA        jmp $-4
"""
#: What is read is written.
ECHO = """
    E4 90        in al, 0x90
    E6 91        out 0x91, al
    EB FA        jmp $-4
"""
EXIT_3 = """
    B0 03        mov al, 3
    E6 F4        out 0xf4, al
"""
HALT = """
    FA           cli
    F4           hlt
    EB FD        jmp $-1
"""
FOUR_NOPS = "90 90 90 90   nop, four times"
WAIT = (
    """
    FB           sti
    F4           hlt
"""
    + EXIT_3
)


class Log:
    """What is written to it; reads count from 0."""

    name = "log"
    length = 2

    def __init__(self) -> None:
        self.written: list[int] = []
        self.read_so_far = 0

    def read(self, offset: int, size: int) -> int:
        self.read_so_far += 1
        return self.read_so_far - 1

    def write(self, offset: int, size: int, value: int) -> None:
        self.written.append(value)


class Saved:
    """The memory and the vCPUs of a machine, as they were."""

    def __init__(self, machine: Machine) -> None:
        vm = machine._board.vm
        assert vm is not None
        show_all_events(vm)
        for cpu in machine.vcpus:
            assert cpu.loop.settle(machine._runs.answers.take) is None
        self.vcpus = tuple(cpu.save() for cpu in machine.vcpus)
        self.memory = [
            (region.start, machine.memory.read(region.start, region.size))
            for region in machine.memory.regions
            if not region.readonly
        ]

    def load(self, machine: Machine) -> None:
        """Have a machine made like that one be in its state."""
        vm = machine._board.vm
        assert vm is not None
        show_all_events(vm)
        for start, content in self.memory:
            machine.memory.write(start, content)
        for cpu, state in zip(machine.vcpus, self.vcpus, strict=True):
            cpu.load(state)


def saved(machine: Machine) -> Saved:
    """What it is now."""
    return Saved(machine)


def differing(one: VcpuState, other: VcpuState) -> dict[str, tuple[object, object]]:
    """The fields in which two states differ, but for what runs on by itself."""
    one, other = one.at_rest(), other.at_rest()
    found: dict[str, tuple[object, object]] = {
        name: (getattr(one, name), getattr(other, name))
        for name in type(one).__fields__
        if getattr(one, name) != getattr(other, name)
    }
    if "msrs" in found:
        before, after = dict(one.msrs), dict(other.msrs)
        found["msrs"] = (
            {index: value for index, value in before.items() if after.get(index) != value},
            {index: value for index, value in after.items() if before.get(index) != value},
        )
    return found


def changed(state: VcpuState, **fields: Any) -> VcpuState:
    """The state with other fields."""
    return VcpuState(**{name: getattr(state, name) for name in VcpuState.__fields__} | fields)
