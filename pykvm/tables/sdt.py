"""What ACPI's tables are made of: the header that they share, and the place of a register.

Source: ACPI Specification 6.5, sections of which are named below.
"""

from __future__ import annotations

import struct

from pykvm.tables.table import Checksum, Pointer, Table
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["HEADER", "MEMORY", "OEM", "PORT", "description_table", "generic_address"]

HEADER = struct.Struct("<4sIBB6s8sI4sI")
_CHECKSUM_AT = 9
OEM = b"PYKVM "
_OEM_TABLE = b"PYKVM   "
_CREATOR = b"PYKV"

# Address spaces and access sizes of a generic address (5.2.3.2).
MEMORY = 0
PORT = 1
_ACCESS_SIZES = {8: 1, 16: 2, 32: 3, 64: 4}


def description_table(
    name: str,
    body: bytes,
    *,
    signature: str = "",
    revision: int,
    pointers: Sequence[Pointer] = (),
) -> Table:
    """A table with the header that they all have (5.2.6).

    `body` is what follows the header; the pointers' offsets count from the start of the table.  The
    signature is `name` unless another is given.

    >>> table = description_table("TEST", bytes(4), revision=1)
    >>> len(table.data), table.data[:10].hex(" ")
    (40, '54 45 53 54 28 00 00 00 01 00')
    """
    length = HEADER.size + len(body)
    signed = (signature or name).encode("ascii")
    header = HEADER.pack(signed, length, revision, 0, OEM, _OEM_TABLE, 1, _CREATOR, 1)
    return Table(name, header + body, tuple(pointers), (Checksum(_CHECKSUM_AT, 0, length),))


def generic_address(address: int, bits: int, *, space: int = PORT, access: int = 0) -> bytes:
    """A register's place (5.2.3.2): `bits` wide, to be read and written `access` (or all) at once.

    >>> generic_address(0x608, 32).hex(" ")
    '01 20 00 03 08 06 00 00 00 00 00 00'
    """
    return struct.pack("<BBBBQ", space, bits, 0, _ACCESS_SIZES[access or bits], address)
