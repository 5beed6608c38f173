"""The MP tables, which described processors and APICs before ACPI.

Source: Intel MultiProcessor Specification 1.4, chapter 4 "MP Configuration Table": 4.1 (floating
pointer), 4.2 (header) and 4.3 (entries).
"""

from __future__ import annotations

import struct

from pykvm import layout
from pykvm.tables.table import Checksum, Pointer, Table
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.tables.hardware import Hardware

__all__ = ["mp_tables"]

SPECIFICATION = 4  # 1.4
#: Ids have 8 bits, and 255 addresses every processor.
PROCESSORS = 255

LOCAL_APIC_VERSION = 0x14
IO_APIC_VERSION = 0x11

_HEADER = struct.Struct("<4sHBB8s12sIHHIHBx")
_CHECKSUM_AT = 7

# Types of entries (4.3).
PROCESSOR, BUS, IO_APIC, IO_INTERRUPT, LOCAL_INTERRUPT = range(5)

CPU_ENABLED = 1
CPU_BOOTS = 2
USABLE = 1

# Types of interrupts (table 4-11).
INT, NMI, _SMI, EXTINT = range(4)
CONFORMS = 0
ACTIVE_HIGH_LEVEL = 0b01 | 0b11 << 2

ISA = 0  # the number of the only bus
THE_IO_APIC = 0
EVERY_LOCAL_APIC = 0xFF


def mp_tables(hardware: Hardware) -> tuple[Table, ...]:
    """The floating pointer "MP pointer" and the table "MP table" that it leads to.

    None where there is no APIC.  Processors whose APIC ids have more than 8 bits are left out.
    """
    if hardware.irqchip == "none":
        return ()
    pointer = struct.pack("<4sIBBB5x", b"_MP_", 0, 1, SPECIFICATION, 0)
    return (
        Table("MP pointer", pointer, (Pointer(4, 4, "MP table"),), (Checksum(10, 0, 16),)),
        _table(_entries(hardware)),
    )


def _table(entries: list[bytes]) -> Table:
    body = b"".join(entries)
    length = _HEADER.size + len(body)
    header = _HEADER.pack(
        b"PCMP",
        length,
        SPECIFICATION,
        0,
        b"PYKVM   ",
        b"pykvm       ",
        *(0, 0),  # no table of the maker's own
        len(entries),
        layout.LOCAL_APIC,
        *(0, 0),  # no extended entries
    )
    return Table("MP table", header + body, checksums=(Checksum(_CHECKSUM_AT, 0, length),))


def _entries(hardware: Hardware) -> list[bytes]:
    sci = layout.SCI_IRQ if "acpi-pm" in hardware.devices else None
    return [
        *(_processor(hardware, apic_id) for apic_id in range(min(hardware.vcpus, PROCESSORS))),
        struct.pack("<BB6s", BUS, ISA, b"ISA   "),
        struct.pack("<BBBBI", IO_APIC, THE_IO_APIC, IO_APIC_VERSION, USABLE, layout.IOAPIC),
        *(
            _interrupt(
                IO_INTERRUPT,
                INT,
                irq,
                THE_IO_APIC,
                layout.gsi_of(irq),
                flags=ACTIVE_HIGH_LEVEL if irq == sci else CONFORMS,
            )
            for irq in layout.DEVICE_IRQS
        ),
        _interrupt(LOCAL_INTERRUPT, EXTINT, 0, 0, 0),
        _interrupt(LOCAL_INTERRUPT, NMI, 0, EVERY_LOCAL_APIC, 1),
    ]


def _processor(hardware: Hardware, apic_id: int) -> bytes:
    flags = CPU_ENABLED | (0 if apic_id else CPU_BOOTS)
    return struct.pack(
        "<BBBBII8x",
        PROCESSOR,
        apic_id,
        LOCAL_APIC_VERSION,
        flags,
        hardware.signature,
        hardware.features,
    )


def _interrupt(
    entry: int, kind: int, irq: int, destination: int, pin: int, *, flags: int = CONFORMS
) -> bytes:
    return struct.pack("<BBHBBBB", entry, kind, flags, ISA, irq, destination, pin)
