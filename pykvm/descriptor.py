"""File descriptors that an exception cannot leave open."""

from __future__ import annotations

import os
from errno import EINTR

from pykvm._core import ffi, lib
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from typing_extensions import Self

__all__ = ["Descriptor"]


class Descriptor:
    """A file descriptor, open until `close` or until the last reference to this is gone.

    An int that `os.open` returns belongs to nothing until it is stored, and Python may call a
    signal's handler before that, which may raise.  Here the object is made first, and C stores in
    it what C opens (pykvm/_core/descriptor.c); C closes it too.

    The functions that open raise OSError.

    >>> with Descriptor.open("/dev/null", os.O_RDONLY) as null:
    ...     os.read(null.fileno(), 1)
    b''
    >>> null
    <Descriptor closed>
    """

    __slots__ = ("_core",)

    def __init__(self) -> None:
        """Closed, as yet."""
        new = ffi.new("struct pykvm_descriptor *", {"fd": -1})
        self._core: Any = ffi.gc(new, lib.pykvm_close)

    @classmethod
    def open(cls, path: str | os.PathLike[str], flags: int, mode: int = 0o600) -> Descriptor:
        """The file at `path`, opened as by `os.open`.  Raises ValueError for a path with a NUL.

        `mode` are the permissions of a file that is created.
        """
        name = os.fsencode(path)
        if b"\0" in name:
            raise ValueError("embedded null byte")
        return cls._opened_by(lib.pykvm_open, name, flags, mode)

    @classmethod
    def memfd(cls, name: str, flags: int) -> Descriptor:
        """An anonymous file, made as by `os.memfd_create`."""
        return cls._opened_by(lib.pykvm_open_memfd, name.encode(), flags)

    @classmethod
    def ioctl(cls, fd: int, number: int, argument: int) -> Descriptor:
        """What an ioctl returns; `argument` is an unsigned integer of 64 bits, or an address."""
        return cls._opened_by(lib.pykvm_open_ioctl, fd, number, argument)

    @classmethod
    def kvm_device(cls, vm: int, type: int) -> Descriptor:
        """What KVM_CREATE_DEVICE stores."""
        return cls._opened_by(lib.pykvm_open_device, vm, type)

    @classmethod
    def _opened_by(cls, function: Callable[..., int], *arguments: Any) -> Descriptor:
        result = cls()
        # A signal whose handler does not raise interrupts nothing (PEP 475).
        while error := -function(result._core, *arguments):
            if error != EINTR:
                raise OSError(error, os.strerror(error))
        return result

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return bool(self._core.fd < 0)

    def fileno(self) -> int:
        """The number, as files have it.  Raises ValueError if it is closed."""
        fd = int(self._core.fd)
        if fd < 0:
            raise ValueError("this file descriptor is closed")
        return fd

    def close(self) -> None:
        """Close it; closing twice does nothing, from whichever threads."""
        lib.pykvm_close(self._core)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Descriptor {'closed' if self.closed else self.fileno()}>"
