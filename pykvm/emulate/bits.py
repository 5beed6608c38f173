"""Arithmetic on general registers: POPCNT, BMI1, BMI2, ADX, CRC32 and MOVBE (SDM 2)."""

from __future__ import annotations

from functools import partial

from pykvm.emulate.fault import UD, Fault
from pykvm.typed import TYPE_CHECKING
from pykvm.x86.registers import RFLAGS

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.emulate.refused import Operations, Refused

__all__ = ["BIT_OPERATIONS"]

_CF, _OF, _ZF, _SF = RFLAGS.CF, RFLAGS.OF, RFLAGS.ZF, RFLAGS.SF
_STATUS = _CF | RFLAGS.PF | RFLAGS.AF | _ZF | _SF | _OF
_LOGICAL = _CF | _ZF | _SF | _OF
_CRC32C = 0x82F63B78  # the polynomial 11EDC6F41H, bits reversed


def _popcnt(at: Refused) -> None:
    at.no_lock()
    bits = at.instruction.operand_bits
    value = at.load(bits)
    at.set(at.instruction.reg, bits, value.bit_count())
    at.set_flags(_STATUS, 0 if value else _ZF)


def _movbe(at: Refused, *, store: bool) -> None:
    at.no_lock()
    bits = at.instruction.operand_bits
    if at.instruction.memory is None:
        raise Fault(UD)
    if store:
        at.write(at.get(at.instruction.reg, bits).to_bytes(bits // 8, "big"))
    else:
        at.set(at.instruction.reg, bits, int.from_bytes(at.read(bits // 8), "big"))


def _crc32(at: Refused, *, byte: bool) -> None:
    at.no_lock()
    instruction = at.instruction
    bits = 8 if byte else instruction.operand_bits
    # F2 selects the instruction, so 66 has no part in `prefix`; it makes the operand 16 bits.
    data = _byte(at) if byte else at.load(bits)
    value = at.get(instruction.reg, 32)
    for shift in range(0, bits, 8):
        value ^= data >> shift & 0xFF
        for _ in range(8):
            value = value >> 1 ^ (_CRC32C if value & 1 else 0)
    at.set(instruction.reg, 64 if at.bits == 64 else 32, value)


def _byte(at: Refused) -> int:
    """A byte in ModRM.rm, which may be AH to BH where there is no REX."""
    instruction = at.instruction
    if instruction.memory is not None:
        return at.read(1)[0]
    high = 4 <= instruction.rm < 8 and not instruction.rex
    return at.register(instruction.rm & 3 if high else instruction.rm) >> (8 if high else 0) & 0xFF


def _add_carry(at: Refused, *, flag: int) -> None:
    """ADCX and ADOX: an addition through one flag alone."""
    at.no_lock()
    bits = 64 if at.instruction.wide else 32
    total = at.get(at.instruction.reg, bits) + at.load(bits) + bool(at.regs.rflags & flag)
    at.set(at.instruction.reg, bits, total & (1 << bits) - 1)
    at.set_flags(flag, flag if total >> bits else 0)


def _bits(at: Refused) -> int:
    """The operand size of an instruction with VEX.  Raises #UD for vectors of 256 bits."""
    if at.instruction.vex != 128:
        raise Fault(UD)
    return 64 if at.instruction.wide else 32


def _logical(value: int, bits: int) -> int:
    """ZF and SF of a result."""
    return (0 if value else _ZF) | (_SF if value >> (bits - 1) else 0)


def _andn(at: Refused) -> None:
    bits = _bits(at)
    value = ~at.get(at.instruction.vvvv, bits) & at.load(bits)
    at.set(at.instruction.reg, bits, value)
    at.set_flags(_LOGICAL, _logical(value, bits))


def _lowest(at: Refused, *, combine: Callable[[int], int], carry_if_zero: bool) -> None:
    """BLSR, BLSMSK and BLSI: something made of the lowest set bit."""
    bits = _bits(at)
    source = at.load(bits)
    value = combine(source) & (1 << bits) - 1
    at.set(at.instruction.vvvv, bits, value)
    carry = _CF if (source == 0) == carry_if_zero else 0
    at.set_flags(_LOGICAL, carry | _logical(value, bits))


def _bextr(at: Refused) -> None:
    bits = _bits(at)
    control = at.get(at.instruction.vvvv, bits)
    start, length = control & 0xFF, control >> 8 & 0xFF
    value = at.load(bits) >> start & (1 << length) - 1
    at.set(at.instruction.reg, bits, value)
    at.set_flags(_CF | _ZF | _OF, 0 if value else _ZF)


def _bzhi(at: Refused) -> None:
    bits = _bits(at)
    index = at.get(at.instruction.vvvv, bits) & 0xFF
    value = at.load(bits) & (1 << index) - 1
    at.set(at.instruction.reg, bits, value)
    at.set_flags(_LOGICAL, (_CF if index >= bits else 0) | _logical(value, bits))


def _pdep(at: Refused) -> None:
    bits = _bits(at)
    source, mask, value = at.get(at.instruction.vvvv, bits), at.load(bits), 0
    while mask:
        lowest = mask & -mask
        value |= lowest if source & 1 else 0
        source >>= 1
        mask ^= lowest
    at.set(at.instruction.reg, bits, value)


def _pext(at: Refused) -> None:
    bits = _bits(at)
    source, mask, value, to = at.get(at.instruction.vvvv, bits), at.load(bits), 0, 1
    while mask:
        lowest = mask & -mask
        value |= to if source & lowest else 0
        to <<= 1
        mask ^= lowest
    at.set(at.instruction.reg, bits, value)


def _mulx(at: Refused) -> None:
    bits = _bits(at)
    product = at.get(2, bits) * at.load(bits)
    at.set(at.instruction.vvvv, bits, product)
    at.set(at.instruction.reg, bits, product >> bits)  # it stays where both are the same register


def _rorx(at: Refused) -> None:
    bits = _bits(at)
    value, count = at.load(bits), at.instruction.immediate & bits - 1
    at.set(at.instruction.reg, bits, value >> count | value << (bits - count))


def _shift(at: Refused, *, way: Callable[[int, int, int], int]) -> None:
    bits = _bits(at)
    count = at.get(at.instruction.vvvv, bits) & bits - 1
    at.set(at.instruction.reg, bits, way(at.load(bits), count, bits))


def _right_signed(value: int, count: int, bits: int) -> int:
    return (value - (value >> (bits - 1) << bits)) >> count


BIT_OPERATIONS: Operations = {
    "f3 0f b8": ("popcnt", _popcnt),
    **{f"{prefix}0f 38 f0": ("movbe", partial(_movbe, store=False)) for prefix in ("", "66 ")},
    **{f"{prefix}0f 38 f1": ("movbe", partial(_movbe, store=True)) for prefix in ("", "66 ")},
    "f2 0f 38 f0": ("crc32", partial(_crc32, byte=True)),
    "f2 0f 38 f1": ("crc32", partial(_crc32, byte=False)),
    "66 0f 38 f6": ("adcx", partial(_add_carry, flag=_CF)),
    "f3 0f 38 f6": ("adox", partial(_add_carry, flag=_OF)),
    "vex 0f 38 f2": ("andn", _andn),
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
    "vex 0f 38 f5": ("bzhi", _bzhi),
    "vex f3 0f 38 f5": ("pext", _pext),
    "vex f2 0f 38 f5": ("pdep", _pdep),
    "vex f2 0f 38 f6": ("mulx", _mulx),
    "vex 0f 38 f7": ("bextr", _bextr),
    "vex 66 0f 38 f7": ("shlx", partial(_shift, way=lambda value, count, bits: value << count)),
    "vex f3 0f 38 f7": ("sarx", partial(_shift, way=_right_signed)),
    "vex f2 0f 38 f7": ("shrx", partial(_shift, way=lambda value, count, bits: value >> count)),
    "vex f2 0f 3a f0": ("rorx", _rorx),
}
