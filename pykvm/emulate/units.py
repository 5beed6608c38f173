"""Which instructions may run on the processor here (`native`), and what their operands are.

It is a list of what may, not of what may not.  Left out is what could do more than compute: control
registers of x87 and SSE, memory that is addressed in another way than by ModRM (MASKMOVQ, gathers),
masked moves, and all that changes the flow of control.
"""

from __future__ import annotations

from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple
from pykvm.x86.decode import MAP_0F, MAP_0F3A, MAP_0F38, ONE_BYTE, opcodes

if TYPE_CHECKING:
    from typing import Literal

    from pykvm.x86.decode import Instruction

__all__ = ["Unit", "unit_of"]


class Unit(NamedTuple):
    """What an instruction works on.

    `kind` is the state it uses, `both` that of MMX and SSE.  An operand in memory has `size` bytes,
    is written if `store` and else read, and has to be `aligned` to 16 bytes.  `general` says which
    part of ModRM names a general register, unless there is an operand in memory.  `undefined` is a
    form that there is not, of an instruction that there is.
    """

    kind: Literal["x87", "mmx", "both", "sse", "avx"]
    size: int = 0
    store: bool = False
    aligned: bool = False
    general: Literal["", "reg", "rm"] = ""
    undefined: bool = False


# Bytes of the operand in memory, by opcode and mandatory prefix (none, 66, F3, F2): `g` for as much
# as the general register has, `r` where there is no memory, `-` for no such instruction.
# SDM 2 appendix A and the pages of the instructions.
_SIZES_0F = """
10-11 16 16 4 8
12 8 8 16 8
13 8 8 - -
14-15 16 16 - -
16 8 8 16 -
17 8 8 - -
28-29 16 16 - -
2a 8 8 g g
2b 16 16 - -
2c-2d 8 16 4 8
2e-2f 4 8 - -
50 r r - -
51 16 16 4 8
52-53 16 - 4 -
54-57 16 16 - -
58-59 16 16 4 8
5a 8 16 4 8
5b 16 16 16 -
5c-5f 16 16 4 8
60-62 4 16 - -
63-6b 8 16 - -
6c-6d - 16 - -
6e g g - -
6f 8 16 16 -
70 8 16 16 16
71-73 r r - -
74-76 8 16 - -
7c-7d - 16 - 16
7e g g 8 -
7f 8 16 16 -
c2 16 16 4 8
c4 2 2 - -
c5 r r - -
c6 16 16 - -
d0 - 16 - 16
d1-d5 8 16 - -
d6 - 8 r r
d7 r r - -
d8-e5 8 16 - -
e6 - 16 8 16
e7 8 16 - -
e8-ef 8 16 - -
f0 - - - 16
f1-f6 8 16 - -
f8-fe 8 16 - -
"""
_SIZES_0F38 = """
00-0b 8 16 - -
1c-1e 8 16 - -
10 - 16 - -
14-15 - 16 - -
17 - 16 - -
20 - 8 - -
21 - 4 - -
22 - 2 - -
23 - 8 - -
24 - 4 - -
25 - 8 - -
28-2b - 16 - -
30 - 8 - -
31 - 4 - -
32 - 2 - -
33 - 8 - -
34 - 4 - -
35 - 8 - -
37-41 - 16 - -
c8-cd 16 - - -
cf - 16 - -
db-df - 16 - -
"""
_SIZES_0F3A = """
08-09 - 16 - -
0a - 4 - -
0b - 8 - -
0c-0e - 16 - -
0f 8 16 - -
14 - 1 - -
15 - 2 - -
16 - g - -
17 - 4 - -
20 - 1 - -
21 - 4 - -
22 - g - -
40-42 - 16 - -
44 - 16 - -
60-63 - 16 - -
cc 16 - - -
ce-cf - 16 - -
df - 16 - -
"""
# With VEX and the prefix 66, what SSE has not; `v` is the size of the vector, `h` half of it, `w`
# 4 bytes, or 8 with VEX.W.
_SIZES_VEX = {
    MAP_0F38: """
0c-0f v
13 h
16 v
18 4
19 8
1a 16
36 v
45-47 v
58 4
59 8
5a 16
78 1
79 2
96-98 v
99 w
9a v
9b w
9c v
9d w
9e v
9f w
a6-a8 v
a9 w
aa v
ab w
ac v
ad w
ae v
af w
b6-b8 v
b9 w
ba v
bb w
bc v
bd w
be v
bf w
""",
    MAP_0F3A: """
00-02 v
04-06 v
18-19 16
1d h
38-39 16
46 v
4a-4c v
""",
}
_PREFIXES = {0: 0, 0x66: 1, 0xF3: 2, 0xF2: 3}
_NONE = ["-"] * 4


