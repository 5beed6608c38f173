"""When to ask whether this host has the quirks with a workaround: once the guest may meet them.

SYSCALL and INT n come from ring 3, and a guest that has one sets LSTAR before, or loads an IDT in
64-bit mode.  One that does neither is spared the probes, which take as long as its whole run may.
"""

from __future__ import annotations

from _thread import allocate_lock
from functools import partial

from pykvm.errors import KVMError
from pykvm.kvm.uapi import KVM_EXIT_SHUTDOWN, KVM_EXIT_X86_WRMSR
from pykvm.typed import TYPE_CHECKING
from pykvm.x86.registers import EFER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pykvm.exits import Exit, WrMsr
    from pykvm.vcpu import CPU
    from pykvm.vcpu.msr_exits import MsrExits
    from pykvm.vcpu.saved import VcpuState

__all__ = [
    "LSTAR",
    "MSRS",
    "OCCASIONS",
    "OWNER",
    "STAR",
    "SYSCALL_MASK",
    "Signs",
    "shown_by",
    "write_msr",
]

#: Whose breakpoints and MSR exits they are.
OWNER = "quirks"
STAR, LSTAR, SYSCALL_MASK = 0xC000_0081, 0xC000_0082, 0xC000_0084
#: What says where SYSCALL leads (SDM 4 table 2-2).
MSRS = (STAR, LSTAR, SYSCALL_MASK)
#: So many exits in a row are an occasion to look at a guest.
OCCASIONS = 64

# The end of the gate of #UD, the lower one of the two vectors that matter, in an IDT of gates of 16
# bytes (SDM 3A 6.14.1).
_IDT_LIMIT = 7 * 16 - 1


class Signs:
    """Looks at the vCPUs of one machine until one shows that the guest may meet a quirk."""

    def __init__(
        self,
        cpus: Sequence[CPU],
        msr_exits: MsrExits,
        ask: Callable[[CPU], None],
        *,
        watched: bool = False,
    ) -> None:
        """`ask` is called at the first sign, in the thread of the vCPU that shows it.

        With `watched`, writes of `MSRS` exit already.
        """
        self._msr_exits = msr_exits
        self._ask = ask
        self._lock = allocate_lock()
        #: Whether the loop that began last is one by hand.
        self.by_hand = not watched
        for cpu in cpus:
            cpu.loop.on_begin = partial(self._begin, cpu)

    def _begin(self, cpu: CPU, pykvm: bool) -> None:
        """A loop begins, of pykvm's (`pykvm`) or by hand, which sees no exit of ours."""
        with self._lock:
            if self.by_hand == pykvm:
                self._msr_exits.ask(OWNER, writes=MSRS if pykvm else ())
                self.by_hand = not pykvm
        if pykvm:
            cpu.engine.core.watched, cpu.engine.core.watched_idt = OCCASIONS, _IDT_LIMIT
            self.look(cpu)

    def look(self, cpu: CPU) -> None:
        """An occasion to see whether the guest has an IDT in 64-bit mode."""
        sregs = cpu.engine.sync_regs().sregs
        if _has_idt64(sregs.efer, sregs.idt.limit):
            self._ask(cpu)

    def take(self, cpu: CPU, exit: Exit) -> None:
        """The guest says where SYSCALL is to lead, or may have made one without an IDT."""
        reason = exit.reason
        to_lstar = reason == KVM_EXIT_X86_WRMSR and getattr(exit, "index", 0) in MSRS
        if to_lstar or reason == KVM_EXIT_SHUTDOWN:
            self._ask(cpu)


def shown_by(cpus: Iterable[VcpuState]) -> bool:
    """Whether one of these states has an IDT in 64-bit mode."""
    return any(_has_idt64(cpu.efer, cpu.idt_limit) for cpu in cpus)


def _has_idt64(efer: int, limit: int) -> bool:
    return bool(efer & EFER.LMA) and limit >= _IDT_LIMIT


def write_msr(cpu: CPU, exit: WrMsr) -> bool:
    """Do what the guest wanted to; False if it gets #GP for it."""
    try:
        cpu.kvm.set_msrs({exit.index: exit.value})
    except KVMError:
        exit.fail()
        return False
    exit.accept()
    return True
