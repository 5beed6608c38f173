"""A large guest file, read piece by piece: straight into the guest's memory, for the most part.

Of a kernel with debug information most is never needed, and what is needed would be copied twice.

The file is not kept open, and not mapped: one that is cut short meanwhile must not kill the program
with SIGBUS.  One that has changed since it was first looked at is refused instead.
"""

from __future__ import annotations

import os

from pykvm.boot.source import Source
from pykvm.descriptor import Descriptor
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.boot.source import Content
    from pykvm.errors import LoadError

__all__ = ["FilePart", "LargeFile"]

# What says what kind of file it is, and how to load it, stands at its start as a rule.
_HEAD = 64 << 10


class LargeFile(Source):
    """The file at `path`, of which `status` is what fstat told when it was found sound.

    Raises LoadError wherever something is read that is no longer what it was then.
    """

    __slots__ = ("_head", "_path", "_size", "_stamp")

    def __init__(self, name: str, path: str, status: os.stat_result) -> None:
        super().__init__(name, b"")
        self._path = os.path.abspath(path)
        self._size = status.st_size
        self._stamp = _stamp(status)
        self._head = self._read(0, min(_HEAD, self._size))

    def __len__(self) -> int:
        return self._size

    @property
    def data(self) -> memoryview:
        """All of the file, read when it is first asked for."""
        if not self._data:
            self._data = self._read(0, self._size)
        return self._data

    def part(self, start: int, size: int) -> memoryview:
        """The `size` bytes from `start` on, or as many as there are."""
        end = min(start + size, self._size)
        if end <= len(self._head):
            return self._head[start:end]
        return self._read(start, end - start) if start < end else memoryview(b"")

    def slice(self, start: int, size: int) -> Content:
        """The same, to be read when it is needed."""
        return FilePart(self, start, max(min(size, self._size - start), 0))

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from `offset` in the file on."""
        try:
            with Descriptor.open(self._path, os.O_RDONLY | os.O_NONBLOCK) as file:
                if _stamp(os.fstat(file.fileno())) != self._stamp:
                    raise self._changed()
                while buffer:
                    count = os.preadv(file.fileno(), [buffer], offset)
                    if not count:
                        raise self._changed()
                    buffer, offset = buffer[count:], offset + count
        except OSError as error:
            raise self.error(f"cannot be read: {error.strerror}") from error

    def _read(self, offset: int, size: int) -> memoryview:
        try:
            buffer = bytearray(size)
        except MemoryError:
            raise self.error(f"cannot be read: no memory for {size:#x} bytes of it") from None
        self.read_into(memoryview(buffer), offset)
        return memoryview(buffer).toreadonly()

    def _changed(self) -> LoadError:
        return self.error(
            "has changed since it was loaded", hint="wait until it is built, and load it again"
        )


class FilePart:
    """`size` bytes of a file from `start` on; `read_into` and `bytes` read them."""

    __slots__ = ("_file", "_size", "_start")

    def __init__(self, file: LargeFile, start: int, size: int) -> None:
        self._file = file
        self._start = start
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return bytes(self._file.part(self._start, self._size))

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill `buffer` with the part's bytes from `start` on.  Raises as its file does."""
        self._file.read_into(buffer, self._start + start)


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return (
        *(status.st_dev, status.st_ino, status.st_size),
        *(status.st_mtime_ns, status.st_ctime_ns),
    )