def _table(text: str) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for line in text.strip().splitlines():
        listed, *sizes = line.split()
        found.update((opcode, sizes) for opcode in opcodes(listed))
    return found


_SIZES = {
    MAP_0F: _table(_SIZES_0F),
    MAP_0F38: _table(_SIZES_0F38),
    MAP_0F3A: _table(_SIZES_0F3A),
}
_WITH_VEX = {map_: _table(text) for map_, text in _SIZES_VEX.items()}

# The operand in memory is written.
_STORES = {
    MAP_0F: opcodes("11 13 17 29 2b 7e 7f d6 e7"),
    MAP_0F38: frozenset[int](),
    MAP_0F3A: opcodes("14-17 19 1d 39"),
}
# Without a prefix the operands are MMX registers.
_MMX = {
    MAP_0F: opcodes("60-7f c4 c5 d1-fe"),
    MAP_0F38: opcodes("00-0b 1c-1e"),
    MAP_0F3A: opcodes("0f"),
}
# Between MMX and SSE.
_CONVERSIONS = {
    *((opcode, prefix) for opcode in (0x2A, 0x2C, 0x2D) for prefix in (0, 0x66)),
    (0xD6, 0xF3),
    (0xD6, 0xF2),
}
# Of SSE, operands of 16 bytes that may lie anywhere.
_UNALIGNED = {
    *((MAP_0F, opcode, prefix) for opcode in (0x10, 0x11) for prefix in (0, 0x66)),
    *((MAP_0F, opcode, 0xF3) for opcode in (0x6F, 0x7F)),
    (MAP_0F, 0xF0, 0xF2),
    *((MAP_0F3A, opcode, 0x66) for opcode in range(0x60, 0x64)),
}
# The operand has to be in memory.
_MEMORY_ONLY = {
    *((MAP_0F, opcode, prefix) for opcode in (0x13, 0x17, 0x2B, 0xE7) for prefix in (0, 0x66)),
    *((MAP_0F, opcode, 0x66) for opcode in (0x12, 0x16)),
    (MAP_0F, 0xF0, 0xF2),
    (MAP_0F38, 0x2A, 0x66),
    (MAP_0F38, 0x1A, 0x66),
    (MAP_0F38, 0x5A, 0x66),
}
# Which part of ModRM names a general register.
_IN_REG = {MAP_0F: opcodes("50 c5 d7"), MAP_0F38: frozenset[int](), MAP_0F3A: frozenset[int]()}
_IN_RM = {
    MAP_0F: opcodes("6e c4"),
    MAP_0F38: frozenset[int](),
    MAP_0F3A: opcodes("14-17 20 22"),
}
# With VEX, operands of 16 bytes that do not grow with the vector (shift counts, strings), and
# smaller ones that do: half of a vector, a quarter, an eighth.
_FIXED = {
    MAP_0F: opcodes("d1-d3 e1 e2 f1-f3"),
    MAP_0F38: frozenset[int](),
    MAP_0F3A: opcodes("60-63 df"),
}
_GROWING = {
    (MAP_0F, 0x5A, 0),
    (MAP_0F, 0xE6, 0xF3),
    *((MAP_0F38, opcode, 0x66) for opcode in opcodes("20-25 30-35")),
}

# x87: bytes of the operand in memory by opcode and digit, written if after `>`; `-` for what is
# not there, or is not done here (control words and environments).
_X87 = {
    0xD8: "4 4 4 4 4 4 4 4",
    0xD9: "4 - >4 >4 - - - -",
    0xDA: "4 4 4 4 4 4 4 4",
    0xDB: "4 >4 >4 >4 - 10 - >10",
    0xDC: "8 8 8 8 8 8 8 8",
    0xDD: "8 >8 >8 >8 - - - -",
    0xDE: "2 2 2 2 2 2 2 2",
    0xDF: "2 >2 >2 >2 10 8 >10 >8",
}


