"""The bytes of a guest file and the name that its errors carry."""

from __future__ import annotations

from pykvm.errors import LoadError
from pykvm.typed import TYPE_CHECKING, cast
from pykvm.values.frozen import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol, TypeAlias, TypeVar

    from pykvm.boot.real_start import RealAddress
    from pykvm.x86.state import Mode

    #: Bytes of a guest file, in memory or to be read when they are needed.
    Content: TypeAlias = "bytes | bytearray | memoryview | Unread"

    T = TypeVar("T")

    class Unread(Protocol):
        """Bytes that are read when they are needed: see `pykvm.boot.large_file.FilePart`."""

        def __len__(self) -> int: ...

        def __bytes__(self) -> bytes: ...

        def read_into(self, buffer: memoryview, start: int, /) -> None: ...


__all__ = ["Request", "Source"]


class Source:
    """A guest file as bytes, named; one that is large is a `LargeFile`.

    >>> str(Source("empty.elf", b"").error("is empty"))
    'empty.elf: is empty'
    """

    __slots__ = ("_data", "_found", "name")

    def __init__(self, name: str, data: bytes | bytearray | memoryview) -> None:
        self.name = name
        self._found: dict[object, object] = {}
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

    def once(self, find: Callable[[Source], T]) -> T:
        """What `find` gives for this file: it is looked for once."""
        if find not in self._found:
            self._found[find] = find(self)
        return cast("T", self._found[find])

    def error(self, message: str, *, hint: str = "") -> LoadError:
        """Return the LoadError that says `message` about this file."""
        return LoadError(f"{self.name}: {message}", hint=hint)


class Request(NamedTuple):
    """What the caller asked for beside the file; None leaves it to the file.

    `mode` is the CPU mode at entry, `address` where the image (a flat one or a PIE) is put;
    `protocol` is the name of the boot protocol that the caller insists on.  `room` is the size of
    the guest's memory in bytes: nothing larger is unpacked for it.  `entry` and `stack` are where a
    real-mode image starts and where its stack ends.
    """

    mode: Mode | None = None
    address: int | None = None
    protocol: str | None = None
    room: int | None = None
    entry: RealAddress | None = None
    stack: RealAddress | None = None
