"""ACPI tables as an operating system reads them: from memory, by address, trusting nothing."""

from __future__ import annotations

import struct
from typing import NamedTuple

from pykvm.tables import Piece

__all__ = ["Found", "Memory", "find"]


class Memory:
    """The first MiB, with the pieces in it."""

    def __init__(self, pieces: tuple[Piece, ...]) -> None:
        self.bytes = bytearray(1 << 20)
        for piece in pieces:
            self.bytes[piece.address : piece.end] = piece.data

    def scan(self, needle: bytes, start: int, end: int) -> int:
        """The first 16-byte boundary where `needle` is."""
        return next(at for at in range(start, end, 16) if self.bytes.startswith(needle, at))

    def unpack(self, layout: str, at: int) -> tuple[int, ...]:
        return struct.unpack_from("<" + layout, self.bytes, at)

    def sums_to_zero(self, at: int, length: int) -> bool:
        return sum(self.bytes[at : at + length]) % 256 == 0


class Found(NamedTuple):
    """What was found by signature, each table with all of its bytes; `facs` and `dsdt` apart."""

    tables: dict[str, bytes]
    facs: bytes
    dsdt: bytes


def find(memory: Memory) -> Found:
    """Walk from the root pointer to every table, both ways, and check every checksum."""
    rsdp = memory.scan(b"RSD PTR ", 0xE0000, 0x100000)
    assert memory.sums_to_zero(rsdp, 20)
    assert memory.sums_to_zero(rsdp, 36)
    revision, rsdt, length, xsdt = memory.unpack("BIIQ", rsdp + 15)
    assert (revision, length) == (2, 36)
    wide, narrow = _pointers(memory, xsdt, b"XSDT", "Q"), _pointers(memory, rsdt, b"RSDT", "I")
    assert wide == narrow
    tables = {}
    for address in wide:
        data = _table(memory, address)
        tables[data[:4].decode("ascii")] = data
    assert len(tables) == len(wide)
    (facs, dsdt), (x_facs, x_dsdt) = (
        struct.unpack_from("<II", tables["FACP"], 36),
        struct.unpack_from("<QQ", tables["FACP"], 132),
    )
    assert (x_facs, x_dsdt) == (0, dsdt)
    assert facs % 64 == 0
    assert memory.bytes[facs : facs + 8] == b"FACS\x40\0\0\0"
    return Found(tables, bytes(memory.bytes[facs : facs + 64]), _table(memory, dsdt))


def _pointers(memory: Memory, at: int, signature: bytes, width: str) -> list[int]:
    data = _table(memory, at)
    assert data.startswith(signature)
    return [value for (value,) in struct.iter_unpack("<" + width, data[36:])]


def _table(memory: Memory, at: int) -> bytes:
    (length,) = memory.unpack("I", at + 4)
    assert memory.sums_to_zero(at, length)
    return bytes(memory.bytes[at : at + length])
