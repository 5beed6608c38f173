"""SYSCALL that jumps to LSTAR and stays in ring 3.

Where ring 3 runs natively and ring 0 does not, the processor's own SYSCALL may lead to the guest's
LSTAR without KVM taking part.  RCX, R11, RIP and the flags are right then, and CS, SS and so the
privilege are not.  A kernel keeps that page from ring 3: the fetch is a page fault, and the #PF
handler finds a frame that no processor would have made.  `pykvm._core` (syscall.c) waits there, at
a breakpoint, and does the rest of what SYSCALL should have done.

What it cannot do: give the guest the RFLAGS.IF of ring 3 in R11 (the host's is there, always 1),
leave CR2 alone, refuse SYSCALL where EFER.SCE is clear, or help where LSTAR's page is ring 3's.
"""

from __future__ import annotations

from pykvm.quirks.probe_vm import HLT, KERNEL, beginning
from pykvm.quirks.quirk import Quirk
from pykvm.quirks.signs import LSTAR, STAR, SYSCALL_MASK
from pykvm.typed import TYPE_CHECKING
from pykvm.x86.descriptors import CODE64
from pykvm.x86.registers import EFER

if TYPE_CHECKING:
    from pykvm.quirks.probe_vm import ProbeVM

__all__ = ["QUIRK", "selector_of"]

PAGE_FAULT = 14
SYSCALL = bytes.fromhex("0F05")


def selector_of(star: int) -> int:
    """The CS that SYSCALL loads; SS is the next selector (SDM 2B, SYSCALL)."""
    return star >> 32 & 0xFFFC


def _stays_in_ring_3(vm: ProbeVM) -> bool:
    vm.memory.write(KERNEL, HLT)
    vm.cpu.kvm.set_msrs({STAR: CODE64 << 32, LSTAR: KERNEL, SYSCALL_MASK: 0})
    stop = vm.run(SYSCALL, 3, {"efer": beginning(3).efer | EFER.SCE})
    return stop.vector == PAGE_FAULT and stop.state.cr2 == KERNEL


QUIRK = Quirk(
    "syscall",
    "SYSCALL in ring 3 jumps to LSTAR without entering ring 0",
    _stays_in_ring_3,
    "a breakpoint on the guest's #PF handler, where pykvm enters ring 0",
    "an exit for each SYSCALL and each page fault of the guest",
)
