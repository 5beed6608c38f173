"""What this host's KVM really does, found out by running tiny guests."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pykvm.errors import PykvmError
from pykvm.machine import Machine
from pykvm.x86.state import SegmentRegister

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.result import Result

__all__ = ["PROBES", "Probe", "Verdict"]

_TIMEOUT = 2.0
_CODE = 42

# mov al, 42; out 0xf4, al: the same bytes in every mode.
_EXIT = bytes.fromhex("B02A E6F4")

# Each in a 2 MiB page of its own, so that one can be ring 3's and the other not.
_USER, _KERNEL = 0x20_0000, 0x40_0000
_SYSCALL = bytes.fromhex("0F05")
_ENTRY = bytes.fromhex(
    "8CC8"  # mov eax, cs
    "2403"  # and al, 3
    "E6F4"  # out 0xf4, al
)
_MSR_STAR, _MSR_LSTAR, _MSR_SYSCALL_MASK = 0xC000_0081, 0xC000_0082, 0xC000_0084
_EFER_SCE = 1
_PTE_USER = 1 << 2


class Verdict(NamedTuple):
    """What a probe found; `detail` tells what happens instead."""

    works: bool
    detail: str = ""


class Probe(NamedTuple):
    """A question, and how it is put to the host."""

    name: str
    ask: Callable[[], Verdict]

    def __call__(self) -> Verdict:
        """Ask; what fails for whatever reason does not work."""
        try:
            return self.ask()
        except PykvmError as error:
            return Verdict(False, error.message)


def _runs_in(mode: str) -> Callable[[], Verdict]:
    def ask() -> Verdict:
        with Machine(_EXIT, memory="8M", mode=mode, load_address=0x7C00) as machine:
            return _judge(machine.run(timeout=_TIMEOUT), _CODE)

    return ask


def _syscall() -> Verdict:
    with Machine(_SYSCALL, memory="8M", mode="long", load_address=_USER) as machine:
        cpu = machine.vcpus[0]
        machine.memory.write(_KERNEL, _ENTRY)
        for level in cpu.walk(_USER).levels:
            machine.memory.write_u64(level.address, level.entry | _PTE_USER)
        state = cpu.state
        kernel_cs = state.cs.selector
        state.cs = _flat(kernel_cs | 3, 0xB, l=1)
        state.ss = _flat(state.ss.selector | 3, 0x3, db=1)
        state.efer |= _EFER_SCE
        cpu.state = state
        cpu.kvm.set_msrs({_MSR_STAR: kernel_cs << 32, _MSR_LSTAR: _KERNEL, _MSR_SYSCALL_MASK: 0})
        # Ring 0 can execute LSTAR's page and write to the port, ring 3 neither: it dies of it.
        verdict = _judge(machine.run(timeout=_TIMEOUT), 0)
        state = cpu.state
        if not verdict.works and (state.rip, state.cpl) == (_KERNEL, 3):
            return Verdict(False, "it jumps to LSTAR and stays in ring 3")
        return verdict


def _tsc_offset() -> Verdict:
    with Machine(memory="1M", irqchip="none") as machine:
        movable = machine.clock.tsc_movable
    detail = "" if movable else "it is accepted and forgotten: guests read the host's TSC"
    return Verdict(movable, detail)


def _flat(selector: int, kind: int, *, l: int = 0, db: int = 0) -> SegmentRegister:  # noqa: E741
    return SegmentRegister(
        limit=0xFFFF_FFFF, selector=selector, type=kind, present=1, dpl=3, s=1, g=1, l=l, db=db
    )


def _judge(result: Result, expected: int) -> Verdict:
    works = result.exit_code == expected
    return Verdict(works, "" if works else result.sentence)


PROBES = (
    Probe("a guest runs in real mode", _runs_in("real")),
    Probe("a guest runs in protected mode", _runs_in("protected")),
    Probe("a guest runs in long mode", _runs_in("long")),
    Probe("SYSCALL in ring 3 enters ring 0", _syscall),
    Probe("a TSC offset is kept", _tsc_offset),
)
