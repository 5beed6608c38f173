"""The memory map that a PC's firmware hands to a kernel, by the name of the BIOS call it came from.

Source: ACPI Specification 6.5, chapter 15 "System Address Map Interfaces", table 15.5 (types).
"""

from __future__ import annotations

import struct

from pykvm import layout
from pykvm.layout import BIOS_END, BIOS_START, EBDA_START, VIDEO_START
from pykvm.typed import TYPE_CHECKING
from pykvm.values.enumeration import IntEnum
from pykvm.values.frozen import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "KEPT",
    "KVM_PAGES",
    "E820Entry",
    "E820Type",
    "memory_map",
]

_ENTRY = struct.Struct("<QQI")


class E820Type(IntEnum):
    """What a range of addresses is good for."""

    RAM = 1
    RESERVED = 2
    ACPI = 3
    NVS = 4
    UNUSABLE = 5


class E820Entry(NamedTuple):
    """A range of guest-physical addresses, `size` in bytes."""

    address: int
    size: int
    type: E820Type

    @property
    def end(self) -> int:
        """The first address after it."""
        return self.address + self.size

    def pack(self) -> bytes:
        """The 20 bytes that Linux's zero page and fw_cfg's etc/e820 have for it."""
        return _ENTRY.pack(self.address, self.size, self.type)

    def __str__(self) -> str:
        return f"{self.address:#x}-{self.end:#x} {self.type.name}"


#: Four pages that KVM keeps for itself on some processors (see `pykvm.host`).
KVM_PAGES = E820Entry(layout.KVM_PAGES, layout.KVM_PAGES_SIZE, E820Type.RESERVED)

#: The (start, end) of what is no RAM for a kernel, whatever memory is there.
KEPT = ((EBDA_START, BIOS_END), (KVM_PAGES.address, KVM_PAGES.end))


def memory_map(ram: Iterable[tuple[int, int]]) -> list[E820Entry]:
    """The map of a machine with RAM at these (start, end), sorted; what is KEPT cut out.

    >>> for entry in memory_map([(0, 64 << 20)]):
    ...     print(entry)
    0x0-0x9fc00 RAM
    0x9fc00-0xa0000 RESERVED
    0xe0000-0x100000 RESERVED
    0x100000-0x4000000 RAM
    0xfeffc000-0xff000000 RESERVED
    """
    entries = [
        E820Entry(EBDA_START, VIDEO_START - EBDA_START, E820Type.RESERVED),
        E820Entry(BIOS_START, BIOS_END - BIOS_START, E820Type.RESERVED),
        KVM_PAGES,
    ]
    for start, end in ram:
        for kept_start, kept_end in (*KEPT, (end, end)):
            last = min(end, kept_start)
            if start < last:
                entries.append(E820Entry(start, last - start, E820Type.RAM))
            start = max(start, kept_end)
    return sorted(entries)
