"""The pages of one mapping: which were written, and what they held when they were frozen."""

from __future__ import annotations

# weakref imports much more than this.
from _weakref import ref
from itertools import count

from pykvm._core import ffi, lib, owned
from pykvm.errors import HostError, is_exhaustion, resource_error
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from typing_extensions import Buffer

__all__ = ["PAGE_SIZE", "Pages", "refusal"]

PAGE_SIZE = 4096

# So many views may have died before they are looked for.
_DEAD_VIEWS = 64


class Pages:
    """What pykvm/_core/dirty.h knows of the mapping of `size` bytes at `address`.

    A store marks the pages that it wrote.  It is one call of C: an exception may come between two
    instructions of Python, and would leave a page that is written and not marked.
    """

    __slots__ = ("_numbers", "_sweep", "_views", "core")

    def __init__(self, address: int, size: int) -> None:
        host = ffi.cast("void *", address)
        self.core: Any = owned(lib.pykvm_pages_new, lib.pykvm_pages_free, host, size // PAGE_SIZE)
        if not self.core:
            raise resource_error(f"cannot track {size:#x} bytes of guest memory", 12)
        #: By number: a buffer that views were made of, and its place.
        self._views: dict[int, tuple[ref[Any], int, int]] = {}
        self._numbers = count()
        self._sweep = _DEAD_VIEWS

    def store(self, offset: int, data: Buffer, size: int) -> None:
        """Copy `data`, `size` bytes of it, to `offset`."""
        lib.pykvm_store(self.core, offset, ffi.from_buffer(data), size)

    def fill(self, offset: int, size: int, byte: int) -> None:
        """Set `size` bytes from `offset` on to `byte`."""
        lib.pykvm_fill(self.core, offset, byte, size)

    def mark(self, offset: int, size: int) -> None:
        """Count `size` bytes from `offset` on as written."""
        lib.pykvm_mark(self.core, offset, size)

    def view(self, mapped: Any, offset: int, length: int) -> memoryview:
        """`length` bytes of `mapped` from `offset` on, whose pages count as written meanwhile.

        All views that are made of it, slices and casts, hold one object, and it dies with the last
        of them.
        """
        if len(self._views) >= self._sweep:
            self.mark_views()
            self._sweep = 2 * len(self._views) + _DEAD_VIEWS
        buffer = ffi.buffer(mapped)
        self._views[next(self._numbers)] = ref(buffer), offset, length
        return memoryview(buffer)[offset : offset + length]

    def mark_views(self) -> bool:
        """Mark what views may have written; whether there were any."""
        views = list(self._views.items())
        for number, (buffer, offset, size) in views:
            # Looked at before it is marked: what dies in between is marked once more, next time.
            dead = buffer() is None
            self.mark(offset, size)
            if dead:
                self._views.pop(number, None)
        return bool(views)

    def freeze(self) -> Any:
        """What is in the pages now, a struct pykvm_content; none of them is dirty then.

        Raises ResourceError, and nothing is changed.
        """
        content = owned(lib.pykvm_freeze, lib.pykvm_content_free, self.core)
        if not content:
            raise refusal("freeze guest memory", self.core.error)
        return content


def refusal(what: str, number: int) -> HostError:
    """The error for an errno that C returned."""
    if is_exhaustion(number):
        return resource_error(f"cannot {what}", number)
    import os

    return HostError(f"cannot {what}: {os.strerror(number)}")
