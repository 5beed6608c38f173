"""Bitmaps of pages: bit 0 of byte 0 is the first page, as in KVM's dirty log."""

from __future__ import annotations

from pykvm.savefile.manifest import PAGE
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Bitmap", "runs_of", "whole_pages"]

# How much is looked at, and written, at a time.
_PIECE = 1 << 20
_ZEROS = bytes(_PIECE)
_ZERO_PAGE = bytes(PAGE)


class Bitmap:
    """A bitmap in the making, for `size` bytes of memory."""

    def __init__(self, size: int) -> None:
        self._bits = bytearray((size // PAGE + 7) // 8)

    def add(self, start: int, end: int) -> None:
        """Note the pages from `start` to `end`, in bytes."""
        bits = self._bits
        page, last = start // PAGE, end // PAGE
        while page < last:
            if page % 8 == 0 and last - page >= 8:
                whole = (last - page) // 8
                bits[page // 8 : page // 8 + whole] = b"\xff" * whole
                page += 8 * whole
            else:
                bits[page // 8] |= 1 << page % 8
                page += 1

    def __bytes__(self) -> bytes:
        return bytes(self._bits)


def runs_of(bitmap: bytes) -> Iterator[tuple[int, int]]:
    """The runs of pages that are in `bitmap`, as offsets in bytes of their start and their end.

    >>> list(runs_of(bytes([0b110, 0, 0xFF, 0x01])))
    [(4096, 12288), (65536, 102400)]
    """
    import re

    start = end = 0
    for found in re.finditer(rb"\xff+|[^\x00\xff]", bitmap):
        first, last = 8 * found.start(), 8 * found.end()
        if bitmap[found.start()] == 0xFF:
            pieces = [(first, last)]
        else:
            byte = bitmap[found.start()]
            pieces = [(first + bit, first + bit + 1) for bit in range(8) if byte >> bit & 1]
        for a, b in pieces:
            if a == end:
                end = b
                continue
            if end > start:
                yield start * PAGE, end * PAGE
            start, end = a, b
    if end > start:
        yield start * PAGE, end * PAGE


def whole_pages(view: memoryview) -> Iterator[tuple[int, int]]:
    """The runs of pages in `view` that are not zeros, cut where they are long.

    >>> list(whole_pages(memoryview(bytes(4096) + b"a" * 8192 + bytes(8192))))
    [(4096, 12288)]
    """
    for start in range(0, len(view), _PIECE):
        piece = bytes(view[start : start + _PIECE])
        if piece == _ZEROS[: len(piece)]:
            continue
        first: int | None = None
        for at in range(0, len(piece), PAGE):
            if piece[at : at + PAGE] != _ZERO_PAGE:
                first = at if first is None else first
            elif first is not None:
                yield start + first, start + at
                first = None
        if first is not None:
            yield start + first, start + len(piece)
