"""Machines by hand in another one's state: memory and vCPUs, without devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm.vcpu.saving import show_all_events

if TYPE_CHECKING:
    from pykvm import Machine
    from pykvm.vcpu.saved import VcpuState

__all__ = ["Saved", "differing", "saved"]


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
