"""Writing a file of sections."""

from __future__ import annotations

import hashlib
import zlib

from pykvm.errors import ConfigError
from pykvm.savefile.manifest import (
    ABSENT,
    FIRST_SECTION,
    LARGEST_BYTES,
    PAGE,
    Header,
    Manifest,
    Parent,
    StoredBytes,
    StoredPages,
    aligned,
    digest_of,
)
from pykvm.savefile.new_file import NewFile
from pykvm.savefile.pages import Bitmap, whole_pages
from pykvm.typed import TYPE_CHECKING
from pykvm.values import checks
from pykvm.values.frozen import NamedTuple

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable
    from typing import Any, TypeAlias

    #: Where in a region it lies, in bytes, and what is there: whole pages.
    Part: TypeAlias = tuple[int, memoryview]

__all__ = ["Bytes", "Pages", "write"]

# The fastest level: a state packs well, and is small.
_LEVEL = 1


class Bytes(NamedTuple):
    """A section of bytes."""

    name: str
    data: bytes


class Pages(NamedTuple):
    """A section as long as a region of memory, of `size` bytes.

    `parts` are what is in it, in order: whole pages from the start of one on.  Of a full section
    (`absent` is "zero") pages of zeros are left out.  Of a difference ("parent") the parts are what
    differs from the parent, zeros too.
    """

    name: str
    size: int
    parts: Iterable[Part]
    absent: str = "zero"


def write(
    path: str | os.PathLike[str],
    sections: Iterable[Bytes | Pages],
    *,
    about: Any,
    parent: Parent | None = None,
) -> str:
    """Write a file, or none, and return its id.

    `about` is for people who read the manifest: anything that JSON has, without fractions.  Equal
    contents make equal files.  Raises as `NewFile` does, and ConfigError for what does not fit.
    """
    with NewFile(path) as file:
        writer = _Writer(file)
        stored: dict[str, StoredBytes | StoredPages] = {}
        for section in sections:
            if section.name in stored:
                raise ConfigError(f"{file.path}: cannot be saved: {section.name!r} twice")
            stored[section.name] = writer.section(section)
        try:
            manifest = Manifest(about, parent, stored).pack()
        except ValueError as error:
            raise ConfigError(f"{file.path}: cannot be saved: {error}") from error
        header = Header(len(manifest), writer.end, digest_of(manifest))
        file.write(PAGE, manifest)
        file.write(0, header.pack())
        file.commit(writer.end)
        return header.id.hex()


class _Writer:
    """Places sections one after the other."""

    def __init__(self, file: NewFile) -> None:
        self._file = file
        self.end = FIRST_SECTION

    def section(self, section: Bytes | Pages) -> StoredBytes | StoredPages:
        if isinstance(section, Bytes):
            return self._bytes(section.name, section.data)
        return self._pages(section)

    def _bytes(self, name: str, data: bytes) -> StoredBytes:
        if len(data) > LARGEST_BYTES:
            raise ConfigError(
                f"{self._file.path}: cannot be saved: {name} has {len(data):#x} bytes, more than "
                f"{LARGEST_BYTES:#x}"
            )
        packed = zlib.compress(data, _LEVEL)
        unpacked = len(data) if len(packed) < len(data) else None
        kept = data if unpacked is None else packed
        offset = self._reserve(len(kept))
        self._file.write(offset, kept)
        return StoredBytes(offset, len(kept), unpacked, digest_of(kept))

    def _pages(self, section: Pages) -> StoredPages:
        name, size, parts, absent = section
        checks.one_of("absent", absent, ABSENT)
        if size <= 0 or size % PAGE:
            raise ConfigError(f"{name}: {size:#x} bytes are not a number of pages")
        offset = self._reserve(size)
        bitmap, hash = Bitmap(size), hashlib.blake2b(digest_size=32)
        at = 0
        for start, view in parts:
            end = start + len(view)
            if start % PAGE or end % PAGE or not at <= start <= end <= size:
                raise ConfigError(f"{name}: {start:#x} to {end:#x} is out of place")
            at = end
            if absent == "parent":
                bitmap.add(start, end)
                hash.update(view)
            for first, last in whole_pages(view):
                piece = view[first:last]
                self._file.write(offset + start + first, piece)
                if absent == "zero":
                    bitmap.add(start + first, start + last)
                    hash.update(piece)
        present = self._bytes(f"{name}.present", bytes(bitmap))
        return StoredPages(offset, size, absent, present, hash.digest())

    def _reserve(self, size: int) -> int:
        offset, self.end = self.end, aligned(self.end + size)
        return offset
