"""What goes into a PC's memory for a kernel, decided as a whole before any of it is written."""

from __future__ import annotations

from pykvm.boot.image import Range
from pykvm.boot.placement import (
    FreeMemory,
    check_segments,
    ram_ranges,
    write_content,
    write_segment,
)
from pykvm.errors import LoadError
from pykvm.layout import FOUR_GIB
from pykvm.tables import E820Type, Tables, build, memory_map
from pykvm.tables.e820 import KEPT
from pykvm.typed import TYPE_CHECKING
from pykvm.values.spelling import option

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pykvm.boot.image import Image
    from pykvm.boot.source import Content
    from pykvm.memory import GuestMemory
    from pykvm.tables import E820Entry, Hardware

__all__ = ["Plan", "free_memory"]

MIB = 1 << 20
PAGE_SIZE = 0x1000


class Plan:
    """An image and the pieces around it, none over another, none where a PC's firmware is.

    Pieces lie in what `memory_map`, which is for the kernel, calls RAM, the small ones from `low`
    on; `taken` stays free of them.  Until `write` nothing is changed in `memory`.

    Raises LoadError, as all of its methods do, for what lies outside RAM or finds no room in it.
    """

    def __init__(
        self, image: Image, memory: GuestMemory, taken: Iterable[Range] = (), *, low: int = 0
    ) -> None:
        check_segments(image, memory)
        self._image = image
        self._memory = memory
        self._low = low
        self._writes: list[tuple[int, Content]] = []
        self._layout = [segment.range for segment in image.segments]
        self._free = free_memory(image.name, memory, [*self._layout, *taken])
        self.memory_map: list[E820Entry] = memory_map(ram_ranges(memory))
        for segment in self._layout:
            if not self._free.is_ram(segment):
                kept = ", ".join(f"{start:#x}-{end:#x}" for start, end in KEPT)
                raise LoadError(
                    f"{image.name}: {segment} reaches into what a PC keeps to itself: {kept}",
                    hint="link it from 1 MiB on, as kernels for PCs are",
                )

    @property
    def layout(self) -> tuple[Range, ...]:
        """What lies where, by address."""
        return tuple(sorted(self._layout, key=lambda place: place.start))

    def lowest(self, name: str, size: int, *, align: int = 16) -> Range:
        """Take `size` bytes as low as possible."""
        return self._take(self._free.take(name, size, align=align, low=self._low))

    def highest(self, name: str, size: int, *, limit: int = FOUR_GIB) -> Range:
        """Take `size` bytes from the start of a page, as high as possible below `limit`."""
        return self._take(self._free.take_highest(name, size, limit=limit))

    def after(self, name: str, size: int) -> Range:
        """Take whole pages for something large: after the image or, if that is full, from 1 MiB on.

        Kernels treat the memory after the last thing loaded as free.
        """
        low = self._end if self._has_room(size, self._end) else MIB
        return self._take(self._free.take(name, size, align=PAGE_SIZE, low=low))

    def has_room_after(self, size: int) -> bool:
        """Whether `after` would find it."""
        return self._has_room(size, min(self._end, MIB))

    def fill(self, address: int, content: Content) -> None:
        """Note what belongs at `address`, in a place that was taken."""
        self._writes.append((address, content))

    def add(self, name: str, content: Content, *, align: int = 16) -> Range:
        """Put something small as low as possible."""
        place = self.lowest(name, len(content), align=align)
        self.fill(place.start, content)
        return place

    def add_tables(self, hardware: Hardware | None) -> Tables:
        """Put the firmware's tables, none without `hardware`, where they belong."""
        if hardware is None:
            return Tables((), 0)
        tables = build(hardware)
        ram = FreeMemory(self._image.name, ram_ranges(self._memory))
        for piece in tables.pieces:
            place = Range(piece.name, piece.address, piece.address + len(piece.data))
            if not ram.is_ram(place):
                raise LoadError(
                    f"{self._image.name}: the firmware's {place} would lie outside the RAM",
                    hint="a PC has RAM from 0 to 1 MiB and beyond: give it more "
                    f"({option('memory')})",
                )
            # A kernel that is loaded over the BIOS data area has overwritten it.
            if not any(segment.range.overlaps(place) for segment in self._image.segments):
                self._take(place)
                self.fill(place.start, piece.data)
        return tables

    def write(self) -> None:
        """Write all of it."""
        for segment in self._image.segments:
            write_segment(self._memory, segment)
        for address, content in self._writes:
            write_content(self._memory, address, content)

    @property
    def _end(self) -> int:
        """The first address after the image."""
        return max(segment.end for segment in self._image.segments)

    def _has_room(self, size: int, low: int) -> bool:
        return self._free.find(size, align=PAGE_SIZE, low=low) is not None

    def _take(self, place: Range) -> Range:
        self._layout.append(place)
        return place


def free_memory(name: str, memory: GuestMemory, taken: Iterable[Range] = ()) -> FreeMemory:
    """What a kernel and its things may lie in: RAM below 4 GiB, without the PC's own places."""
    entries = memory_map(ram_ranges(memory))
    ram = [(one.address, one.end) for one in entries if one.type is E820Type.RAM]
    return FreeMemory(name, ram, taken)
