"""Which feature of CPUID an instruction belongs to (SDM 2, each instruction; APM 3 appendix D).

Where the guest's CPUID does not show it, the instruction raises #UD, or does nothing if its
encoding is among the reserved NOPs.
"""

from __future__ import annotations

from pykvm.emulate.spelling import spellings
from pykvm.typed import TYPE_CHECKING
from pykvm.x86.decode import MAP_0F, MAP_0F3A, MAP_0F38, ONE_BYTE, opcodes

if TYPE_CHECKING:
    from pykvm.x86.decode import Instruction

__all__ = ["HINTS", "features_of"]

#: Opcodes of the map 0F that do nothing, with any prefix: PREFETCH, PREFETCHh, the reserved NOPs.
HINTS = opcodes("0d 18-1f")

# By spelling.  `-` is for what every processor has.
_BY_SPELLING = """
    -           cc, cd, ce, f1, 27, 2f, 37, 3f, 62, c8, cf, cb, ca
    -           0f 02, 0f 03, 0f 00 /4, 0f 00 /5
    fpu         9b
    sse         0f ae /2 m, 0f ae /3 m
    smap        0f 01 /1 ca, 0f 01 /1 cb
    monitor     0f 01 /1 c8, 0f 01 /1 c9
    mwaitx      0f 01 /7 fa, 0f 01 /7 fb
    rdtscp      0f 01 /7 f9
    clzero      0f 01 /7 fc
    rdpru       0f 01 /7 fd
    rdpid       f3 0f c7 /7 r
    rdrand      0f c7 /6 r
    rdseed      0f c7 /7 r
    cx16        0f c7 /1 m
    invpcid     66 0f 38 82
    clwb        66 0f ae /6 m
    clflushopt  66 0f ae /7 m
    waitpkg     f3 0f ae /6 r, 66 0f ae /6 r, f2 0f ae /6 r
    xsave       0f ae /4 m, 0f ae /5 m, 0f 01 /2 d0, 0f 01 /2 d1
    xsaveopt    0f ae /6 m
    xsavec      0f c7 /4 m
    xsaves      0f c7 /5 m, 0f c7 /3 m
    rtm         0f 01 /2 d5, 0f 01 /2 d6
    pku         0f 01 /5 ee, 0f 01 /5 ef
    serialize   0f 01 /5 e8
    shstk       f3 0f 01 /5 m, f3 0f 01 /5 ea, f3 0f 01 /5 e8, f3 0f ae /5 r, f3 0f ae /6 m
    shstk       0f 38 f6 m, 66 0f 38 f5 m
    movdiri     0f 38 f9 m
    movdir64b   66 0f 38 f8 m
    enqcmd      f2 0f 38 f8 m, f3 0f 38 f8 m
    movbe       0f 38 f0, 0f 38 f1, 66 0f 38 f0, 66 0f 38 f1
    sse4_2      f2 0f 38 f0, f2 0f 38 f1
    adx         66 0f 38 f6, f3 0f 38 f6
    popcnt      f3 0f b8
    sse2        0f c3 m
    sse4a       66 0f 78, 66 0f 79 r, f2 0f 78, f2 0f 79 r, f3 0f 2b m, f2 0f 2b m
    3dnow       0f 0e, 0f 0f
    bmi1        vex 0f 38 f2, vex 0f 38 f3, vex 0f 38 f7
    bmi2        vex 0f 38 f5, vex f3 0f 38 f5, vex f2 0f 38 f5, vex f2 0f 38 f6
    bmi2        vex 66 0f 38 f7, vex f3 0f 38 f7, vex f2 0f 38 f7, vex f2 0f 3a f0
"""


def _by_spelling() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for line in _BY_SPELLING.strip().splitlines():
        feature, rest = line.split(maxsplit=1)
        names = () if feature == "-" else (feature,)
        found.update((spelling.strip(), names) for spelling in rest.split(","))
    return found


_SPELT = _by_spelling()

# SSE, with the mandatory prefixes in the order of _PREFIXES: the opcodes of each map that belong to
# a feature.  The first line that has an opcode counts.
_PREFIXES = {0: 0, 0x66: 1, 0xF3: 2, 0xF2: 3}
_SSE: dict[int, tuple[tuple[tuple[str, frozenset[int]], ...], ...]] = {
    MAP_0F: (
        (
            ("sse2", opcodes("5a 5b d4 f4 fb")),
            ("sse", opcodes("10-17 28-2f 50-5f 70 c2 c4-c6 d7 da de e0 e3 e4 e7 ea ee f6 f7")),
            (
                "mmx",
                opcodes("60-6b 6e 6f 71-77 7e 7f d1-d3 d5 d8 d9 db-dd df e1 e2 e5 e8 e9 eb-ed"),
            ),
            ("mmx", opcodes("ef f1-f3 f5 f8-fa fc-fe")),
        ),
        (
            ("pni", opcodes("7c 7d d0")),
            ("sse2", opcodes("10-17 28-2f 50 51 54-76 7e 7f c2 c4-c6 d1-ef f1-fe")),
        ),
        (
            ("pni", opcodes("12 16")),
            ("sse2", opcodes("5a 5b 6f 70 7e 7f d6 e6")),
            ("sse", opcodes("10 11 2a 2c 2d 51-53 58 59 5c-5f c2")),
        ),
        (
            ("pni", opcodes("12 7c 7d d0 f0")),
            ("sse2", opcodes("10 11 2a 2c 2d 51 58-5a 5c-5f 70 c2 d6 e6")),
        ),
    ),
    MAP_0F38: (
        (("ssse3", opcodes("00-0b 1c-1e")), ("sha_ni", opcodes("c8-cd"))),
        (
            ("ssse3", opcodes("00-0b 1c-1e")),
            ("sse4_2", opcodes("37")),
            ("sse4_1", opcodes("10 14 15 17 20-25 28-2b 30-35 38-41")),
            ("gfni", opcodes("cf")),
            ("aes", opcodes("db-df")),
        ),
        (("key_locker", opcodes("d8 dc-df fa fb")),),
        (),
    ),
    MAP_0F3A: (
        (("ssse3", opcodes("0f")), ("sha_ni", opcodes("cc"))),
        (
            ("ssse3", opcodes("0f")),
            ("sse4_1", opcodes("08-0e 14-17 20-22 40-42")),
            ("pclmulqdq", opcodes("44")),
            ("sse4_2", opcodes("60-63")),
            ("gfni", opcodes("ce cf")),
            ("aes", opcodes("df")),
        ),
        (),
        (),
    ),
}

