"""Paging without long mode, which some KVMs do not have: with 32-bit entries, and PAE's of 64 bits.

The MOV CR0 that turns it on raises #GP there, though a processor takes it; a guest without a
handler for that ends in a triple fault at an instruction that is right.
"""

from __future__ import annotations

from struct import pack

from pykvm.exits import Hlt
from pykvm.quirks.quirk import Quirk
from pykvm.typed import TYPE_CHECKING
from pykvm.x86.entry import protected_mode
from pykvm.x86.registers import CR0, CR4, EFER
from pykvm.x86.state import Mode

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.quirks.probe_vm import ProbeVM
    from pykvm.x86.state import CpuState

__all__ = ["PAE", "TWO_LEVEL", "refused_paging"]

# Where the tables go, in ring 0's pages.
_TABLE, _DIRECTORY = 0xB000, 0xC000
_PRESENT, _LARGE_PAGE = 0x1, 0x83
_GDT = 0x4000

MOV_CR0 = b"\x0f\x22"


def _probe(cr4: int) -> Callable[[ProbeVM], bool]:
    def fails(vm: ProbeVM) -> bool:
        from pykvm.quirks.probe_vm import KERNEL, STACK_TOP

        if cr4 & CR4.PAE:
            vm.memory.write(_TABLE, pack("<4Q", _DIRECTORY | _PRESENT, 0, 0, 0))
            vm.memory.write(_DIRECTORY, pack("<Q", _LARGE_PAGE))
        else:
            vm.memory.write(_TABLE, pack("<I", _LARGE_PAGE))
        state = protected_mode(eip=KERNEL, esp=STACK_TOP, gdt_base=_GDT)
        state.cr3, state.cr4 = _TABLE, cr4
        state.rax = state.cr0 | CR0.PG
        return not isinstance(vm.run_from(state, MOV_CR0 + b"\xc0").exit, Hlt)

    return fails


TWO_LEVEL = Quirk(
    "32-bit-paging",
    "KVM does not support 32-bit paging: the MOV CR0 that turns it on is #GP",
    _probe(CR4.PSE),
)
PAE = Quirk(
    "pae-paging",
    "KVM does not support PAE paging: the MOV CR0 that turns it on is #GP",
    _probe(CR4.PAE),
)


def refused_paging(state: CpuState, code: bytes) -> Quirk | None:
    """The quirk that a guest in `state`, about to execute `code`, meets if the host has it.

    None for one that neither uses such paging nor turns it on as a processor would let it.
    """
    paged = state.cr0 & CR0.PG
    if code.startswith(MOV_CR0) and len(code) > len(MOV_CR0) and not paged:
        modrm = code[len(MOV_CR0)]
        number = modrm & 7
        if modrm & 0x38 == 0 and state.mode is Mode.PROTECTED and state.cpl == 0:
            names = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi")
            paged = getattr(state, names[number]) & CR0.PG
    if not paged or state.efer & EFER.LME:
        return None
    return PAE if state.cr4 & CR4.PAE else TWO_LEVEL
