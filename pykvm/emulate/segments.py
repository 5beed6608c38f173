"""Descriptors: looked at by LAR, LSL, VERR and VERW, loaded by far returns."""

from __future__ import annotations

from functools import partial

from pykvm.emulate.fault import GP, UD, Fault
from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple
from pykvm.x86.descriptors import SegmentDescriptor
from pykvm.x86.registers import CR0, EFER, RFLAGS

if TYPE_CHECKING:
    from typing import Any

    from pykvm.emulate.refused import Operations, Refused

__all__ = ["SEGMENT_OPERATIONS", "Entry", "load", "named"]

_CODE, _CONFORMING, _READABLE, _ACCESSED = 8, 4, 2, 1
# Types of system descriptors that LAR and LSL look at (SDM 2A, LAR and LSL).
_LAR_TYPES = {True: {2, 9, 11, 12}, False: {1, 2, 3, 4, 5, 9, 11, 12}}
_LSL_TYPES = {True: {2, 9, 11}, False: {1, 2, 3, 9, 11}}
_LAR_MASK = 0x00F0_FF00
# The hidden part of a segment register, by the names of both structs.
_HIDDEN = ("base", "limit", "type", "s", "dpl", "present", "avl", "l", "db", "g")


class Entry(NamedTuple):
    """A descriptor, where it lies (linear) and its second four bytes."""

    descriptor: SegmentDescriptor
    address: int
    high: int


def lookup(at: Refused, selector: int) -> Entry | None:
    """The descriptor that a selector names; None for a null one or one beyond its table."""
    table: Any = at.sregs.ldt if selector & 4 else at.sregs.gdt
    if not selector & ~3 or (selector & 4 and (table.unusable or not table.present)):
        return None
    place = selector & ~7
    if place + 7 > table.limit:
        return None
    address = table.base + place
    raw = at.memory.read_as_system(address, 8)
    long = bool(at.sregs.efer & EFER.LMA)
    if long and not raw[5] & 0x10 and place + 15 <= table.limit:
        raw += at.memory.read_as_system(address + 8, 8)
    padded = raw.ljust(16, b"\0")
    descriptor = SegmentDescriptor.decode(padded, long=long)
    return Entry(descriptor, address, int.from_bytes(raw[4:8], "little"))


def named(at: Refused, selector: int) -> Entry:
    """The descriptor that a selector names.  Raises #GP where `lookup` finds none."""
    entry = lookup(at, selector)
    if entry is None:
        raise Fault(GP, selector & ~3)
    return entry


def _selector(at: Refused) -> int:
    if not at.sregs.cr0 & CR0.PE or at.regs.rflags & RFLAGS.VM:
        raise Fault(UD)
    return at.load(16)


def _visible(at: Refused, selector: int, found: SegmentDescriptor) -> bool:
    """Whether privilege lets the guest look: CPL and RPL up to DPL, but for conforming code."""
    if found.s and found.type & _CODE and found.type & _CONFORMING:
        return True
    return max(at.cpl, selector & 3) <= found.dpl


def _look(at: Refused, *, limit: bool) -> None:
    """LAR, or with `limit` LSL."""
    selector = _selector(at)
    entry = lookup(at, selector)
    types = (_LSL_TYPES if limit else _LAR_TYPES)[bool(at.sregs.efer & EFER.LMA)]
    ok = entry is not None and (
        (entry.descriptor.s or entry.descriptor.type in types)
        and _visible(at, selector, entry.descriptor)
    )
    if ok:
        assert entry is not None
        value = entry.descriptor.limit if limit else entry.high & _LAR_MASK
        at.set(at.instruction.reg, at.instruction.operand_bits, value)
    at.set_flags(RFLAGS.ZF, RFLAGS.ZF if ok else 0)


def _verify(at: Refused, *, write: bool) -> None:
    """VERR, or with `write` VERW."""
    selector = _selector(at)
    entry = lookup(at, selector)
    ok = False
    if entry is not None and entry.descriptor.s and _visible(at, selector, entry.descriptor):
        kind = entry.descriptor.type
        code, second = bool(kind & _CODE), bool(kind & _READABLE)
        ok = (second and not code) if write else (second or not code)
    at.set_flags(RFLAGS.ZF, RFLAGS.ZF if ok else 0)


def load(at: Refused, name: str, selector: int, entry: Entry) -> None:
    """Put a descriptor into a segment register and mark it accessed, where it lies too."""
    kind = entry.descriptor.type | _ACCESSED
    if kind != entry.descriptor.type:
        at.memory.mark_as_system(entry.address + 5, entry.high >> 8 & 0xFF | _ACCESSED)
    register = getattr(at.sregs, name)
    for field in _HIDDEN:
        setattr(register, field, getattr(entry.descriptor, field))
    register.type = kind
    register.selector = selector
    register.unusable = 0


SEGMENT_OPERATIONS: Operations = {
    "0f 02": ("lar", partial(_look, limit=False)),
    "0f 03": ("lsl", partial(_look, limit=True)),
    "0f 00 /4": ("verr", partial(_verify, write=False)),
    "0f 00 /5": ("verw", partial(_verify, write=True)),
}