# What VEX has that SSE has not, all with the prefix 66.
_VEX: dict[int, tuple[tuple[str, frozenset[int]], ...]] = {
    MAP_0F: (),
    MAP_0F38: (
        ("avx", opcodes("0c-0f 18-1a 2c-2f")),
        ("f16c", opcodes("13")),
        ("avx2", opcodes("16 36 45-47 58-5a 78 79 8c 8e 90-93")),
        ("fma", opcodes("96-9f a6-af b6-bf")),
    ),
    MAP_0F3A: (
        ("avx", opcodes("04-06 18 19 4a 4b")),
        ("f16c", opcodes("1d")),
        ("avx2", opcodes("00-02 38 39 46 4c")),
    ),
}
# Of the encodings with 256 bits, those of AVX and not of AVX2: without integers.
_FLOATING = {
    MAP_0F: opcodes("10-17 28-2f 50-5f 6f 77 7c 7d 7f c2 c6 d0 e6 e7 f0"),
    MAP_0F38: opcodes("0c-0f 17-1a 2c-2f"),
    MAP_0F3A: opcodes("04-06 08 09 0c 0d 18 19 40 4a 4b"),
}
_WIDE = {"aes": "vaes", "pclmulqdq": "vpclmulqdq"}


def features_of(instruction: Instruction) -> tuple[str, ...] | None:
    """The features that a processor needs for the instruction, all of them, by their CPUID names.

    Empty for what every processor has, None for an instruction that is not known here.

    >>> from pykvm.x86.decode import decode
    >>> features_of(decode(bytes.fromhex("f3480fb8c3"), 64))
    ('popcnt',)
    >>> features_of(decode(bytes.fromhex("c4e2791801"), 64))
    ('avx',)
    """
    for spelling in spellings(instruction):
        found = _SPELT.get(spelling)
        if found is not None:
            return found
    if instruction.map == ONE_BYTE:
        return _x87(instruction)
    if instruction.map == MAP_0F and instruction.opcode in HINTS and not instruction.vex:
        return ()
    if instruction.vex:
        return _vex(instruction)
    return _look(_SSE[instruction.map][_PREFIXES[instruction.prefix]], instruction.opcode)


def _look(lines: tuple[tuple[str, frozenset[int]], ...], opcode: int) -> tuple[str, ...] | None:
    return next(((feature,) for feature, listed in lines if opcode in listed), None)


def _x87(instruction: Instruction) -> tuple[str, ...] | None:
    opcode, digit = instruction.opcode, instruction.digit
    if not 0xD8 <= opcode <= 0xDF:
        return None
    if instruction.memory is not None:
        truncating = opcode in (0xDB, 0xDD, 0xDF) and digit == 1  # FISTTP
        return ("fpu", "pni") if truncating else ("fpu",)
    moves = opcode in (0xDA, 0xDB) and digit < 4  # FCMOVcc
    compares = opcode in (0xDB, 0xDF) and digit in (5, 6)  # FCOMI and its siblings
    return ("fpu", "cmov") if moves or compares else ("fpu",)


def _vex(instruction: Instruction) -> tuple[str, ...] | None:
    map_, opcode = instruction.map, instruction.opcode
    found = _look(_VEX[map_], opcode) if instruction.prefix == 0x66 else None
    if found == ("avx",):
        registers = map_ == MAP_0F38 and opcode in (0x18, 0x19) and instruction.memory is None
        return ("avx2",) if registers else found
    if found is not None:
        return ("avx", *found) if found == ("f16c",) else found
    found = _look(_SSE[map_][_PREFIXES[instruction.prefix]], opcode)
    if found is None:
        return None
    (feature,) = found
    if feature in _WIDE:
        return ("avx", _WIDE[feature] if instruction.vex == 256 else feature)
    if feature == "gfni":
        return "avx", "gfni"
    integers = opcode not in _FLOATING[map_]
    return ("avx2",) if instruction.vex == 256 and integers else ("avx",)
