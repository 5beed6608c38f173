"""The BIOS data area at 0x400 and the start of the extended one, as far as kernels read them.

Source: Phoenix, "System BIOS for IBM PCs, Compatibles, and EISA Computers" (2nd edition), chapter 3
"ROM BIOS data"; IBM, Personal System/2 and Personal Computer BIOS Interface Technical Reference,
section 3.
"""

from __future__ import annotations

import struct

from pykvm.layout import BIOS_DATA, COM1, COM2, EBDA_START, VIDEO_START
from pykvm.tables.table import Piece
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.tables.hardware import Hardware

__all__ = ["bios_data"]

SERIAL_PORTS = {"com1": COM1, "com2": COM2}

# The word at 0x410: how many serial ports there are, in bits 9 to 11.
_SERIAL_COUNT_SHIFT = 9


def bios_data(hardware: Hardware) -> tuple[Piece, Piece]:
    """The first 0x15 bytes of the BIOS data area, and the word at the start of the EBDA."""
    serial = [port for name, port in SERIAL_PORTS.items() if name in hardware.devices]
    area = struct.pack(
        "<4H3HHHBH",
        *(serial + 4 * [0])[:4],
        *3 * [0],  # parallel ports
        EBDA_START >> 4,
        len(serial) << _SERIAL_COUNT_SHIFT,
        0,
        EBDA_START >> 10,  # KiB of memory below it
    )
    extended = struct.pack("<B", (VIDEO_START - EBDA_START) >> 10)
    return Piece("BDA", BIOS_DATA, area), Piece("EBDA", EBDA_START, extended)
