"""What a kernel finds in memory, gathered first and written once all of it has found its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm.boot.image import Range
from pykvm.boot.placement import (
    FreeMemory,
    check_segments,
    ram_ranges,
    write_content,
    write_segment,
)
from pykvm.errors import LoadError
from pykvm.tables.e820 import BIOS_END, EBDA_START

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.boot.image import Image, Segment
    from pykvm.boot.source import Content
    from pykvm.memory import GuestMemory
    from pykvm.tables import Tables

__all__ = ["LOW", "Assembly"]

# Where small things go.  Below, kernels put the start-up code of their other processors; QEMU's
# multiboot information is at this address, too.
LOW = 0x9000
MIB = 1 << 20
PAGE_SIZE = 0x1000


class Assembly:
    """An image and the things around it, none over another, none where a PC's firmware is.

    Raises LoadError, as all of its methods do, for what lies outside RAM or finds no room in it;
    until `write` nothing is changed in `memory`.
    """

    def __init__(self, image: Image, memory: GuestMemory) -> None:
        check_segments(image, memory)
        self._image = image
        self._memory = memory
        self._writes: list[tuple[int, Content]] = []
        self._layout = [segment.range for segment in image.segments]
        self.free = free_memory(image.name, memory, self._layout)
        #: The first address behind the image.
        self.end = max(segment.end for segment in image.segments)

    @property
    def layout(self) -> tuple[Range, ...]:
        """What lies where, by address."""
        return tuple(sorted(self._layout, key=lambda place: place.start))

    def reserve(self, name: str, size: int, *, align: int = 16, low: int = LOW) -> Range:
        """Take `size` bytes from `low` on."""
        place = self.free.take(name, size, align=align, low=low)
        self._layout.append(place)
        return place

    def put(self, name: str, data: bytes, *, align: int = 16) -> Range:
        """Find a place for something small."""
        place = self.reserve(name, len(data), align=align)
        self.fill(place.start, data)
        return place

    def behind(self, name: str, size: int) -> Range:
        """Take whole pages for something large: behind the image or, if it is full, from 1 MiB on.

        Kernels take the memory behind the last thing that was loaded for free.
        """
        low = self.end if self._has_room(size, self.end) else MIB
        return self.reserve(name, size, align=PAGE_SIZE, low=low)

    def has_room_behind(self, size: int) -> bool:
        """Whether `behind` would find it."""
        return self._has_room(size, min(self.end, MIB))

    def _has_room(self, size: int, low: int) -> bool:
        return self.free.find(size, align=PAGE_SIZE, low=low) is not None

    def fill(self, address: int, data: Content) -> None:
        """Note what belongs at `address`, in a place that was taken."""
        self._writes.append((address, data))

    def add_tables(self, tables: Tables) -> None:
        """Put the firmware's tables where they belong, which must be RAM that the image left."""
        for piece in tables.pieces:
            place = Range(piece.name, piece.address, piece.address + len(piece.data))
            for segment in self._image.segments:
                if segment.range.overlaps(place):
                    raise LoadError(
                        f"{self._image.name}: {segment.range} lies over the firmware's {place}",
                        hint="link it from 1 MiB on, as kernels for PCs are",
                    )
            if not self.free.is_ram(place):
                raise LoadError(
                    f"{self._image.name}: the firmware's {place} would lie outside the RAM",
                    hint="give the guest RAM up to 1 MiB at least (--memory)",
                )
            self._layout.append(place)
            self.fill(place.start, piece.data)

    def write(self) -> None:
        """Write all of it."""
        for segment in self._image.segments:
            write_segment(self._memory, segment)
        for address, data in self._writes:
            write_content(self._memory, address, data)


def free_memory(name: str, memory: GuestMemory, taken: Sequence[Range]) -> FreeMemory:
    """What a kernel's things may lie in: RAM below 4 GiB, without the PC's own places."""
    firmware = Range("firmware", EBDA_START, BIOS_END)
    return FreeMemory(name, ram_ranges(memory), [*taken, firmware])


def moved(segments: Sequence[Segment], distance: int) -> tuple[Segment, ...]:
    """`segments`, all of them `distance` bytes further up."""
    return tuple(segment._replace(address=segment.address + distance) for segment in segments)
