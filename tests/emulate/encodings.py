"""Every instruction that the emulator may meet, in bytes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

ENCODINGS = [b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a"]
PREFIXES = [b"", b"\x66", b"\xf3", b"\xf2"]
# Opcodes of which ModRM.reg, or all of ModRM, selects an instruction.
GROUPS = {0x00, 0x01, 0x0D, 0x18, 0x71, 0x72, 0x73, 0xAE, 0xC7, *range(0xD8, 0xE0), 0xF3}
WHOLE = {0x01, 0xAE, 0xC7, *range(0xD8, 0xE0)}


def modrms(opcode: int) -> Iterator[int]:
    """ModRM bytes with an operand in memory, and with two registers."""
    digits = range(8) if opcode in GROUPS else (2,)
    yield from (5 | digit << 3 for digit in digits)
    yield from range(0xC0, 0x100) if opcode in WHOLE else (0xC1 | d << 3 for d in digits)


def encodings() -> Iterator[bytes]:
    """Every opcode of every map, with each mandatory prefix, with VEX and without."""
    for opcode in range(256):
        for modrm in modrms(opcode):
            rest = bytes([opcode, modrm]).ljust(10, b"\1")
            for prefix in PREFIXES:
                yield from (prefix + map_ + rest for map_ in ENCODINGS if map_ or not prefix)
            for map_, wide, pp in itertools.product((1, 2, 3), (0, 4), range(4)):
                yield bytes([0xC4, 0xE0 | map_, 0x78 | wide | pp]) + rest
