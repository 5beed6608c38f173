"""IRET in protected mode and far RET, to the same ring or an outer one (SDM 2A IRET, 2B RET)."""

from __future__ import annotations

from functools import partial

from pykvm.emulate.events import unblock_nmi
from pykvm.emulate.fault import GP, NP, SS, Fault, UnsupportedError
from pykvm.emulate.segments import load, named
from pykvm.typed import TYPE_CHECKING
from pykvm.x86.registers import CR0, EFER, RFLAGS

if TYPE_CHECKING:
    from pykvm.emulate.refused import Operations, Refused
    from pykvm.emulate.segments import Entry

__all__ = ["RETURN_OPERATIONS"]

_CODE, _CONFORMING, _WRITABLE = 8, 4, 2
_FLAGS16 = (
    RFLAGS.CF | RFLAGS.PF | RFLAGS.AF | RFLAGS.ZF | RFLAGS.SF | RFLAGS.TF | RFLAGS.DF | RFLAGS.OF
) | RFLAGS.NT
_FLAGS32 = _FLAGS16 | RFLAGS.RF | RFLAGS.AC | RFLAGS.ID
_MASKS = {16: 0xFFFF, 32: 0xFFFF_FFFF, 64: (1 << 64) - 1}


class _Stack:
    """What is popped, while RSP itself stays as it is."""

    def __init__(self, at: Refused) -> None:
        self._at = at
        self._size = at.instruction.operand_bits
        self._mask = _MASKS[64 if at.bits == 64 else 32 if at.sregs.ss.db else 16]
        self.pointer: int = at.regs.rsp & self._mask

    def pop(self) -> int:
        size = self._size // 8
        linear = self._at.in_segment("ss", self.pointer, size, write=False)
        self.skip(size)
        return int.from_bytes(self._at.memory.read(linear, size), "little")

    def skip(self, count: int) -> None:
        self.pointer = (self.pointer + count) & self._mask

    def merged(self) -> int:
        """RSP with what was popped gone from it."""
        value: int = self._at.regs.rsp & ~self._mask | self.pointer
        return value


def _code(at: Refused, selector: int) -> Entry:
    """The code segment that a far return goes to."""
    selected = selector & ~3
    entry = named(at, selector)
    found, ring = entry.descriptor, selector & 3
    long = bool(at.sregs.efer & EFER.LMA)
    if not found.s or not found.type & _CODE or ring < at.cpl or (long and found.l and found.db):
        raise Fault(GP, selected)
    if found.dpl > ring if found.type & _CONFORMING else found.dpl != ring:
        raise Fault(GP, selected)
    if not found.present:
        raise Fault(NP, selected)
    return entry


def _stack_segment(at: Refused, selector: int, ring: int) -> Entry:
    """The stack segment of the outer ring."""
    selected = selector & ~3
    entry = named(at, selector)
    found = entry.descriptor
    data = found.s and not found.type & _CODE and found.type & _WRITABLE
    if not data or selector & 3 != ring or found.dpl != ring:
        raise Fault(GP, selected)
    if not found.present:
        raise Fault(SS, selected)
    return entry


def _check_target(at: Refused, entry: Entry, target: int) -> None:
    """Raise #GP(0) for a RIP that the new code segment does not reach."""
    if at.sregs.efer & EFER.LMA and entry.descriptor.l:
        if ((target >> 47) + 1) & 0x1FFFF > 1:
            raise Fault(GP)
    elif target > entry.descriptor.limit:
        raise Fault(GP)


def _drop_inner_segments(at: Refused, ring: int) -> None:
    """Null the data segment registers that the outer ring must not have (SDM 3A 5.8.6)."""
    for name in ("es", "fs", "gs", "ds"):
        register = getattr(at.sregs, name)
        conforming = register.type & _CODE and register.type & _CONFORMING
        if not register.unusable and register.dpl < ring and not conforming:
            register.selector = register.base = 0
            register.unusable = 1


def _go(at: Refused, target: int, selector: int, stack: _Stack, *, drop: int = 0) -> None:
    """Return to `selector`:`target`; `drop` bytes leave either stack."""
    ring = selector & 3
    code = _code(at, selector)
    _check_target(at, code, target)
    stack.skip(drop)
    if ring == at.cpl:
        load(at, "cs", selector, code)
        at.regs.rsp = stack.merged()
    else:
        pointer, outer = stack.pop(), stack.pop() & 0xFFFF
        segment = _stack_segment(at, outer, ring)
        load(at, "cs", selector, code)
        load(at, "ss", outer, segment)
        mask = _MASKS[64 if code.descriptor.l else 32 if segment.descriptor.db else 16]
        at.regs.rsp = (pointer + drop) & mask
        _drop_inner_segments(at, ring)
    at.regs.rip = target
    at.sregs_changed = at.jumped = True


def _iret(at: Refused) -> None:
    if not at.sregs.cr0 & CR0.PE or at.sregs.efer & EFER.LMA:
        raise UnsupportedError("IRET outside legacy protected mode")
    if at.regs.rflags & (RFLAGS.NT | RFLAGS.VM):
        raise UnsupportedError("IRET from a task or from virtual-8086 mode")
    stack = _Stack(at)
    target, selector, flags = stack.pop(), stack.pop() & 0xFFFF, stack.pop()
    if flags & RFLAGS.VM and at.instruction.operand_bits == 32 and not at.cpl:
        raise UnsupportedError("IRET to virtual-8086 mode")
    changed = _FLAGS32 if at.instruction.operand_bits == 32 else _FLAGS16
    if at.cpl <= (at.regs.rflags & RFLAGS.IOPL) >> 12:
        changed |= RFLAGS.IF
    if not at.cpl:
        changed |= RFLAGS.IOPL
        if at.instruction.operand_bits == 32:
            changed |= RFLAGS.VIF | RFLAGS.VIP
    _go(at, target, selector, stack)
    at.finish()
    at.set_flags(changed, flags)
    unblock_nmi(at)


def _retf(at: Refused, *, pops: bool) -> None:
    if not at.sregs.cr0 & CR0.PE or at.regs.rflags & RFLAGS.VM:
        raise UnsupportedError("RETF outside protected mode")
    stack = _Stack(at)
    target, selector = stack.pop(), stack.pop() & 0xFFFF
    _go(at, target, selector, stack, drop=at.instruction.immediate & 0xFFFF if pops else 0)


RETURN_OPERATIONS: Operations = {
    "cf": ("iret", _iret),
    "cb": ("retf", partial(_retf, pops=False)),
    "ca": ("retf", partial(_retf, pops=True)),
}
