"""Finding a multiboot header: words that start with a magic number and add up to nothing."""

from __future__ import annotations

from struct import Struct

from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.boot.source import Source

__all__ = ["find_words"]

# A header may be at the start of a file only.  One further on is found, too, to be told of.
REACH = 1 << 20


def find_words(
    source: Source, magic: int, *, count: int, align: int
) -> tuple[int, tuple[int, ...]] | None:
    """The first `count` 32-bit words from `magic` on, at a multiple of `align`, with the sum 0.

    Returns their offset and the words; None if the first MiB has none.
    """
    shape = Struct(f"<{count}I")
    data = bytes(source.part(0, REACH))
    start = magic.to_bytes(4, "little")
    offset = data.find(start)
    while 0 <= offset <= len(data) - shape.size:
        if offset % align == 0:
            words = shape.unpack_from(data, offset)
            if sum(words) % (1 << 32) == 0:
                return offset, words
        offset = data.find(start, offset + 1)
    return None
