"""Reading a file of sections."""

from __future__ import annotations

import errno
import mmap
import os

from pykvm.descriptor import Descriptor
from pykvm.errors import ClosedError, LoadError, is_exhaustion, resource_error
from pykvm.savefile.magic import open_regular
from pykvm.savefile.manifest import (
    FIRST_SECTION,
    PAGE,
    Header,
    Manifest,
    Parent,
    StoredBytes,
    StoredPages,
    blake2b,
    digest_of,
)
from pykvm.savefile.pages import runs_of
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Any

    from typing_extensions import Self

__all__ = ["SavedFile"]

# How much of a region is in memory at a time while it is checked.
_PIECE = 1 << 20
# <asm-generic/mman.h>; Python names it only from 3.13 on.
_MAP_NORESERVE = 0x4000


class SavedFile:
    """An open file of sections; opening it checks the header and the manifest.

    `about` is what its writer says of it, `id` the hash of all of it, `parent` the file that it is
    a difference to.  `read` gives a section of bytes, `map` one of pages.

    What is mapped is the file: pykvm never changes one that exists, but replaces it.  Another
    program that cuts it short meanwhile makes the next access a SIGBUS, as with any mapped file.

    Raises LoadError for a file that pykvm did not save, or that is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fsdecode(path)
        self._file = Descriptor()
        try:
            self._file = open_regular(self.path)
            size = os.fstat(self._file.fileno()).st_size
            header = Header.unpack(self._read(0, min(PAGE, size)), self.path)
            if header.file_size != size:
                raise self._error(f"has {size:#x} bytes, its header says {header.file_size:#x}")
            if size < FIRST_SECTION:
                raise self._error(f"ends at {size:#x}, before its sections")
            data = self._read(PAGE, header.manifest_size)
            if digest_of(data) != header.id:
                raise self._error("its manifest is damaged (hash)")
            self._manifest = Manifest.unpack(data, size, self.path)
        except (OSError, ValueError) as error:
            self.close()
            raise self._refusal(error) from error
        except BaseException:
            self.close()
            raise
        self.id = header.id.hex()
        self.about: Any = self._manifest.about
        self.parent: Parent | None = self._manifest.parent

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its sections."""
        return tuple(self._manifest.sections)

    def read(self, name: str) -> bytes:
        """The bytes of a section.  Raises LoadError if it is damaged, or not there."""
        section = self._section(name)
        if not isinstance(section, StoredBytes):
            raise self._error(f"section {name!r} is memory")
        return self._bytes(name, section)

    def read_later(self, name: str) -> Callable[[], bytes]:
        """What returns the bytes of a section; it can be called when the file is closed.

        Raises LoadError now if the section is damaged, or not there; later if it was written so
        that it cannot be unpacked.
        """
        section = self._section(name)
        if not isinstance(section, StoredBytes):
            raise self._error(f"section {name!r} is memory")
        data = self._stored(name, section)
        return lambda: self._unpacked(name, section, data)

    def pages(self, name: str) -> StoredPages:
        """Where a region's pages are in the file.  Raises LoadError if there is no such region."""
        section = self._section(name)
        if not isinstance(section, StoredPages):
            raise self._error(f"section {name!r} is no memory")
        return section

    def present(self, name: str) -> bytes:
        """The bitmap of the pages of a region that are in the file; see `pages.runs_of`."""
        pages = self.pages(name)
        bitmap = self._bytes(f"{name}.present", pages.present)
        count = pages.size // PAGE
        if count % 8 and bitmap[-1] >> count % 8:
            raise self._error(f"{name}.present has pages after the last one")
        return bitmap

    def map(self, name: str) -> mmap.mmap:
        """A region, mapped: writing to it leaves the file alone.  Nothing is read yet.

        Raises ResourceError if this process has no room for it.
        """
        pages = self.pages(name)
        try:
            return mmap.mmap(
                self.fileno(),
                pages.size,
                flags=mmap.MAP_PRIVATE | _MAP_NORESERVE,
                offset=pages.offset,
            )
        except (OSError, OverflowError, ValueError) as error:
            raise self._refusal(error) from error

    def data(self, name: str) -> Iterator[tuple[int, bytes]]:
        """The pages of a region that are in the file, in pieces: where in it they lie, and they."""
        pages = self.pages(name)
        for start, end in runs_of(self.present(name)):
            for piece in range(start, end, _PIECE):
                yield piece, self._read(pages.offset + piece, min(_PIECE, end - piece))

    def fileno(self) -> int:
        """The descriptor.  Raises ClosedError."""
        if self._file.closed:
            raise ClosedError(f"{self.path}: is closed")
        return self._file.fileno()

    def open_parent(self) -> SavedFile:
        """The file that this one is a difference to, from the same directory.

        Raises LoadError if it is not there, or is another one by now.
        """
        assert self.parent is not None
        path = os.path.join(os.path.dirname(self.path), self.parent.name)
        try:
            found = SavedFile(path)
        except LoadError as error:
            raise self._error(
                f"is a difference to {self.parent.name}: {error.message}",
                hint="the two belong in one directory",
            ) from error
        if found.id != self.parent.id:
            found.close()
            raise self._error(
                f"is a difference to {self.parent.name} as it was when this was saved, "
                f"{self.parent.id[:12]}; the one beside it is {found.id[:12]}"
            )
        return found

    def verify(self) -> None:
        """Read everything, and raise LoadError if anything is not what it was when it was saved."""
        for name, section in self._manifest.sections.items():
            if isinstance(section, StoredBytes):
                self._bytes(name, section)
            else:
                self._verify_pages(name, section)

    def _verify_pages(self, name: str, section: StoredPages) -> None:
        hash = blake2b(digest_size=32)
        at = 0
        for start, end in runs_of(self.present(name)):
            self._verify_hole(name, section.offset + at, section.offset + start)
            at = end
        self._verify_hole(name, section.offset + at, section.end)
        for _, data in self.data(name):
            hash.update(data)
        if hash.digest() != section.digest:
            raise self._error(f"section {name!r} is damaged (hash)")

    def _verify_hole(self, name: str, start: int, end: int) -> None:
        """Pages that are left out are zeros in the file: they would be mapped, too."""
        for first, last in self._data(start, end):
            for piece in range(first, last, _PIECE):
                data = self._read(piece, min(_PIECE, last - piece))
                if data.count(0) != len(data):
                    raise self._error(f"section {name!r} is damaged: data where there is none")

    def _data(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """What of it the file system has not as a hole."""
        fd = self.fileno()
        while start < end:
            try:
                first = os.lseek(fd, start, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:  # there is none up to the end of the file
                    yield start, end
                return
            if first >= end:
                return
            start = os.lseek(fd, first, os.SEEK_HOLE)
            yield first, min(start, end)

    def _section(self, name: str) -> StoredBytes | StoredPages:
        section = self._manifest.sections.get(name)
        if section is None:
            raise self._error(f"has no section {name!r}")
        return section

    def _bytes(self, name: str, section: StoredBytes) -> bytes:
        return self._unpacked(name, section, self._stored(name, section))

    def _stored(self, name: str, section: StoredBytes) -> bytes:
        data = self._read(section.offset, section.size)
        if digest_of(data) != section.digest:
            raise self._error(f"section {name!r} is damaged (hash)")
        return data

    def _unpacked(self, name: str, section: StoredBytes, data: bytes) -> bytes:
        if section.unpacked is None:
            return data
        import zlib

        unpacker = zlib.decompressobj()
        try:
            # One more than there should be shows that there is more.
            unpacked = unpacker.decompress(data, section.unpacked + 1)
        except zlib.error as error:
            raise self._error(f"section {name!r} cannot be unpacked: {error}") from None
        if len(unpacked) != section.unpacked or not unpacker.eof or unpacker.unused_data:
            raise self._error(f"section {name!r} unpacks to another size than it says")
        return unpacked

    def _read(self, offset: int, size: int) -> bytes:
        fd, pieces = self.fileno(), []
        try:
            while size:
                piece = os.pread(fd, size, offset)
                if not piece:
                    raise self._error(f"ends at {offset:#x}")
                pieces.append(piece)
                offset, size = offset + len(piece), size - len(piece)
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        except (OSError, OverflowError) as error:
            raise self._refusal(error) from error

    def _error(self, message: str, *, hint: str = "") -> LoadError:
        return LoadError(f"{self.path}: {message}", hint=hint)

    def _refusal(self, error: Exception) -> Exception:
        """What to raise for an error of the host's."""
        number = getattr(error, "errno", None)
        if is_exhaustion(number):
            return resource_error(f"{self.path}: cannot be read", number or 0)
        reason = getattr(error, "strerror", None) or str(error)
        return self._error(f"cannot be read: {reason}")

    def close(self) -> None:
        """Close it; what is mapped stays."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<SavedFile {self.path} {self.id[:12]}>"
