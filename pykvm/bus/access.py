"""A device's methods as a range of the bus calls them: whole, by width, and from an offset."""

from __future__ import annotations

from pykvm.bus.device import check_device, odd_answer
from pykvm.errors import ConfigError
from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import integer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pykvm.bus.device import Device

    Read = Callable[[int, int], int]
    Write = Callable[[int, int, int], None]
    TakeWrites = Callable[[Sequence[tuple[int, int, int]]], None]
    ReadString = Callable[[int, int, int], bytes]

__all__ = ["MASKS", "SIZES", "accessors"]

#: The sizes that a device may be asked for, in bytes.
SIZES = frozenset((1, 2, 4, 8))
#: All ones, by size in bytes.
MASKS = [(1 << (8 * size)) - 1 for size in range(9)]


def accessors(
    device: Device, bias: int
) -> tuple[Read, Write, TakeWrites | None, ReadString | None]:
    """How to read and write `device`, one by one and in bulk, whatever it leaves out of that.

    `bias` is the device's offset at the start of the range.
    """
    name = check_device(device)
    read: Read | None = getattr(device, "read", None)
    write: Write | None = getattr(device, "write", None)
    posted: TakeWrites | None = getattr(device, "posted", None) if write is None else None
    if read is None and write is None and posted is None:
        raise ConfigError(f"{name} is no device: it has none of read, write and posted")
    width = integer(f"{name}: width", getattr(device, "width", 8))
    if width not in SIZES:
        raise ConfigError(f"{name}: width is 1, 2, 4 or 8, not {width!r}")
    read_string: ReadString | None = getattr(device, "read_string", None)
    if width < 8 or bias:
        # Pieces at other offsets: one by one, as `read` has them.
        read_string = None
        read = read and _adapted_read(name, read, width, bias)
        write = write and _adapted_write(write, width, bias)
        posted = posted and _adapted_posted(posted, width, bias)
    return (
        read or _all_ones,
        write or (_one_by_one(posted) if posted else _ignore),
        posted,
        read_string,
    )


def _all_ones(at: int, size: int) -> int:
    return MASKS[size]


def _ignore(at: int, size: int, value: int) -> None:
    pass


def _one_by_one(posted: TakeWrites) -> Write:
    return lambda at, size, value: posted(((at, size, value),))


def _adapted_read(name: str, read: Read, width: int, bias: int) -> Read:
    """`read` from `bias` on, never asked for more than `width` bytes at once."""

    def adapted(at: int, size: int) -> int:
        if size <= width:
            return read(bias + at, size)
        value = 0
        for step in range(0, size, width):
            part = read(bias + at + step, width)
            if type(part) is not int:
                part = odd_answer(name, part)
            value |= (part & MASKS[width]) << (8 * step)
        return value

    return adapted


def _adapted_write(write: Write, width: int, bias: int) -> Write:
    """`write` from `bias` on, never given more than `width` bytes at once."""

    def adapted(at: int, size: int, value: int) -> None:
        if size <= width:
            write(bias + at, size, value)
            return
        for step in range(0, size, width):
            write(bias + at + step, width, value >> (8 * step) & MASKS[width])

    return adapted


def _adapted_posted(posted: TakeWrites, width: int, bias: int) -> TakeWrites:
    """`posted` from `bias` on, never given a write of more than `width` bytes."""

    def adapted(writes: Sequence[tuple[int, int, int]]) -> None:
        parts: list[tuple[int, int, int]] = []
        collect = _adapted_write(lambda *part: parts.append(part), width, bias)
        for write in writes:
            collect(*write)
        posted(parts)

    return adapted
