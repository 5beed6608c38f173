"""Instructions of 16- and 32-bit code, and ENTER with nesting (SDM 2A)."""

from __future__ import annotations

from functools import partial

from pykvm.emulate.fault import BR, UD, Fault
from pykvm.typed import TYPE_CHECKING
from pykvm.x86.registers import RFLAGS

if TYPE_CHECKING:
    from pykvm.emulate.refused import Operations, Refused

__all__ = ["LEGACY_OPERATIONS"]

_CF, _AF = RFLAGS.CF, RFLAGS.AF
_RESULT = RFLAGS.PF | RFLAGS.ZF | RFLAGS.SF


def _not_in_64_bits(at: Refused) -> None:
    at.no_lock()
    if at.bits == 64:
        raise Fault(UD)


def _result_flags(value: int) -> int:
    """PF, ZF and SF of a byte."""
    flags = 0 if value.bit_count() & 1 else RFLAGS.PF
    return flags | (0 if value else RFLAGS.ZF) | (RFLAGS.SF if value & 0x80 else 0)


def _decimal(at: Refused, *, sign: int) -> None:
    """DAA (`sign` 1) and DAS (-1)."""
    _not_in_64_bits(at)
    old, flags = at.regs.rax & 0xFF, at.regs.rflags
    value, carry, adjust = old, flags & _CF, 0
    if old & 0xF > 9 or flags & _AF:
        value += 6 * sign
        adjust = _AF
        # DAS borrows out of the byte here; DAA can carry only where the next step does so anyway.
        carry |= _CF if not 0 <= value <= 0xFF else 0
    if old > 0x99 or flags & _CF:
        value += 0x60 * sign
        carry = _CF
    value &= 0xFF
    at.regs.rax = at.regs.rax & ~0xFF | value
    at.set_flags(_CF | _AF | _RESULT, carry | adjust | _result_flags(value))


def _unpacked(at: Refused, *, sign: int) -> None:
    """AAA (`sign` 1) and AAS (-1)."""
    _not_in_64_bits(at)
    value = at.regs.rax & 0xFFFF
    adjusted = value & 0xF > 9 or bool(at.regs.rflags & _AF)
    if adjusted:
        value = (value + 0x106 * sign) & 0xFFFF
    at.set(0, 16, value & 0xFF0F)
    at.set_flags(_CF | _AF, _CF | _AF if adjusted else 0)


def _bound(at: Refused) -> None:
    _not_in_64_bits(at)
    bits = at.instruction.operand_bits
    size = bits // 8
    raw = at.read(2 * size)
    low = int.from_bytes(raw[:size], "little", signed=True)
    high = int.from_bytes(raw[size:], "little", signed=True)
    index = at.get(at.instruction.reg, bits)
    index -= (index >> (bits - 1)) << bits
    if not low <= index <= high:
        raise Fault(BR)


def _enter(at: Refused) -> None:
    """ENTER: a stack frame, with pointers to those of the procedures around it."""
    at.no_lock()
    size, level = at.instruction.immediate & 0xFFFF, at.instruction.immediate >> 16 & 31
    wide = at.bits == 64 and at.instruction.operand_bits != 16
    bits = 64 if wide else at.instruction.operand_bits
    stack_bits = 64 if at.bits == 64 else 32 if at.sregs.ss.db else 16
    mask = (1 << stack_bits) - 1
    step = bits // 8
    pointer, frame = at.regs.rsp & mask, at.regs.rbp & mask
    pushes: list[tuple[int, bytes]] = []

    def push(value: int) -> None:
        nonlocal pointer
        pointer = (pointer - step) & mask
        linear = at.in_segment("ss", pointer, step, write=True)
        at.memory.physical(linear, write=True)
        pushes.append((linear, (value & (1 << bits) - 1).to_bytes(step, "little")))

    push(at.regs.rbp)
    top = pointer
    for _ in range(1, level):
        frame = (frame - step) & mask
        linear = at.in_segment("ss", frame, step, write=False)
        push(int.from_bytes(at.memory.read(linear, step), "little"))
    if level:
        push(top)
    end = (pointer - size) & mask
    at.memory.physical(at.in_segment("ss", end, 1, write=True), write=True)
    for linear, data in pushes:
        at.memory.write(linear, data)
    at.set(5, bits, at.regs.rbp & ~mask | top)
    at.regs.rsp = at.regs.rsp & ~mask | end


LEGACY_OPERATIONS: Operations = {
    "27": ("daa", partial(_decimal, sign=1)),
    "2f": ("das", partial(_decimal, sign=-1)),
    "37": ("aaa", partial(_unpacked, sign=1)),
    "3f": ("aas", partial(_unpacked, sign=-1)),
    "62": ("bound", _bound),
    "c8": ("enter", _enter),
}
