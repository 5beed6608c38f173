"""Who answers at which port or address.

A device is any object with a `name` and some of `read`, `write` and `posted`; it sees offsets,
never its own address.  Ten lines are enough:

>>> class Doubler:
...     name = "doubler"
...     value = 0
...
...     def read(self, offset: int, size: int) -> int:
...         return self.value
...
...     def write(self, offset: int, size: int, value: int) -> None:
...         self.value = 2 * value
>>> bus = Bus()
>>> bus.add_pio(0x700, 4, Doubler()).slot
0
>>> bus.write(Space.PIO, 0x700, 4, 21), bus.read(Space.PIO, 0x700, 4)
(True, 42)
"""

from __future__ import annotations

from _thread import RLock
from bisect import bisect_right
from contextlib import suppress

from pykvm.bus.access import MASKS, SIZES, accessors
from pykvm.bus.device import Placement, Space, check_device, check_placement, odd_answer
from pykvm.errors import BusConflict, ConfigError, PykvmError
from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import buffer, show, word
from pykvm.values.frozen import NamedTuple
from pykvm.values.subscribers import Subscribers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from typing_extensions import Buffer

    from pykvm.bus.device import Device

__all__ = ["Area", "Bus", "Range", "check_free"]

_ALL_ONES = MASKS[8]


class Range(NamedTuple):
    """Addresses `first` to `last` of `space`, all of them `device`'s.

    `slot` is a number that no other range of the bus has or will have.

    `read(at, size)` and `write(at, size, value)` reach the device, or what stands for it where it
    lacks the method, for accesses of 1, 2, 4 or 8 bytes that lie in the range; `at` counts from
    `first`, which the device calls `offset`.  `posted` takes many writes (at, size, value) at once;
    it is None unless the device is a `PostedDevice` without `write`.  `read_string(at, size,
    count)` is None unless the device has one.
    """

    space: Space
    first: int
    last: int
    device: Device
    slot: int
    read: Callable[[int, int], int]
    write: Callable[[int, int, int], None]
    posted: Callable[[Sequence[tuple[int, int, int]]], None] | None
    read_string: Callable[[int, int, int], bytes] | None
    offset: int = 0

    @property
    def name(self) -> str:
        """The device's name."""
        return self.device.name

    def taken_over(self, device: Device) -> Range:
        """The same range with another device, whose offset 0 is its start."""
        return Range(self.space, self.first, self.last, device, self.slot, *accessors(device, 0))

    def __str__(self) -> str:
        return _told(self)

    def __repr__(self) -> str:
        return f"<Range {self}, slot {self.slot}>"


class Area(NamedTuple):
    """Addresses `first` to `last` of `space`, and what has them.

    What is `readonly` leaves the guest's writes to the bus.
    """

    name: str
    space: Space
    first: int
    last: int
    readonly: bool = False

    def __str__(self) -> str:
        return _told(self)


def _told(area: Area | Range) -> str:
    plural = "es" if area.space is Space.MMIO else "s"
    return f"{area.name} ({area.space.value}{plural} {area.first:#x}-{area.last:#x})"


def check_free(new: Area | Range, others: Iterable[Area | Range]) -> None:
    """Raise BusConflict if any of the others has an address of `new`.

    Read-only memory and a device without `read`, such as a flash chip's commands, share a place.
    """
    for other in others:
        if (
            new.space is other.space
            and new.first <= other.last
            and other.first <= new.last
            and not (_leaves_writes(new, other) or _leaves_writes(other, new))
        ):
            raise BusConflict(f"{new} overlaps {other}")


def _leaves_writes(area: Area | Range, other: Area | Range) -> bool:
    return (
        isinstance(area, Area)
        and area.readonly
        and isinstance(other, Range)
        and not hasattr(other.device, "read")
    )


