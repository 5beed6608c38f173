"""Where things go in guest memory: free RAM, handed out first fit, and segments, written."""

from __future__ import annotations

from pykvm.boot.image import Range
from pykvm.errors import LoadError
from pykvm.layout import FOUR_GIB
from pykvm.typed import TYPE_CHECKING
from pykvm.values.sizes import format_size
from pykvm.values.spelling import option
from pykvm.x86.state import Mode

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pykvm.boot.image import Image, Segment
    from pykvm.boot.source import Content, Source
    from pykvm.memory import GuestMemory

__all__ = [
    "ENTRY_LIMIT",
    "FreeMemory",
    "check_reach",
    "check_segments",
    "describe",
    "ram_ranges",
    "write_content",
    "write_segment",
]

PAGE_SIZE = 0x1000

#: The first address that code in this mode cannot start at.
ENTRY_LIMIT = {Mode.REAL: 1 << 20, Mode.PROTECTED: FOUR_GIB, Mode.LONG: 1 << 47}

_ZEROS = bytes(64 << 10)
_LARGEST_ADVICE = 1 << 40


class FreeMemory:
    """The RAM of a machine that an image leaves free, from its second page on.

    The first page stays as it is: a null pointer points there, and so does real mode's interrupt
    table.  `name` is the image's, for messages; what is handed out ends at `limit` or below.

    >>> free = FreeMemory("a.elf", [(0, 0x8000)], taken=[Range("code", 0x2000, 0x3000)])
    >>> str(free.take("stack", 0x2000)), str(free.take("gdt", 0x58))
    ('stack (0x3000-0x5000)', 'gdt (0x1000-0x1058)')
    """

    def __init__(
        self,
        name: str,
        ram: Iterable[tuple[int, int]],
        taken: Iterable[Range] = (),
        *,
        limit: int = FOUR_GIB,
    ) -> None:
        self._name = name
        self._ram = _joined(sorted(ram))
        self._free = [(start, min(end, limit)) for start, end in self._ram if start < limit]
        self.remove(0, PAGE_SIZE)
        for piece in taken:
            self.remove(piece.start, piece.end)

    @property
    def end(self) -> int:
        """The first address after all RAM."""
        return max((end for _, end in self._ram), default=0)

    @property
    def size(self) -> int:
        """All RAM, free or not, in bytes."""
        return sum(end - start for start, end in self._ram)

    def is_ram(self, piece: Range) -> bool:
        """Whether all of `piece` is RAM, free or not."""
        return any(start <= piece.start and piece.end <= end for start, end in self._ram)

    def take(self, name: str, size: int, *, align: int = PAGE_SIZE, low: int = 0) -> Range:
        """Take the lowest free `size` bytes from `low` on that start at a multiple of `align`.

        Raises LoadError with the numbers where no piece is large enough.
        """
        first = self.find(size, align=align, low=low)
        if first is not None:
            self.remove(first, first + size)
            return Range(name, first, first + size)
        raise self._no_room(name, size, self._free, "")

    def take_highest(
        self, name: str, size: int, *, limit: int = FOUR_GIB, align: int = PAGE_SIZE
    ) -> Range:
        """Take the highest free `size` bytes that end at `limit` or below.  Raises as `take` does.

        >>> str(FreeMemory("a.elf", [(0, 0x8000)]).take_highest("initrd", 0x1800))
        'initrd (0x6000-0x7800)'
        """
        free = [(start, min(end, limit)) for start, end in self._free if start < limit]
        for start, end in reversed(free):
            first = (end - size) // align * align
            if first >= start:
                self.remove(first, first + size)
                return Range(name, first, first + size)
        raise self._no_room(name, size, free, f" below {limit:#x}" if limit < FOUR_GIB else "")

    def _no_room(
        self, name: str, size: int, free: Iterable[tuple[int, int]], where: str
    ) -> LoadError:
        largest = max((end - start for start, end in free), default=0)
        return LoadError(
            f"{self._name}: no room for the {name} ({format_size(size)}): the largest free piece"
            f"{where} of the guest's {format_size(self.size)} of memory has {format_size(largest)}",
            hint=f"give the guest more memory ({option('memory')})",
        )

    def find(
        self, size: int, *, align: int, low: int = 0, high: int = FOUR_GIB, highest: bool = False
    ) -> int | None:
        """Where `size` free bytes start at a multiple of `align` and end at `high` or below.

        The lowest place from `low` on or, if wanted, the `highest`; None where there is none.
        """
        for start, end in reversed(self._free) if highest else self._free:
            last = (min(end, high) - size) // align * align
            first = -(-max(start, low) // align) * align
            if first <= last:
                return last if highest else first
        return None

    def remove(self, start: int, end: int) -> None:
        """Mark `start` to `end` as used, whether it was free or not."""
        free = []
        for first, last in self._free:
            free += [(first, min(last, start)), (max(first, end), last)]
        self._free = [(first, last) for first, last in free if first < last]


def check_reach(source: Source, mode: Mode, entry: int) -> None:
    """Raise LoadError if code in `mode` cannot start at the address `entry`."""
    limit = ENTRY_LIMIT[mode]
    if not 0 <= entry < limit:
        raise source.error(
            f"entry {entry:#x} is out of reach in {mode.value} mode, which starts below {limit:#x}",
            hint=f"link it lower, or choose another mode ({option('mode')})",
        )


def check_segments(image: Image, memory: GuestMemory) -> None:
    """Raise LoadError, with numbers and advice, for a segment that is not in RAM as a whole."""
    for segment in image.segments:
        if not memory.covers(segment.address, segment.size):
            raise LoadError(
                f"{image.name}: {segment.range} lies outside guest memory ({describe(memory)})",
                hint=_advice(segment),
            )
        for region in memory.regions:
            if region.readonly and segment.range.overlaps(Range("", region.start, region.end)):
                raise LoadError(
                    f"{image.name}: {segment.range} lies in read-only memory ({region})",
                    hint="link it elsewhere, or put RAM there",
                )


def write_content(memory: GuestMemory, address: int, content: Content) -> None:
    """Write bytes of a guest file to `address`; such as are still in the file go there at once.

    Raises LoadError if the file has changed meanwhile.
    """
    if isinstance(content, (bytes, bytearray, memoryview)):
        memory.write(address, content)
        return
    for region in memory.regions:
        low, high = max(address, region.start), min(address + len(content), region.end)
        if low < high:
            content.read_into(memory.view(low, high - low), low - address)


def write_segment(memory: GuestMemory, segment: Segment) -> None:
    """Write the bytes of a segment and the zeros after them.

    Zeros are written only where there are none yet: a write would make the host back a page that
    the guest may never use.
    """
    write_content(memory, segment.address, segment.data)
    for address in range(segment.address + len(segment.data), segment.end, len(_ZEROS)):
        length = min(len(_ZEROS), segment.end - address)
        if memory.read(address, length) != _ZEROS[:length]:
            memory.fill(address, length)


def ram_ranges(memory: GuestMemory) -> Sequence[tuple[int, int]]:
    """List the (start, end) of what the guest can write."""
    return [(region.start, region.end) for region in memory.regions if not region.readonly]


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join sorted ranges that touch."""
    joined: list[tuple[int, int]] = []
    for start, end in ranges:
        if joined and joined[-1][1] == start:
            joined[-1] = joined[-1][0], end
        else:
            joined.append((start, end))
    return joined


def describe(memory: GuestMemory) -> str:
    """Guest memory in a few words, for messages."""
    regions = memory.regions
    if len(regions) == 1 and regions[0].start == 0:
        return format_size(regions[0].end)
    return ", ".join(map(str, regions)) or "there is none"


def _advice(segment: Segment) -> str:
    """Advise the next power of two that holds the segment, unless that is out of all proportion."""
    enough = 1 << (segment.end - 1).bit_length()
    if enough > _LARGEST_ADVICE:
        return "link it lower"
    size = format_size(enough).replace(" ", "").removesuffix("iB")
    return f"give the guest more memory ({option('memory', size)}) or link it lower"
