"""Guest files, read from their path or taken as their bytes."""

from __future__ import annotations

import os
import stat

from pykvm.boot.source import Source
from pykvm.descriptor import Descriptor
from pykvm.errors import LoadError

__all__ = ["read_source", "source_of"]


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
