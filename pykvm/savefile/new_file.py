"""A file that comes into being whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress

from pykvm.descriptor import Descriptor
from pykvm.errors import ConfigError, HostError, is_exhaustion, resource_error
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["NewFile"]

# Guest memory may hold secrets.
_MODE = 0o600

# The file system, or the kernel, has no files without a name: open(2), O_TMPFILE.
_NAMELESS_REFUSED = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT})

_HINTS = {
    errno.ENOSPC: "the disk is full: nothing was saved, and what was there before is untouched",
    errno.EDQUOT: "the quota is used up: nothing was saved, and what was there before is untouched",
    errno.EFBIG: "see `ulimit -f`, and how large files may be on this file system",
}


class NewFile:
    """A file that stands under its name once it is complete and on the disk, and never before.

    ::

        with NewFile("booted.pykvm") as file:
            file.write(0, b"...")
            file.commit()

    It is written without a name where the file system has such files, so that even SIGKILL leaves
    nothing over; elsewhere under a name of its own, which any error takes away again.  A file that
    was there before is replaced at once, and stays as it is if anything fails.  A symbolic link is
    followed.

    Raises ConfigError where the path leads to something else than a regular file, HostError for
    what this host refuses (a full disk), ResourceError where it has run out of descriptors or
    memory.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fsdecode(path)
        _check(self.path)
        self._directory, self._name = os.path.split(os.path.realpath(self.path))
        self._temporary = f".pykvm-{secrets.token_hex(8)}.tmp"
        self._folder = self._file = Descriptor()
        self._named = False

    def __enter__(self) -> Self:
        try:
            self._folder = Descriptor.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
            self._file = self._open()
        except OSError as error:
            self._close()
            raise self._error(error) from error
        except BaseException:
            self._close()
            raise
        return self

    def _open(self) -> Descriptor:
        try:
            file = Descriptor.open(self._directory, os.O_TMPFILE | os.O_RDWR, _MODE)
        except OSError as error:
            if error.errno not in _NAMELESS_REFUSED:
                raise
        else:
            # Without /proc there is no way to name it later.
            if os.path.exists(f"/proc/self/fd/{file.fileno()}"):
                return file
            file.close()
        self._named = True
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW
        return Descriptor.open(os.path.join(self._directory, self._temporary), flags, _MODE)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write `data` at `offset`."""
        rest = memoryview(data).cast("B")
        try:
            while rest:
                count = os.pwrite(self._file.fileno(), rest, offset)
                rest, offset = rest[count:], offset + count
        except OSError as error:
            raise self._error(error) from error

    def commit(self, size: int) -> None:
        """Make it `size` bytes long, write it to the disk, and give it its name."""
        try:
            os.ftruncate(self._file.fileno(), size)
            os.fsync(self._file.fileno())
            self._name_it()
            _sync_folder(self._folder.fileno())
        except OSError as error:
            raise self._error(error) from error

    def _name_it(self) -> None:
        folder = self._folder.fileno()
        if not self._named:
            # It is this call, with AT_SYMLINK_FOLLOW, that linkat(2) has for O_TMPFILE.
            source = f"/proc/self/fd/{self._file.fileno()}"
            with suppress(FileExistsError):
                os.link(source, self._name, dst_dir_fd=folder, follow_symlinks=True)
                return
            self._named = True
            os.link(source, self._temporary, dst_dir_fd=folder, follow_symlinks=True)
        os.rename(self._temporary, self._name, src_dir_fd=folder, dst_dir_fd=folder)
        self._named = False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._named:
            with suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._folder.fileno())
            self._named = False
        self._file.close()
        self._folder.close()

    def _error(self, error: OSError) -> HostError:
        if is_exhaustion(error.errno):
            return resource_error(f"{self.path}: cannot be saved", error.errno or 0)
        return HostError(
            f"{self.path}: cannot be saved: {error.strerror}",
            hint=_HINTS.get(error.errno or 0, ""),
        )


def _check(path: str) -> None:
    """Raise ConfigError for what renaming would do away with: a device, a FIFO, a directory."""
    if not path or "\0" in path or path.endswith("/"):
        raise ConfigError(f"{path!r} is not the name of a file")
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except OSError:
        return
    if kind != stat.S_IFREG:
        raise ConfigError(f"{path}: is no regular file; it is left as it is")


def _sync_folder(fd: int) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        # Some file systems have nothing to write for a folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