class Bus:
    """Ports and addresses, and the devices that answer there.

    `version` changes with every device added or removed; `by_slot` maps `Range.slot` to its range.
    """

    def __init__(self) -> None:
        self.version = 0
        self._changed = Subscribers()
        #: What stands there and is no device of the bus, as memory: no device is put over it.
        self.fixed: Callable[[], Iterable[Area]] = tuple
        self.by_slot: dict[int, Range] = {}
        self._next_slot = 0
        # Re-entrant: a subscriber of `on_change` may well change the bus again.
        self._lock = RLock()
        # Readers in other threads see either the old or the new pair, never half a change.
        self._tables: dict[Space, tuple[tuple[Range, ...], list[int]]] = {
            space: ((), []) for space in Space
        }

    def __repr__(self) -> str:
        return f"<Bus: {', '.join(dict.fromkeys(range_.name for range_ in self.ranges))}>"

    def on_change(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call ``callback()`` after every change, in the thread that made it.

        Returns what ends that.
        """
        return self._changed.add(callback)

    @property
    def ranges(self) -> tuple[Range, ...]:
        """Every range, ports before addresses, lowest first."""
        return tuple(range_ for space in Space for range_ in self._tables[space][0])

    def add_pio(self, first: int, length: int, device: Device, *, offset: int = 0) -> Range:
        """Let `device` answer at the `length` ports from `first` on.  Raises as `add` does."""
        return self.add(Placement(device, Space.PIO, first, length, offset))

    def add_mmio(self, address: int, length: int, device: Device, *, offset: int = 0) -> Range:
        """Let `device` answer at `length` bytes from `address` on.  Raises as `add` does.

        Only addresses without guest memory ever reach the bus, and writes to read-only memory.
        """
        return self.add(Placement(device, Space.MMIO, address, length, offset))

    def add(self, placement: Placement) -> Range:
        """Put a device in its place.

        Raises BusConflict if another device has any of these addresses, or memory has, ConfigError
        if there are no such addresses or the object is no device.
        """
        return self.add_all([placement])[0]

    def add_all(self, placements: Iterable[Placement]) -> list[Range]:
        """Put devices in their places, all of them or, where one raises as `add` does, none."""
        wanted = list(placements)
        with self._lock:
            return self._add(wanted, self.fixed())

    def move(self, device: Device, placements: Iterable[Placement]) -> list[Range]:
        """Let `device` stand in these places and no others, in one step.

        A place of which another device has any address stays that one's.
        """
        with self._lock:
            wanted = [
                placement
                for placement in placements
                if not any(
                    other.space is placement.space
                    and other.device is not device
                    and other.first < placement.address + placement.length
                    and placement.address <= other.last
                    for other in self.by_slot.values()
                )
            ]
            others = {
                slot: range_ for slot, range_ in self.by_slot.items() if range_.device is not device
            }
            return self._add(wanted, beside=others)

    def _add(
        self,
        placements: list[Placement],
        fixed: Iterable[Area] = (),
        beside: Mapping[int, Range] | None = None,
    ) -> list[Range]:
        """Have these beside others, by default those that there are."""
        others = self.by_slot if beside is None else beside
        added: list[Range] = []
        areas = tuple(fixed)
        for placement in placements:
            new = self._range(placement, self._next_slot + len(added))
            check_free(new, (*others.values(), *added, *areas))
            added.append(new)
        self._next_slot += len(added)
        self._have({**others, **{range_.slot: range_ for range_ in added}})
        return added

    def _range(self, placement: Placement, slot: int) -> Range:
        check_placement(placement)
        device, space, first, length, offset, _ = placement
        access = accessors(device, offset)
        return Range(space, first, first + length - 1, device, slot, *access, offset)

    def replace(self, devices: Mapping[str, Device]) -> None:
        """Let other devices stand where those of these names do, slots and all.

        Raises ConfigError for a name that is not there, or an object that is no device.
        """
        with self._lock:
            known = {range_.name for range_ in self.by_slot.values()}
            for name in devices:
                if name not in known:
                    raise ConfigError(f"no device {name!r} on the bus")
            self._have(
                {
                    slot: range_.taken_over(devices[range_.name])
                    if range_.name in devices
                    else range_
                    for slot, range_ in self.by_slot.items()
                }
            )

    def remove(self, device: Device | str) -> None:
        """Take away every range of `device`, given as itself or by name.

        Raises ConfigError if it has none.
        """
        with self._lock:
            kept = {
                slot: range_
                for slot, range_ in self.by_slot.items()
                if not (range_.device is device or range_.name == device)
            }
            if len(kept) == len(self.by_slot):
                wanted = device if isinstance(device, str) else check_device(device)
                names = ", ".join(dict.fromkeys(range_.name for range_ in self.ranges))
                raise ConfigError(f"no device {wanted!r} on the bus; there is {names or 'none'}")
            self._have(kept)

    def find(self, space: Space, address: int) -> Range | None:
        """The range that holds `address`, or None."""
        ranges, starts = self._tables[space]
        index = bisect_right(starts, address) - 1
        return ranges[index] if index >= 0 and address <= ranges[index].last else None

    def read(self, space: Space, address: int, size: int) -> int | None:
        """What the devices answer for `size` bytes (1 to 8) at `address`, little-endian.

        None if no device is there.  An access that several devices share, or of a size that is not
        1, 2, 4 or 8, reaches them in aligned pieces; bytes of no device read as 0xff.  What a
        device raises passes unchanged.
        """
        found = self.find(space, address)
        if found is not None and size in SIZES and address + size - 1 <= found.last:
            return _answer(found, found.read(address - found.first, size)) & MASKS[size]
        pieces = self._pieces(space, address, size)
        if all(owner is None for owner, *_ in pieces):
            return None
        value = 0
        for owner, at, length, shift in pieces:
            part = _ALL_ONES if owner is None else _answer(owner, owner.read(at, length))
            value |= (part & MASKS[length]) << shift
        return value

    def write(self, space: Space, address: int, size: int, value: int) -> bool:
        """Hand `value`, of `size` bytes, to the devices at `address`; False if no device is there.

        Split as `read` is; bytes of no device are dropped.  Raises ConfigError for a value of
        more than `size` bytes.
        """
        if 1 <= size <= 8:
            value = word(f"the value of a write of {size} bytes", value, 8 * size)
        found = self.find(space, address)
        if found is not None and size in SIZES and address + size - 1 <= found.last:
            found.write(address - found.first, size, value)
            return True
        claimed = False
        for owner, at, length, shift in self._pieces(space, address, size):
            if owner is not None:
                claimed = True
                owner.write(at, length, value >> shift & MASKS[length])
        return claimed

    def read_string(self, port: int, size: int, count: int) -> bytes | None:
        """`count` reads of `size` bytes, all at `port`, as ``rep ins`` does.

        None if no device is there.
        """
        found = self.find(Space.PIO, port)
        if found is not None and found.read_string and port + size - 1 <= found.last:
            data: object = found.read_string(port - found.first, size, count)
            if not isinstance(data, bytes) or len(data) != size * count:
                raise ConfigError(
                    f"device {found.name} answered {count} reads of {size} bytes with {show(data)}",
                    hint=f"read_string(offset, size, count) has to return {size * count} bytes",
                )
            return data
        elements = bytearray()
        for _ in range(count):
            value = self.read(Space.PIO, port, size)
            if value is None:
                return None
            elements += value.to_bytes(size, "little")
        return bytes(elements)

    def write_string(self, port: int, size: int, data: Buffer) -> bool:
        """`data` in elements of `size` bytes, all to `port`, as ``rep outs`` does.

        False if no device is there.  Raises ConfigError if `data` is not whole elements.
        """
        view = memoryview(buffer("data", data).tobytes())
        if len(view) % size:
            raise ConfigError(f"{len(view)} bytes are not whole elements of {size}")
        claimed = False
        for start in range(0, len(view), size):
            value = int.from_bytes(view[start : start + size], "little")
            claimed = self.write(Space.PIO, port, size, value)
        return claimed

    def _pieces(
        self, space: Space, address: int, size: int
    ) -> list[tuple[Range | None, int, int, int]]:
        """An access cut by owner and alignment: (owner, place in it, bytes, bit position) each."""
        if not 1 <= size <= 8:
            raise ConfigError(f"an access has 1 to 8 bytes, not {size}")
        pieces: list[tuple[Range | None, int, int, int]] = []
        done = 0
        while done < size:
            at = (address + done) % space.size
            owner = self.find(space, at)
            room = min(size - done, owner.last - at + 1) if owner else 1
            length = next(n for n in (8, 4, 2, 1) if n <= room and not at % n)
            pieces.append((owner, at - (owner.first if owner else 0), length, 8 * done))
            done += length
        return pieces

    def _have(self, by_slot: dict[int, Range]) -> None:
        """Have these ranges; or, if one of those who are told raises, those that there were."""
        before = self.by_slot
        self.by_slot = by_slot
        try:
            self._rebuild()
        except BaseException:
            self.by_slot = before
            # If this fails, too, it is for want of memory, and the new ones were not taken.
            with suppress(PykvmError):
                self._rebuild()
            raise

    def _rebuild(self) -> None:
        tables = {}
        for space in Space:
            ranges = [range_ for range_ in self.by_slot.values() if range_.space is space]
            ranges.sort(key=lambda range_: range_.first)
            tables[space] = (tuple(ranges), [range_.first for range_ in ranges])
        self._tables = tables
        self.version += 1
        self._changed()


def _answer(range_: Range, answer: int) -> int:
    """What a device returned from `read`, if that is an int.  Raises ConfigError."""
    return answer if type(answer) is int else odd_answer(range_.name, answer)
