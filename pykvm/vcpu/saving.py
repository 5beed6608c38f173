"""`CPU.save` and `CPU.load`."""

from __future__ import annotations

from pykvm.errors import ConfigError, StateError
from pykvm.kvm.uapi import KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_X86_TRIPLE_FAULT_EVENT
from pykvm.typed import TYPE_CHECKING
from pykvm.vcpu.msr_list import IA32_TSC, IA32_TSC_ADJUST
from pykvm.vcpu.saved import VcpuState

if TYPE_CHECKING:
    from pykvm.kvm import VM
    from pykvm.vcpu.cpu import CPU

__all__ = ["at_one_time", "load", "save", "show_all_events"]

_HIGHEST_CR8 = 15


def show_all_events(vm: VM) -> None:
    """Have this VM's vCPUs show exceptions that wait and a triple fault apart from those injected.

    To be called before the first `save` or `load` of a VM's vCPUs.  Without, CR2 and DR6 change
    when the events are asked for (api.rst 7.9), and a triple fault that waits is lost.
    """
    for capability in (KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_X86_TRIPLE_FAULT_EVENT):
        if vm.check_extension(capability):
            vm.enable_cap(capability, 1)


def _check_idle(cpu: CPU) -> None:
    cpu.engine.check_open()
    if cpu.engine.is_here or cpu.engine.is_elsewhere:
        raise StateError(
            f"vCPU {cpu.index} is running: its state can be neither saved nor loaded",
            hint="do it between two runs",
        )


def save(cpu: CPU) -> VcpuState:
    """See `CPU.save`."""
    _check_idle(cpu)
    engine, loop = cpu.engine, cpu.loop
    halted = loop.halted
    pending = loop.pending
    if pending is not None and not pending.exit.taken:
        from pykvm.exits import Hlt

        if not isinstance(pending.exit, Hlt):
            raise StateError(
                f"{pending.exit!r} has not been dealt with: the access would be lost",
                hint="answer or take it, or ask for the next exit",
            )
        halted = True
    exit = engine.run_page.current
    if exit is not None and exit.awaits_answer and not exit.taken:
        raise StateError(
            f"{exit!r} waits for an answer",
            hint="answer it first; after take() a read gives all ones",
        )
    if engine.settle():
        raise StateError(
            f"vCPU {cpu.index} is in the middle of an instruction: it has to access a device first",
            hint="run the machine on, or have `Loop.settle` carry it out",
        )
    fields = engine.save()
    debug = loop.debug
    return VcpuState(
        **fields,
        parked=cpu.parked,
        halted=halted,
        at_breakpoint=debug is not None and debug.hit is not None,
    )


def at_one_time(states: tuple[VcpuState, ...]) -> tuple[VcpuState, ...]:
    """The same states of a machine's vCPUs, with their TSCs at one time.

    Where KVM moves the TSC offsets, a vCPU's TSC stands at its last exit, and catches up when it is
    entered again: the newest shows where they all would be.
    """
    if any(state.tsc_offset is not None for state in states):
        return states
    tables = [dict(state.msrs) for state in states]
    shared = [table.get(IA32_TSC, 0) - table.get(IA32_TSC_ADJUST, 0) for table in tables]
    newest = shared[0]
    for other in shared:
        # They count modulo 2**64.
        if (other - newest) % (1 << 64) < 1 << 63:
            newest = other
    return tuple(
        state.__replace__(msrs=tuple((table | {IA32_TSC: _tsc(table, newest)}).items()))
        if IA32_TSC in table
        else state
        for state, table in zip(states, tables, strict=True)
    )


def _tsc(msrs: dict[int, int], shared: int) -> int:
    return (shared + msrs.get(IA32_TSC_ADJUST, 0)) % (1 << 64)


def load(cpu: CPU, state: VcpuState, tsc_offset: int | None = None) -> None:
    """See `CPU.load`, and `Engine.load` for the TSC offset."""
    _check_idle(cpu)
    if state.cr8 > _HIGHEST_CR8:
        raise ConfigError(f"the state of a vCPU has CR8 = {state.cr8:#x}")
    engine, memory = cpu.engine, cpu.memory
    overwritten = [
        (address, memory.read(address, size))
        for address, size in engine.overwrites(state)
        if memory.is_ram(address, size)
    ]
    engine.load(state, tsc_offset)
    for address, content in overwritten:
        memory.write(address, content)
    cpu.parked = state.parked
    cpu.loop.load(halted=state.rip if state.halted else None)
    if cpu.loop.debug is not None:
        cpu.loop.debug.hit = cpu.state.linear_rip if state.at_breakpoint else None
    elif state.at_breakpoint:
        cpu.debug.hit = cpu.state.linear_rip
