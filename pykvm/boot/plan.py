"""What goes into a PC's memory for a kernel, decided as a whole before any of it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm.boot.c_strings import c_string
from pykvm.boot.image import Range
from pykvm.boot.placement import (
    FreeMemory,
    check_segments,
    ram_ranges,
    write_content,
    write_segment,
)
from pykvm.errors import LoadError
from pykvm.tables import E820Type, build, memory_map

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pykvm.boot.image import Image, Setup
    from pykvm.boot.source import Content, Source
    from pykvm.memory import GuestMemory
    from pykvm.tables import E820Entry, Hardware

__all__ = ["Plan", "command_line", "pc_ram"]

_MIB = 1 << 20


class Plan:
    """The pieces beside a kernel's image: each finds its place when it is added.

    `memory_map` is what the kernel is told.  RAM is what that calls RAM, so without what a PC keeps
    to itself below 1 MiB; `taken` stays free of pieces, as do the image's segments.

    Raises LoadError if a segment does not lie in RAM as a whole.
    """

    def __init__(self, image: Image, memory: GuestMemory, taken: Iterable[Range] = ()) -> None:
        check_segments(image, memory)
        segments = [segment.range for segment in image.segments]
        self.memory_map, ram = pc_ram(memory)
        self._image = image
        self._memory = memory
        self._free = FreeMemory(image.name, ram, [*segments, *taken])
        self._ranges = segments
        self._writes: list[tuple[int, Content]] = []
        for segment in segments:
            if not self._free.is_ram(segment):
                raise LoadError(
                    f"{image.name}: {segment} reaches into what a PC keeps to itself below 1 MiB: "
                    + ", ".join(str(one) for one in self.memory_map if one.end <= _MIB),
                    hint="link it at 1 MiB or above",
                )

    def lowest(self, name: str, size: int, *, align: int = 16) -> Range:
        """Find room for `size` bytes, as low as possible.  Raises LoadError where there is none."""
        return self._add(self._free.take(name, size, align=align))

    def write(self, place: Range, content: Content) -> None:
        """Have `content` written to the start of `place`."""
        self._writes.append((place.start, content))

    def add(self, name: str, content: Content, *, align: int = 16) -> Range:
        """Put `content` as low as possible.  Raises LoadError."""
        place = self.lowest(name, len(content), align=align)
        self.write(place, content)
        return place

    def add_file(self, name: str, source: Source, *, limit: int) -> Range:
        """Put a file whole, page-aligned, as high as possible below `limit`.

        Raises LoadError, with the numbers.
        """
        place = self._add(self._free.take_highest(name, len(source), limit=limit))
        self.write(place, source.slice(0, len(source)))
        return place

    def add_tables(self, hardware: Hardware | None) -> int:
        """Put the tables that tell of `hardware` where they belong; returns the RSDP's address.

        Raises LoadError where there is no RAM for them.
        """
        if hardware is None:
            return 0
        tables = build(hardware)
        for piece in tables.pieces:
            place = Range(piece.name, piece.address, piece.address + len(piece.data))
            if not self._memory.covers(piece.address, len(piece.data)):
                raise LoadError(
                    f"{self._image.name}: no memory for the {place}",
                    hint="a PC has RAM from 0 to 1 MiB and beyond: give it more (--memory)",
                )
            self._add(place)
            self.write(place, piece.data)
        return tables.rsdp

    def carry_out(self) -> tuple[Range, ...]:
        """Write the image and all pieces; returns what lies where, by address."""
        for segment in self._image.segments:
            write_segment(self._memory, segment)
        for address, content in self._writes:
            write_content(self._memory, address, content)
        return tuple(sorted(self._ranges, key=lambda one: one.start))

    def _add(self, place: Range) -> Range:
        self._ranges.append(place)
        return place


def pc_ram(memory: GuestMemory) -> tuple[list[E820Entry], list[tuple[int, int]]]:
    """The memory map of a PC with this memory, and the (start, end) of what is RAM in it."""
    entries = memory_map(ram_ranges(memory))
    return entries, [(one.address, one.end) for one in entries if one.type == E820Type.RAM]


def command_line(name: str, setup: Setup, longest: int | None) -> bytes:
    """The words of `setup` joined by blanks, as a C string.

    Raises LoadError if it has more than `longest` bytes before its NUL (None: any number),
    ConfigError if it cannot be a C string.
    """
    line = c_string(" ".join(filter(None, (setup.append, *setup.args))), "command line")
    if longest is not None and len(line) - 1 > longest:
        raise LoadError(
            f"{name}: the command line has {len(line) - 1} bytes, and the kernel takes {longest}",
            hint="shorten it (--append): a kernel would cut it off without a word",
        )
    return line
