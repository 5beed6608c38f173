"""What a PC's firmware leaves in memory to describe the machine to a kernel.

`build` gives all of it for fixed addresses.  A firmware that runs in the guest places the ACPI
tables itself: `acpi_tables` gives them as they are before, with what is to be filled in said beside
the bytes.
"""

from __future__ import annotations

from pykvm.tables.e820 import E820Entry, E820Type, memory_map
from pykvm.tables.hardware import Hardware
from pykvm.tables.table import Checksum, Piece, Pointer, Table, link
from pykvm.values.frozen import NamedTuple

__all__ = [
    "Checksum",
    "E820Entry",
    "E820Type",
    "Hardware",
    "Piece",
    "Pointer",
    "Table",
    "Tables",
    "acpi_tables",
    "build",
    "link",
    "memory_map",
]


class Tables(NamedTuple):
    """All of them, where they go: the BIOS area, the EBDA and the BIOS data area.

    `rsdp` is the address of the ACPI root pointer, 0 where there is none.
    """

    pieces: tuple[Piece, ...]
    rsdp: int


def build(hardware: Hardware) -> Tables:
    """The tables that describe `hardware`: ACPI, MP, SMBIOS and the BIOS data area.

    Raises ConfigError, with the numbers, for more processors than their place has room for.
    """
    from pykvm.tables.places import placed

    pieces = placed(hardware)
    return Tables(pieces, next((piece.address for piece in pieces if piece.name == "RSDP"), 0))


def acpi_tables(hardware: Hardware) -> tuple[Table, ...]:
    """The ACPI tables, the root pointer "RSDP" first; none for a machine without ACPI's registers.

    >>> [table.name for table in acpi_tables(Hardware(devices=frozenset({"acpi-pm", "hpet"})))]
    ['RSDP', 'RSDT', 'XSDT', 'FADT', 'FACS', 'DSDT', 'MADT', 'HPET']
    """
    from pykvm.tables import acpi

    return acpi.acpi_tables(hardware)
