"""Where each table lies: in the BIOS area, the EBDA and the BIOS data area.

SMBIOS comes first in the half of the BIOS area that it is looked for in.  The others lie first fit
around it.  Their order does not matter, except that the root pointers come first.
"""

from __future__ import annotations

from pykvm.errors import ConfigError
from pykvm.layout import BIOS_END, BIOS_START, EBDA_START
from pykvm.tables.acpi import acpi_tables
from pykvm.tables.bios_data import bios_data
from pykvm.tables.mptable import mp_tables
from pykvm.tables.smbios import smbios_tables
from pykvm.tables.table import link
from pykvm.typed import TYPE_CHECKING
from pykvm.values.spelling import option

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pykvm.tables.hardware import Hardware
    from pykvm.tables.table import Piece, Table

__all__ = ["placed"]

# SMBIOS 3.6, 5.2: entry points are found on 16-byte boundaries from here on.
SMBIOS_START = 0xF0000
# MP Specification 1.4, chapter 4: the first KB of the EBDA is searched first; its first word is its
# size.
MP_POINTER = EBDA_START + 0x10


def placed(hardware: Hardware) -> tuple[Piece, ...]:
    """Every table of the machine, linked and in its place.

    Raises ConfigError where they find no room.
    """
    smbios, mp, acpi = smbios_tables(hardware), mp_tables(hardware), acpi_tables(hardware)
    places = {"MP pointer": MP_POINTER}
    after_smbios = _in_a_row(smbios, SMBIOS_START, places)
    gaps = [(BIOS_START, SMBIOS_START), (after_smbios, BIOS_END)]
    for table in (*acpi, *mp):
        if table.name not in places:
            places[table.name] = _first_fit(table, gaps, hardware)
    return (*bios_data(hardware), *link((*smbios, *mp, *acpi), places))


def _in_a_row(tables: Iterable[Table], at: int, places: dict[str, int]) -> int:
    """Note the places of `tables`, one after the other from `at` on, and return where they end."""
    for table in tables:
        at += -at % table.align
        places[table.name] = at
        at += len(table.data)
    return at


def _first_fit(table: Table, gaps: list[tuple[int, int]], hardware: Hardware) -> int:
    """The place of `table` in the first gap with room for it, which is taken off the gap."""
    for number, (start, end) in enumerate(gaps):
        place = start + -start % table.align
        if place + len(table.data) <= end:
            gaps[number] = place + len(table.data), end
            return place
    raise ConfigError(
        f"{option('vcpus', hardware.vcpus)}: the tables that describe them do not fit in the BIOS "
        f"area ({BIOS_START:#x}-{BIOS_END:#x}): the {table.name} has {len(table.data)} bytes, and "
        f"at most {max(end - start for start, end in gaps)} are left in one place",
        hint="give the machine fewer vCPUs",
    )
