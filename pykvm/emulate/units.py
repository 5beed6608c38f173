"""Which instructions may go to Unicorn, and what they need: the part of the processor they use.

It is a list of what may, not of what may not: what is left out could do anything to the machine
(I/O, control registers), is done wrong (Unicorn takes AVX for SSE), or is not known to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pykvm.frozen import NamedTuple
from pykvm.x86.decode import MAP_0F, MAP_0F3A, MAP_0F38, ONE_BYTE, opcodes
from pykvm.x86.registers import RFLAGS

if TYPE_CHECKING:
    from pykvm.x86.decode import Instruction

__all__ = ["Unit", "unit_of"]


class Unit(NamedTuple):
    """`kind` of state that an instruction uses beside general registers and memory.

    `aligned`: an operand in memory has to be aligned to 16 bytes.  `signals`: it sets the exception
    flags of x87 or MXCSR, which Unicorn does not.  `mmx` is the MMX register that it writes to,
    `cleared` what it clears of RFLAGS and Unicorn leaves, `short` the size in bytes of an operand
    in memory of which Unicorn would read too much.  `undefined` is a form that there is not, and
    that Unicorn would do all the same.
    """

    kind: Literal["general", "x87", "mmx", "sse"]
    aligned: bool = False
    signals: bool = False
    mmx: int | None = None
    cleared: int = 0
    short: int = 0
    undefined: bool = False


_GENERAL = Unit("general")
_X87 = Unit("x87", signals=True)
# Operands in memory of which Unicorn reads all that fits the register: by map, opcode and prefix.
_SHORT = {
    (MAP_0F, 0x2C, 0): 8,
    (MAP_0F, 0x2D, 0): 8,
    (MAP_0F, 0x5A, 0): 8,
    (MAP_0F, 0xE6, 0xF3): 8,
    (MAP_0F, 0x60, 0): 4,
    (MAP_0F, 0x61, 0): 4,
    (MAP_0F, 0x62, 0): 4,
    (MAP_0F3A, 0x0A, 0x66): 4,
    (MAP_0F3A, 0x0B, 0x66): 8,
}
_X87_COMPARISON = Unit("x87", signals=True, cleared=RFLAGS.AF | RFLAGS.SF | RFLAGS.OF)

# SDM 2 tables.  Columns of map 0F: with MMX registers (no prefix), with XMM registers.
_MMX_0F = opcodes("60-6b 6e-76 7e 7f c4 c5 d1-d5 d7-e5 e7-ef f1-fe")
_SSE_0F = opcodes("10-17 28-2f 50-76 7c-7f c2 c4-c6 d0-fe")
_SSE_0F38 = opcodes("00-0b 10 14 15 17 1c-1e 20-25 28-2b 30-35 37-41 db-df")
_MMX_0F38 = opcodes("00-0b 1c-1e")
_SSE_0F3A = opcodes("08-0f 14-17 20-22 40-42 44 60-63 df")

# Of these the operand in memory is smaller than 16 bytes, or may lie anywhere.
_LOOSE_0F = opcodes("10-17 2a 2c-2f 6e 7e c4 c5 d6 f0")
_LOOSE_0F38 = opcodes("20-25 30-35")
_LOOSE_0F3A = opcodes("0a 0b 14-17 20-22 60-63")
_REPEATED_ALIGNED = {(0x12, 0xF3), (0x16, 0xF3), (0x70, 0xF3), (0x70, 0xF2), (0x5B, 0xF3)} | {
    (0x7C, 0xF2),
    (0x7D, 0xF2),
    (0xD0, 0xF2),
    (0xE6, 0xF2),
}
# BMI1 and BMI2, the only ones with VEX.
_BMI = {MAP_0F38: opcodes("f2 f3 f5-f7"), MAP_0F3A: opcodes("f0")}
# Floating-point arithmetic, comparison and conversion.
_SIGNALLING_0F = opcodes("2a 2c-2f 51 58-5f 7c 7d c2 d0 e6")
_SIGNALLING_0F3A = opcodes("08-0b 40 41")
# What writes to a general register, to memory or to nothing, of those with MMX registers.
_NO_MMX_RESULT_0F = opcodes("7e c5 d7 e7")


# Forms that Unicorn does though they are undefined, by map, opcode and prefix: with a register for
# what takes memory alone (MOVLPD, MOVHPD, MOVBE), and the other way round (MOVMSKPS and MOVMSKPD,
# shifts by a constant, MOVDQ2Q and MOVQ2DQ).
_MEMORY_ALONE = {
    (MAP_0F, 0x12, 0x66),
    (MAP_0F, 0x16, 0x66),
    *((MAP_0F38, opcode, prefix) for opcode in (0xF0, 0xF1) for prefix in (0, 0x66)),
}
_REGISTER_ALONE = {
    *((MAP_0F, opcode, prefix) for opcode in (0x50, 0x71, 0x72, 0x73) for prefix in (0, 0x66)),
    *((MAP_0F, 0xD6, prefix) for prefix in (0xF2, 0xF3)),
}


def unit_of(instruction: Instruction) -> Unit | None:
    """What Unicorn needs for the instruction, None if it is not to have it."""
    unit = _unit_of(instruction)
    if unit is None or instruction.vex:
        return unit
    form = instruction.map, instruction.opcode, instruction.prefix
    if form in (_MEMORY_ALONE if instruction.memory is None else _REGISTER_ALONE):
        return unit._replace(undefined=True)
    return unit


def _unit_of(instruction: Instruction) -> Unit | None:
    map_, opcode, prefix = instruction.map, instruction.opcode, instruction.prefix
    if instruction.lock:
        return None
    if instruction.vex:
        bmi = opcode in _BMI.get(map_, ()) and instruction.vex == 128
        return _GENERAL if bmi else None
    if map_ == ONE_BYTE:
        if opcode in (0xDB, 0xDF) and instruction.memory is None and instruction.digit in (5, 6):
            return _X87_COMPARISON  # FCOMI and its siblings
        return _X87 if 0xD8 <= opcode <= 0xDF else None
    if map_ == MAP_0F:
        if not prefix and opcode in _MMX_0F:
            short = _SHORT.get((map_, opcode, prefix), 0)
            return Unit("mmx", mmx=_mmx_result(instruction), short=short)
        if opcode not in _SSE_0F:
            return None
        return Unit(
            "sse",
            aligned=_aligned(opcode, prefix),
            signals=opcode in _SIGNALLING_0F,
            mmx=_mmx_result(instruction),
            short=_SHORT.get((map_, opcode, prefix), 0),
        )
    if map_ == MAP_0F38:
        if opcode in (0xF0, 0xF1) or (opcode == 0xF6 and prefix in (0x66, 0xF3)):
            return _GENERAL
        if not prefix:
            return Unit("mmx", mmx=instruction.digit) if opcode in _MMX_0F38 else None
        known = prefix == 0x66 and opcode in _SSE_0F38
        return Unit("sse", aligned=opcode not in _LOOSE_0F38) if known else None
    if not prefix:
        return Unit("mmx", mmx=instruction.digit) if opcode == 0x0F else None
    if prefix != 0x66 or opcode not in _SSE_0F3A:
        return None
    return Unit(
        "sse",
        aligned=opcode not in _LOOSE_0F3A,
        signals=opcode in _SIGNALLING_0F3A,
        short=_SHORT.get((map_, opcode, prefix), 0),
    )


def _mmx_result(instruction: Instruction) -> int | None:
    """The MMX register that an instruction of map 0F writes to, if it does."""
    opcode, prefix = instruction.opcode, instruction.prefix
    converted = opcode in (0x2C, 0x2D) and prefix in (0, 0x66)
    moved = opcode == 0xD6 and prefix == 0xF2
    if converted or moved:
        return instruction.digit
    if prefix or opcode not in _MMX_0F or opcode in _NO_MMX_RESULT_0F:
        return None
    if opcode == 0x7F or opcode in (0x71, 0x72, 0x73):
        return instruction.rm & 7 if instruction.memory is None else None
    return instruction.digit


def _aligned(opcode: int, prefix: int) -> bool:
    """Whether an SSE instruction of map 0F takes 16 aligned bytes (SDM 2A, exception classes)."""
    if prefix in (0xF2, 0xF3):
        return (opcode, prefix) in _REPEATED_ALIGNED
    if opcode == 0x5A:
        return prefix == 0x66
    return opcode not in _LOOSE_0F
