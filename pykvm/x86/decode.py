"""Where an instruction ends and what its parts are: prefixes, opcode, ModRM, immediates.

Written from SDM 2A chapter 2 (formats) and appendix A (opcode maps).  It distinguishes instructions
and how long they are, not what they do, nor whether a given processor has them.
"""

from __future__ import annotations

from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "LONGEST",
    "MAP_0F",
    "MAP_0F3A",
    "MAP_0F38",
    "ONE_BYTE",
    "Address",
    "ForeignError",
    "Instruction",
    "TruncatedError",
    "UndecodableError",
    "decode",
    "opcodes",
]

LONGEST = 15

ONE_BYTE, MAP_0F, MAP_0F38, MAP_0F3A = range(4)

# What an address counts from, by its number in ModRM and SIB.
RIP = 16

_SEGMENT_PREFIXES = {0x26: "es", 0x2E: "cs", 0x36: "ss", 0x3E: "ds", 0x64: "fs", 0x65: "gs"}
_STACK = (4, 5)  # rSP and rBP address the stack segment unless a prefix says otherwise

# ModRM with 16-bit addresses: base and index (SDM 2A table 2-1).
_FORMS16 = ((3, 6), (3, 7), (5, 6), (5, 7), (6, None), (7, None), (5, None), (3, None))


def opcodes(text: str) -> frozenset[int]:
    """The opcodes that a list of bytes and ranges names: ``"00-03 63"``."""
    found: set[int] = set()
    for word in text.split():
        first, _, last = word.partition("-")
        found.update(range(int(first, 16), int(last or first, 16) + 1))
    return frozenset(found)


# SDM 2 appendix A, tables.  0F 38 and 0F 3A have a ModRM byte throughout.
_MODRM = {
    ONE_BYTE: opcodes(
        "00-03 08-0b 10-13 18-1b 20-23 28-2b 30-33 38-3b 62 63 69 6b 80-8f c0 c1 c4-c7 d0-d3 d8-df "
        "f6 f7 fe ff"
    ),
    MAP_0F: opcodes(
        "00-03 0d 0f 10-17 18-1f 20-23 28-2f 40-4f 50-76 78-7f 90-9f a3-a5 ab-af b0-b9 ba-bf c0-c7 "
        "d0-ff"
    ),
}
_IMMEDIATE_8 = {
    ONE_BYTE: opcodes(
        "04 0c 14 1c 24 2c 34 3c 6a 6b 70-7f 80 82 83 a8 b0-b7 c0 c1 c6 cd d4 d5 e0-e7 eb"
    ),
    MAP_0F: opcodes("0f 70-73 a4 ac ba c2 c4-c6"),
}
# 16 or 32 bits, as the operand size is.
_IMMEDIATE_FULL = {
    ONE_BYTE: opcodes("05 0d 15 1d 25 2d 35 3d 68 69 81 a9 b8-bf c7 e8 e9"),
    MAP_0F: opcodes("80-8f"),
}


class UndecodableError(ValueError):
    """The bytes are no instruction, or the first part of one."""


class TruncatedError(UndecodableError):
    """The bytes are the first part of an instruction."""


class ForeignError(UndecodableError):
    """The bytes begin with an encoding that is not taken apart here: `encoding` is EVEX or XOP."""

    def __init__(self, code: bytes, encoding: str) -> None:
        super().__init__(f"{code.hex(' ')}: {encoding}")
        self.encoding = encoding


class Address(NamedTuple):
    """A memory operand: segment:[base + index_register * scale + displacement].

    Registers are numbers as in ModRM (0 is rAX), or `RIP`, or None.  `bits` is the width of the
    offset.  `segment` is the one that the prefixes or, without them, the base register choose.
    """

    segment: str
    base: int | None
    index_register: int | None
    scale: int
    displacement: int
    bits: int

    def offset(self, register: Callable[[int], int], rip: int) -> int:
        """The offset in the segment; `rip` is the address after the instruction."""
        value = self.displacement
        if self.base is not None:
            value += rip if self.base == RIP else register(self.base)
        if self.index_register is not None:
            value += register(self.index_register) * self.scale
        return value & (1 << self.bits) - 1