def unit_of(instruction: Instruction) -> Unit | None:
    """What the instruction works on, None if it is not to run here."""
    if instruction.lock:
        return None
    if instruction.map == ONE_BYTE:
        return _x87(instruction)
    if instruction.vex:
        return _vex(instruction)
    map_, opcode, prefix = instruction.map, instruction.opcode, instruction.prefix
    word = _SIZES[map_].get(opcode, _NONE)[_PREFIXES[prefix]]
    if word == "-":
        return None
    size = _size(word, wide=instruction.wide)
    return Unit(
        _kind(map_, opcode, prefix),
        size=size,
        store=_stores(map_, opcode, prefix),
        aligned=size == 16 and (map_, opcode, prefix) not in _UNALIGNED,
        general=_general(map_, opcode, prefix),
        undefined=_is_undefined(instruction, word),
    )


def _vex(instruction: Instruction) -> Unit | None:
    map_, opcode, prefix = instruction.map, instruction.opcode, instruction.prefix
    vector = instruction.vex // 8
    added = _WITH_VEX[map_].get(opcode) if map_ in _WITH_VEX and prefix == 0x66 else None
    word = added[0] if added else _SIZES[map_].get(opcode, _NONE)[_PREFIXES[prefix]]
    if word == "-":
        return None
    if word in ("v", "h"):
        size = vector if word == "v" else vector // 2
    else:
        size = _size(word, wide=instruction.vex_wide if word == "w" else instruction.wide)
        if size == 16 and not added and opcode not in _FIXED[map_]:
            size = vector
        elif (map_, opcode, prefix) in _GROWING:
            size = size * vector // 16
        elif (map_, opcode, prefix) == (MAP_0F, 0x12, 0xF2) and vector == 32:
            size = vector  # VMOVDDUP
    general = _general(map_, opcode, prefix) if not added else ""
    return Unit(
        "avx",
        size=size,
        store=_stores(map_, opcode, prefix),
        general=general,
        undefined=_is_undefined(instruction, word),
    )


def _is_undefined(instruction: Instruction, word: str) -> bool:
    """Forms that raise #UD by their page of the manual; others do so when they are tried."""
    key = instruction.map, instruction.opcode, instruction.prefix
    if instruction.memory is not None:
        return word == "r"
    # Shifts by an immediate: PSRLDQ and PSLLDQ (3 and 7) are of quadwords alone, PSRAx (4) is not.
    shifts = {0x71: (2, 4, 6), 0x72: (2, 4, 6), 0x73: (2, 3, 6, 7) if key[2] else (2, 6)}
    if key[0] == MAP_0F and key[1] in shifts:
        return instruction.digit not in shifts[key[1]]
    return key in _MEMORY_ONLY


def _stores(map_: int, opcode: int, prefix: int) -> bool:
    return opcode in _STORES[map_] and (opcode, prefix) != (0x7E, 0xF3)


def _kind(map_: int, opcode: int, prefix: int) -> Literal["mmx", "both", "sse"]:
    if map_ == MAP_0F and (opcode, prefix) in _CONVERSIONS:
        return "both"
    return "mmx" if not prefix and opcode in _MMX[map_] else "sse"


def _size(word: str, *, wide: bool) -> int:
    if word in "gw":
        return 8 if wide else 4
    return 0 if word == "r" else int(word)


def _general(map_: int, opcode: int, prefix: int) -> Literal["", "reg", "rm"]:
    if opcode in _IN_REG[map_]:
        return "reg"
    if opcode in _IN_RM[map_]:
        return "rm"
    if map_ == MAP_0F and prefix in (0xF2, 0xF3):
        return "rm" if opcode == 0x2A else "reg" if opcode in (0x2C, 0x2D) else ""
    return "rm" if (map_, opcode) == (MAP_0F, 0x7E) and prefix != 0xF3 else ""


def _x87(instruction: Instruction) -> Unit | None:
    if not 0xD8 <= instruction.opcode <= 0xDF:
        return None
    if instruction.memory is None:
        return Unit("x87")
    word = _X87[instruction.opcode].split()[instruction.digit]
    if word == "-":
        return None
    return Unit("x87", size=int(word.lstrip(">")), store=word.startswith(">"))
