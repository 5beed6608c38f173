"""The multiple APIC description table: processors, and how interrupts get to them.

Source: ACPI Specification 6.5, 5.2.12 "Multiple APIC Description Table (MADT)" and its sections .2
(local APIC), .3 (I/O APIC), .5 (interrupt source override), .7 (local APIC NMI), .12 (local x2APIC)
and .13 (local x2APIC NMI).
"""

from __future__ import annotations

import struct

from pykvm import layout
from pykvm.tables.sdt import description_table
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.tables.hardware import Hardware
    from pykvm.tables.table import Table

__all__ = ["LARGEST_XAPIC_ID", "madt"]

REVISION = 5
#: 255 addresses every processor: who has it, or more, can only be told of as an x2APIC.
LARGEST_XAPIC_ID = 254

PCAT_COMPAT = 1  # there are 8259s, to be masked
ENABLED = 1
ALL_PROCESSORS = 0xFF
ALL_X2APIC_PROCESSORS = 0xFFFFFFFF

# Flags of an interrupt (table 5.25): polarity, and trigger mode two bits up.
CONFORMS = 0
ACTIVE_HIGH_LEVEL = 0b01 | 0b11 << 2


def madt(hardware: Hardware) -> Table:
    """The MADT.  The first processor in it is the one that boots."""
    entries = [
        *(_processor(apic_id) for apic_id in range(hardware.vcpus)),
        _entry(1, "<BxII", 0, layout.IOAPIC, 0),
        # The only ISA interrupt that is not on the pin of its number.
        _entry(2, "<BBIH", 0, layout.PIT_IRQ, layout.gsi_of(layout.PIT_IRQ), CONFORMS),
        _entry(2, "<BBIH", 0, layout.SCI_IRQ, layout.SCI_IRQ, ACTIVE_HIGH_LEVEL),
        _entry(4, "<BHB", ALL_PROCESSORS, CONFORMS, 1),
    ]
    if hardware.vcpus > LARGEST_XAPIC_ID + 1:
        entries.append(_entry(10, "<HIBxxx", CONFORMS, ALL_X2APIC_PROCESSORS, 1))
    body = struct.pack("<II", layout.LOCAL_APIC, PCAT_COMPAT) + b"".join(entries)
    return description_table("MADT", body, signature="APIC", revision=REVISION)


def _processor(apic_id: int) -> bytes:
    if apic_id <= LARGEST_XAPIC_ID:
        return _entry(0, "<BBI", apic_id, apic_id, ENABLED)
    return _entry(9, "<xxIII", apic_id, ENABLED, apic_id)


def _entry(kind: int, layout: str, *values: int) -> bytes:
    body = struct.pack(layout, *values)
    return bytes((kind, 2 + len(body))) + body