class Instruction(NamedTuple):
    """One instruction in its parts.

    `map` is 0 for one-byte opcodes, 1 for 0F, 2 for 0F 38, 3 for 0F 3A, of VEX too.  `prefix` is
    the last of F2 and F3, else 66, else 0: the one that selects an instruction of the same opcode.
    `rex` says whether there was a REX prefix, which makes SPL of AH; `address_bits` is the width of
    addresses, in memory operands that ModRM does not name, too.
    `vex` is 0, or the number of bits of the vectors that VEX chose, `vvvv` its extra register and
    `vex_wide` its bit W, which is `wide` in 64-bit code.
    `reg` and `rm` have the extra bits of REX or VEX; `memory` is None where ModRM names a register.
    """

    raw: bytes
    map: int
    opcode: int
    prefix: int = 0
    lock: bool = False
    operand_bits: int = 32
    wide: bool = False
    vex: int = 0
    vvvv: int = 0
    vex_wide: bool = False
    modrm: int | None = None
    reg: int = 0
    rm: int = 0
    memory: Address | None = None
    immediate: int = 0
    rex: bool = False
    address_bits: int = 64

    @property
    def length(self) -> int:
        """In bytes."""
        return len(self.raw)

    @property
    def digit(self) -> int:
        """The part of the opcode that stands in ModRM, which the manual writes /digit."""
        return self.reg & 7


class _Reader:
    """The bytes of an instruction, one after the other."""

    def __init__(self, code: bytes) -> None:
        self.code = code[:LONGEST]
        self.at = 0

    def byte(self) -> int:
        try:
            value = self.code[self.at]
        except IndexError:
            raise TruncatedError(
                f"{self.code.hex(' ')}: an instruction continues after this"
            ) from None
        self.at += 1
        return value

    def signed(self, size: int) -> int:
        if self.at + size > len(self.code):
            self.at = len(self.code)
            self.byte()
        self.at += size
        return int.from_bytes(self.code[self.at - size : self.at], "little", signed=True)


def decode(code: bytes, bits: int) -> Instruction:
    """The instruction that `code` begins with, in code of 16, 32 or 64 `bits`.

    Raises TruncatedError for bytes that end too early, ForeignError for EVEX and XOP, whose length
    depends on the instruction, and UndecodableError for prefixes before VEX and its other maps.

    >>> decode(bytes.fromhex("f3480fb8c3"), 64).length
    5
    >>> decode(bytes.fromhex("0fae6508"), 64).memory
    Address(segment='ss', base=5, index_register=None, scale=1, displacement=8, bits=64)
    """
    reader = _Reader(code)
    segment = ""
    rep = size = addressing = rex = 0
    lock = False
    while True:
        byte = reader.byte()
        if byte in (0xF2, 0xF3):
            rep = byte
        elif byte == 0x66:
            size = byte
        elif byte == 0x67:
            addressing = byte
        elif byte == 0xF0:
            lock = True
        elif byte in _SEGMENT_PREFIXES:
            # In 64-bit code the first four mean nothing (SDM 2A 2.1.1).
            if bits != 64 or byte >= 0x64:
                segment = _SEGMENT_PREFIXES[byte]
        elif bits == 64 and byte >> 4 == 4:
            rex = byte
            continue
        else:
            break
        rex = 0  # REX counts only right before the opcode
    wide = bool(rex & 8)
    parts = _Parts(rep or size, lock, wide, 0, 0)
    if byte in (0xC4, 0xC5) and _is_vex(reader, bits):
        if rep or size or lock or rex:
            raise UndecodableError(f"{reader.code.hex(' ')}: a prefix that VEX forbids")
        map_, opcode, rex, parts = _vex(reader, byte, bits)
    elif byte == 0x62 and (bits == 64 or _register_form(reader)):
        raise ForeignError(reader.code, "EVEX")
    elif byte == 0x8F and _is_xop(reader):
        raise ForeignError(reader.code, "XOP")
    elif byte == 0x0F:
        map_, opcode = _two_byte(reader)
    else:
        map_, opcode = ONE_BYTE, byte
    operand_bits = 64 if parts.wide else 32 if (bits == 16) == bool(size) else 16
    address_bits = _address_bits(bits, bool(addressing))
    modrm: int | None = None
    reg, rm, memory = 0, (rex & 1) << 3 | opcode & 7, None
    if map_ >= MAP_0F38 or opcode in _MODRM[map_]:
        modrm = reader.byte()
        reg = modrm >> 3 & 7 | (rex & 4) << 1
        rm = modrm & 7 | (rex & 1) << 3
        # MOV to and from control and debug registers ignores mod (SDM 2B, MOV).
        if modrm < 0xC0 and not (map_ == MAP_0F and 0x20 <= opcode <= 0x23):
            memory = _memory(reader, modrm, rex, segment, bits, address_bits)
    immediate = _immediate(reader, map_, opcode, reg & 7, operand_bits, address_bits)
    return Instruction(
        raw=reader.code[: reader.at],
        map=map_,
        opcode=opcode,
        prefix=parts.prefix,
        lock=parts.lock,
        operand_bits=operand_bits,
        wide=parts.wide,
        vex=parts.vex,
        vvvv=parts.vvvv,
        vex_wide=parts.vex_wide,
        modrm=modrm,
        reg=reg,
        rm=rm,
        memory=memory,
        immediate=immediate,
        rex=bool(rex),
        address_bits=address_bits,
    )


