"""A table that does not know yet where it will lie.

Tables name each other by address and have checksums over those addresses.  Here both are left at 0
and said beside the bytes, so that the code that places a table can fill them in: `link` for fixed
addresses, or a firmware by the commands of fw_cfg's etc/table-loader, which say the same.
"""

from __future__ import annotations

from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Checksum", "Piece", "Pointer", "Table", "link"]


class Pointer(NamedTuple):
    """`width` bytes at `offset` of a table, where the address of the table `target` belongs."""

    offset: int
    width: int
    target: str


class Checksum(NamedTuple):
    """The byte at `offset` of a table that makes `length` bytes from `start` on add up to 0."""

    offset: int
    start: int
    length: int


class Table(NamedTuple):
    """Bytes with 0 for each of `pointers` and `checksums`, which are to be filled in, in order.

    `align` is what the address of the table is a multiple of.
    """

    name: str
    data: bytes
    pointers: tuple[Pointer, ...] = ()
    checksums: tuple[Checksum, ...] = ()
    align: int = 16


class Piece(NamedTuple):
    """Bytes that belong at a guest-physical address."""

    name: str
    address: int
    data: bytes

    @property
    def end(self) -> int:
        """The first address after it."""
        return self.address + len(self.data)


def link(tables: Iterable[Table], places: Mapping[str, int]) -> list[Piece]:
    r"""Fill in the tables for the addresses that `places` has for their names.

    >>> shorter = Table("A", bytes(4), (Pointer(0, 2, "B"),), (Checksum(3, 0, 4),))
    >>> link([shorter], {"A": 0xE0000, "B": 0x1234})
    [Piece(name='A', address=917504, data=b'4\x12\x00\xba')]
    """
    pieces = []
    for table in tables:
        data = bytearray(table.data)
        for pointer in table.pointers:
            end = pointer.offset + pointer.width
            data[pointer.offset : end] = places[pointer.target].to_bytes(pointer.width, "little")
        for checksum in table.checksums:
            covered = data[checksum.start : checksum.start + checksum.length]
            data[checksum.offset] = -sum(covered) & 0xFF
        pieces.append(Piece(table.name, places[table.name], bytes(data)))
    return pieces
