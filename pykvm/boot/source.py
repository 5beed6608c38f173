"""The bytes of a guest file and the name that its errors carry."""

from __future__ import annotations

import os
import stat

from pykvm.descriptor import Descriptor
from pykvm.errors import LoadError
from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple

if TYPE_CHECKING:
    from typing import TypeAlias

    from pykvm.boot.large_file import FilePart
    from pykvm.boot.real_start import RealAddress
    from pykvm.x86.state import Mode

    #: Bytes of a guest file, in memory or to be read when they are needed.
    Content: TypeAlias = bytes | bytearray | memoryview | FilePart

__all__ = ["Request", "Source", "read_source", "source_of"]


class Source:
    """A guest file as bytes, named; one that is large is a `LargeFile`.

    >>> str(Source("empty.elf", b"").error("is empty"))
    'empty.elf: is empty'
    """

    __slots__ = ("_data", "name")

    def __init__(self, name: str, data: bytes | bytearray | memoryview) -> None:
        self.name = name
        self._data = memoryview(bytes(data)).toreadonly()

    def __len__(self) -> int:
        return len(self._data)

    @property
    def data(self) -> memoryview:
        """All of the file."""
        return self._data

    def part(self, start: int, size: int) -> memoryview:
        """The `size` bytes from `start` on, or as many as there are."""
        return self._data[start : start + size]

    def slice(self, start: int, size: int) -> Content:
        """The same, to be read when it is needed."""
        return self._data[start : start + size]

    def error(self, message: str, *, hint: str = "") -> LoadError:
        """Return the LoadError that says `message` about this file."""
        return LoadError(f"{self.name}: {message}", hint=hint)


class Request(NamedTuple):
    """What the caller asked for beside the file; None leaves it to the file.

    `mode` is the CPU mode at entry, `address` where the image (a flat one or a PIE) is put; `boot`
    is the name of the boot protocol that the caller insists on.  `room` is the size of the guest's
    memory in bytes: nothing larger is unpacked for it.  `entry` and `stack` are where a real-mode
    image starts and where its stack ends.
    """

    mode: Mode | None = None
    address: int | None = None
    boot: str | None = None
    room: int | None = None
    entry: RealAddress | None = None
    stack: RealAddress | None = None


def source_of(
    file: str | os.PathLike[str] | bytes | bytearray | memoryview,
    *,
    name: str | None = None,
    nameless: str = "guest",
) -> Source:
    """A file by its path, or its bytes, which messages call `name` or else `nameless`.

    Raises LoadError as `read_source` does.
    """
    if isinstance(file, (bytes, bytearray, memoryview)):
        return Source(name if name is not None else nameless, file)
    return read_source(file, name=name)


def read_source(path: str | os.PathLike[str], *, name: str | None = None) -> Source:
    """Read the guest file at `path`; `name` (the file's own by default) is for messages.

    The file is read rather than mapped: a guest that is rebuilt while its machine runs must not
    change the symbols under it, nor kill the program with SIGBUS.  A large one is read piece by
    piece, as far as it is needed.

    Raises LoadError where the path leads to no regular file, or to one that cannot be read.
    """
    path = os.fspath(path)
    try:
        # O_NONBLOCK: opening a FIFO by mistake would wait for its other end.
        with Descriptor.open(path, os.O_RDONLY | os.O_NONBLOCK) as opened:
            fd = opened.fileno()
            status = os.fstat(fd)
            _check_kind(path, status)
            if status.st_size >= _LARGE:
                from pykvm.boot.large_file import LargeFile

                return LargeFile(name if name is not None else os.path.basename(path), path, status)
            with open(fd, "rb", buffering=0, closefd=False) as file:
                data = file.read()
    except (OSError, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "out of memory"
        raise LoadError(f"{path}: cannot be read: {reason}") from error
    return Source(name if name is not None else os.path.basename(path), data)


def _check_kind(path: str, status: os.stat_result) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise LoadError(f"{path}: is {_KINDS.get(kind, 'no regular file')}, not a guest file")
    if status.st_size > _host_memory():
        raise LoadError(
            f"{path}: is {status.st_size:#x} bytes long, more than this host has memory",
            hint="is it a core dump or a disk image?",
        )


# To read less in one piece is faster than to look at it in several.
_LARGE = 1 << 20


def _host_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}