class _Parts(NamedTuple):
    """What the prefixes say, REX.RXB apart."""

    prefix: int
    lock: bool
    wide: bool
    vex: int
    vvvv: int
    vex_wide: bool = False


def _register_form(reader: _Reader) -> bool:
    """Whether the next byte would be a ModRM of a register: what BOUND, LES and LDS cannot have."""
    return reader.at < len(reader.code) and reader.code[reader.at] >= 0xC0


def _is_vex(reader: _Reader, bits: int) -> bool:
    return bits == 64 or _register_form(reader)


def _is_xop(reader: _Reader) -> bool:
    """POP r/m has 0 in ModRM.reg, XOP a map number of 8 or more there (APM 3 1.2.7)."""
    return reader.at < len(reader.code) and reader.code[reader.at] & 0x1F >= 8


def _vex(reader: _Reader, first: int, bits: int) -> tuple[int, int, int, _Parts]:
    """The map, the opcode, REX.RXB and the rest of what a VEX prefix says (SDM 2A 2.3.5)."""
    byte = reader.byte()
    rex, map_ = (~byte >> 5) & 4, MAP_0F
    wide = False
    if first == 0xC4:
        rex, map_ = ~byte >> 5 & 7, byte & 0x1F
        byte = reader.byte()
        wide = bool(byte & 0x80)
    if not MAP_0F <= map_ <= MAP_0F3A:
        raise UndecodableError(f"{reader.code.hex(' ')}: VEX with map {map_}")
    if bits != 64:
        rex = 0
    parts = _Parts(
        prefix=(0, 0x66, 0xF3, 0xF2)[byte & 3],
        lock=False,
        wide=wide and bits == 64,
        vex=256 if byte & 4 else 128,
        vvvv=~byte >> 3 & (15 if bits == 64 else 7),
        vex_wide=wide,
    )
    return map_, reader.byte(), rex, parts


def _two_byte(reader: _Reader) -> tuple[int, int]:
    opcode = reader.byte()
    if opcode == 0x38:
        return MAP_0F38, reader.byte()
    if opcode == 0x3A:
        return MAP_0F3A, reader.byte()
    return MAP_0F, opcode


def _address_bits(bits: int, switched: bool) -> int:
    if bits == 64:
        return 32 if switched else 64
    return 32 if (bits == 16) == switched else 16


def _memory(
    reader: _Reader, modrm: int, rex: int, segment: str, bits: int, address_bits: int
) -> Address:
    """The memory operand of a ModRM byte that has one (SDM 2A 2.1.5, 2.2.1)."""
    mod, low = modrm >> 6, modrm & 7
    base: int | None
    index: int | None
    scale = 1
    if address_bits == 16:
        base, index = _FORMS16[low]
        if mod == 0 and low == 6:
            base, size = None, 2
        else:
            size = mod
    else:
        base, index, size = low, None, (0, 1, 4)[mod]
        absolute = mod == 0 and low == 5
        if low == 4:
            sib = reader.byte()
            base, scale = sib & 7, 1 << (sib >> 6)
            index = sib >> 3 & 7 | (rex & 2) << 2
            if index == 4:
                index = None
            absolute = mod == 0 and base == 5
        if absolute:
            size = 4
            base = RIP if bits == 64 and low == 5 else None
        else:
            base |= (rex & 1) << 3
    if not segment:
        segment = "ss" if base in _STACK else "ds"
    displacement = reader.signed(size) if size else 0
    return Address(segment, base, index, scale, displacement, address_bits)


def _immediate(
    reader: _Reader, map_: int, opcode: int, digit: int, operand_bits: int, address_bits: int
) -> int:
    """The immediate operand, 0 where there is none (SDM 2A 2.1.6 and 2.2.1.5)."""
    if map_ == MAP_0F38:
        return 0
    if map_ == MAP_0F3A:
        return reader.signed(1) & 0xFF
    full = min(operand_bits, 32) // 8
    if opcode in _IMMEDIATE_8[map_]:
        return reader.signed(1) & 0xFF
    if opcode in _IMMEDIATE_FULL[map_]:
        # MOV to a register is the only instruction with an immediate of 64 bits.
        return reader.signed(operand_bits // 8 if 0xB8 <= opcode <= 0xBF else full)
    if map_ == ONE_BYTE:
        if opcode in (0xF6, 0xF7) and digit < 2:
            return reader.signed(1 if opcode == 0xF6 else full)
        if 0xA0 <= opcode <= 0xA3:
            return reader.signed(address_bits // 8)
        if opcode in (0x9A, 0xEA):
            return reader.signed(full + 2)
        if opcode in (0xC2, 0xCA):
            return reader.signed(2)
        if opcode == 0xC8:
            return reader.signed(3)
    return 0
