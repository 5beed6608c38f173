"""ACPI tables: the root pointer and all that it leads to.

Source: ACPI Specification 6.5, chapter 5.2 "ACPI System Description Tables" (sections of which are
named below); for HPET, IA-PC HPET Specification 1.0a, 3.2.4.
"""

from __future__ import annotations

import struct

from pykvm import layout
from pykvm.tables.sdt import HEADER, MEMORY, OEM, description_table, generic_address
from pykvm.tables.table import Checksum, Pointer, Table
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.tables.hardware import Hardware

__all__ = ["acpi_tables"]

_HPET_ID = 0x8086A201


def acpi_tables(hardware: Hardware) -> tuple[Table, ...]:
    """See `pykvm.tables.acpi_tables`."""
    from pykvm.tables.dsdt import dsdt
    from pykvm.tables.fadt import fadt
    from pykvm.tables.madt import madt

    if "acpi-pm" not in hardware.devices:
        return ()
    described = [fadt(hardware)]
    if hardware.irqchip != "none":
        described.append(madt(hardware))
    if "hpet" in hardware.devices:
        described.append(_hpet())
    names = [table.name for table in described]
    roots = [_rsdp(), _root("RSDT", names, width=4), _root("XSDT", names, width=8)]
    return (*roots, described[0], _facs(), dsdt(hardware), *described[1:])


def _rsdp() -> Table:
    """The root system description pointer (5.2.5.3), revision 2."""
    length = 36
    data = struct.pack("<8sB6sBIIQBxxx", b"RSD PTR ", 0, OEM, 2, 0, length, 0, 0)
    pointers = (Pointer(16, 4, "RSDT"), Pointer(24, 8, "XSDT"))
    # The first checksum covers what there was of it in ACPI 1.0.
    return Table("RSDP", data, pointers, (Checksum(8, 0, 20), Checksum(32, 0, length)))


def _root(name: str, targets: Sequence[str], *, width: int) -> Table:
    """The RSDT (5.2.7) or XSDT (5.2.8): where the other tables are."""
    pointers = [
        Pointer(HEADER.size + width * number, width, target)
        for number, target in enumerate(targets)
    ]
    return description_table(name, bytes(width * len(targets)), revision=1, pointers=pointers)


def _facs() -> Table:
    """The firmware ACPI control structure (5.2.10): nothing to wake up, no lock to share.

    It has neither the others' header nor a checksum.
    """
    return Table("FACS", struct.pack("<4sI24xB31x", b"FACS", 64, 2), align=64)


def _hpet() -> Table:
    place = generic_address(layout.HPET, 64, space=MEMORY)
    # HPET number 0; the least tick in periodic mode is not specified; nothing about its page.
    return description_table("HPET", struct.pack("<I12sBHB", _HPET_ID, place, 0, 0, 0), revision=1)
