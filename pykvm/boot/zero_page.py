"""The zero page: `struct boot_params`, which describes the machine to a Linux kernel.

Source: Linux, Documentation/arch/x86/zero-page.rst, and boot.rst for the setup data after it.

What is left zero means "none": no display in screen_info, no EDD disks, no EFI.  So does the
sentinel: a loader that cleared the page is believed.
"""

from __future__ import annotations

import struct

from pykvm.boot.linux_header import HEADER_OFFSET
from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.boot.linux_header import SetupHeader
    from pykvm.tables import E820Entry

__all__ = [
    "E820_MAX_ENTRIES_ZEROPAGE",
    "SETUP_E820_EXT",
    "SETUP_RNG_SEED",
    "ZERO_PAGE_SIZE",
    "SetupData",
    "pack_setup_data",
    "zero_page",
]

ZERO_PAGE_SIZE = 0x1000

ACPI_RSDP_ADDR = 0x070
EXT_RAMDISK_IMAGE = 0x0C0
EXT_RAMDISK_SIZE = 0x0C4
EXT_CMD_LINE_PTR = 0x0C8
E820_ENTRIES = 0x1E8
E820_TABLE = 0x2D0
E820_MAX_ENTRIES_ZEROPAGE = 128

SETUP_E820_EXT = 1
SETUP_RNG_SEED = 9

_SETUP_DATA = struct.Struct("<QII")


class SetupData(NamedTuple):
    """One `struct setup_data`: what kind of data, and the data."""

    type: int
    data: bytes


def zero_page(
    header: SetupHeader,
    memory_map: Sequence[E820Entry],
    *,
    later: bytes = b"",
    rsdp: int = 0,
    initrd: tuple[int, int] = (0, 0),
    command_line: int = 0,
) -> bytes:
    """The page, with `header` in it and `later` after that.

    `rsdp` and `command_line` are addresses, `initrd` is an address and a size; their low halves go
    into the header, what does not fit there to the places that the page has for it.  The page takes
    128 entries of the memory map; the others belong into setup data.
    """
    image, size = initrd
    header = header._replace(
        ramdisk_image=image & 0xFFFF_FFFF,
        ramdisk_size=size & 0xFFFF_FFFF,
        cmd_line_ptr=command_line & 0xFFFF_FFFF,
    )
    entries = memory_map[:E820_MAX_ENTRIES_ZEROPAGE]
    page = bytearray(ZERO_PAGE_SIZE)
    for offset, content in (
        (ACPI_RSDP_ADDR, rsdp.to_bytes(8, "little")),
        (EXT_RAMDISK_IMAGE, (image >> 32).to_bytes(4, "little")),
        (EXT_RAMDISK_SIZE, (size >> 32).to_bytes(4, "little")),
        (EXT_CMD_LINE_PTR, (command_line >> 32).to_bytes(4, "little")),
        (E820_ENTRIES, bytes([len(entries)])),
        (HEADER_OFFSET, header.pack() + later),
        (E820_TABLE, b"".join(entry.pack() for entry in entries)),
    ):
        page[offset : offset + len(content)] = content
    return bytes(page)


def pack_setup_data(items: Sequence[SetupData], address: int) -> bytes:
    """The linked list of `items` as it lies at `address`, a multiple of 8.

    >>> pack_setup_data([SetupData(9, b"seed")], 0x1000).hex(" ", 4)
    '00000000 00000000 09000000 04000000 73656564 00000000'
    """
    packed = b""
    for number, item in enumerate(items, 1):
        size = _SETUP_DATA.size + -(-len(item.data) // 8) * 8
        following = address + len(packed) + size if number < len(items) else 0
        head = _SETUP_DATA.pack(following, item.type, len(item.data))
        packed += (head + item.data).ljust(size, b"\0")
    return packed
