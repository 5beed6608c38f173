"""Counting and isolating bits: POPCNT, and those of BMI1 of which Unicorn gets a flag wrong."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pykvm.emulate.fault import UD, Fault
from pykvm.x86.registers import RFLAGS

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.emulate.refused import Operations, Refused

__all__ = ["BIT_OPERATIONS"]

_STATUS = RFLAGS.CF | RFLAGS.PF | RFLAGS.AF | RFLAGS.ZF | RFLAGS.SF | RFLAGS.OF


def _popcnt(at: Refused) -> None:
    at.no_lock()
    bits = at.instruction.operand_bits
    value = at.load(bits)
    at.set(at.instruction.reg, bits, value.bit_count())
    at.set_flags(_STATUS, 0 if value else RFLAGS.ZF)


def _lowest(at: Refused, *, combine: Callable[[int], int], carry_if_zero: bool) -> None:
    """BLSR, BLSMSK and BLSI: something made of the lowest set bit (SDM 2A)."""
    if at.instruction.vex != 128:
        raise Fault(UD)
    bits = 64 if at.instruction.wide else 32
    source = at.load(bits)
    value = combine(source) & (1 << bits) - 1
    at.set(at.instruction.vvvv, bits, value)
    flags = RFLAGS.CF if (source == 0) == carry_if_zero else 0
    flags |= RFLAGS.ZF if not value else RFLAGS.SF if value >> (bits - 1) else 0
    at.set_flags(RFLAGS.CF | RFLAGS.ZF | RFLAGS.SF | RFLAGS.OF, flags)


BIT_OPERATIONS: Operations = {
    "f3 0f b8": ("popcnt", _popcnt),
    "vex 0f 38 f3 /1": (
        "blsr",
        partial(_lowest, combine=lambda value: value & (value - 1), carry_if_zero=True),
    ),
    "vex 0f 38 f3 /2": (
        "blsmsk",
        partial(_lowest, combine=lambda value: value ^ (value - 1), carry_if_zero=True),
    ),
    "vex 0f 38 f3 /3": (
        "blsi",
        partial(_lowest, combine=lambda value: value & -value, carry_if_zero=False),
    ),
}
