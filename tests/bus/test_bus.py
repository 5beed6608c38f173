"""Who answers where: claims, conflicts, and accesses cut to fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.bus import Bus, GuestExit, GuestReset, Placement, Range, Space
from pykvm.errors import BusConflict, ConfigError

PIO, MMIO = Space.PIO, Space.MMIO


class Recorder:
    """Answers a read with the offsets it covers, 0x10 added; remembers every access."""

    def __init__(self, name: str = "recorder") -> None:
        self.name = name
        self.log: list[tuple[str, int, int] | tuple[str, int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        self.log.append(("read", offset, size))
        return int.from_bytes(bytes((0x10 + offset + i) & 0xFF for i in range(size)), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.log.append(("write", offset, size, value))


class ByteWide(Recorder):
    width = 1


class ReadOnly:
    name = "read-only"

    def read(self, offset: int, size: int) -> int:
        return 0x1234


class WriteOnly:
    name = "write-only"

    def __init__(self) -> None:
        self.values: list[int] = []

    def write(self, offset: int, size: int, value: int) -> None:
        self.values.append(value)


class Collector:
    name = "collector"

    def __init__(self) -> None:
        self.writes: list[tuple[int, int, int]] = []

    def posted(self, writes: Sequence[tuple[int, int, int]]) -> None:
        self.writes += writes


class Narrow(Collector):
    width = 2


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_an_access_inside_a_device_reaches_it_whole(size: int) -> None:
    bus, device = Bus(), Recorder()
    bus.add_mmio(0xFEC0_0000, 0x100, device)
    value = 0x8877665544332211 & ((1 << 8 * size) - 1)
    assert bus.write(MMIO, 0xFEC0_0003, size, value)
    expected = int.from_bytes(bytes(range(0x13, 0x13 + size)), "little")
    assert bus.read(MMIO, 0xFEC0_0003, size) == expected
    assert device.log == [("write", 3, size, value), ("read", 3, size)]


def test_an_unclaimed_place_is_not_found() -> None:
    bus = Bus()
    bus.add_pio(0x80, 1, Recorder())
    assert bus.find(PIO, 0x80) is not None
    for space, address in ((PIO, 0x7F), (PIO, 0x81), (MMIO, 0x80)):
        assert bus.find(space, address) is None
        assert bus.read(space, address, 1) is None
        assert bus.write(space, address, 1, 0) is False


def test_devices_that_only_read_or_only_write() -> None:
    bus, writer = Bus(), WriteOnly()
    bus.add_pio(0x10, 2, ReadOnly())
    bus.add_pio(0x20, 2, writer)
    assert bus.read(PIO, 0x10, 2) == 0x1234
    assert bus.read(PIO, 0x10, 1) == 0x34, "a value too wide is cut to the access"
    assert bus.write(PIO, 0x10, 1, 5) is True
    assert bus.read(PIO, 0x20, 2) == 0xFFFF
    assert bus.write(PIO, 0x20, 1, -1) is True
    assert writer.values == [0xFF]
    with pytest.raises(
        ConfigError, match="the value of a write of 1 bytes is a number of 8 bits, not 511"
    ):
        bus.write(PIO, 0x20, 1, 0x1FF)


def test_posted_writes_come_in_the_same_form_one_by_one_or_in_bulk() -> None:
    bus, posted = Bus(), Collector()
    added = bus.add_pio(0xE9, 2, posted)
    assert bus.write(PIO, 0xEA, 1, 7)
    assert added.posted is not None
    added.posted([(0, 2, 0x1122), (1, 1, 3)])
    assert posted.writes == [(1, 1, 7), (0, 2, 0x1122), (1, 1, 3)]
    assert bus.read(PIO, 0xE9, 1) == 0xFF
    assert bus.add_pio(0x100, 1, WriteOnly()).posted is None


def test_write_goes_before_posted() -> None:
    class Both(Collector):
        def write(self, offset: int, size: int, value: int) -> None:
            self.writes.append((offset, size, -value))

    bus, both = Bus(), Both()
    assert bus.add_pio(0, 1, both).posted is None
    bus.write(PIO, 0, 1, 5)
    assert both.writes == [(0, 1, -5)]


def test_a_narrow_device_gets_pieces_it_can_take() -> None:
    bus, device, posted = Bus(), ByteWide(), Narrow()
    bus.add_pio(0x3F8, 8, device)
    added = bus.add_mmio(0x1000, 8, posted)
    assert bus.write(PIO, 0x3F9, 4, 0x44332211)
    assert bus.read(PIO, 0x3FE, 2) == 0x1716
    assert device.log == [
        *(("write", 1 + i, 1, 0x11 * (1 + i)) for i in range(4)),
        ("read", 6, 1),
        ("read", 7, 1),
    ]
    bus.write(MMIO, 0x1004, 4, 0x44332211)
    assert added.posted is not None
    added.posted([(0, 8, 0x8877665544332211), (2, 1, 9)])
    assert posted.writes == [
        (4, 2, 0x2211),
        (6, 2, 0x4433),
        (0, 2, 0x2211),
        (2, 2, 0x4433),
        (4, 2, 0x6655),
        (6, 2, 0x8877),
        (2, 1, 9),
    ]


def test_an_access_that_straddles_two_devices_is_split() -> None:
    bus, low, high = Bus(), Recorder("low"), Recorder("high")
    bus.add_pio(0x100, 2, low)
    bus.add_pio(0x102, 6, high)
    assert bus.write(PIO, 0x101, 4, 0x44332211)
    assert low.log == [("write", 1, 1, 0x11)]
    assert high.log == [("write", 0, 2, 0x3322), ("write", 2, 1, 0x44)]
    assert bus.read(PIO, 0x101, 4) == 0x12111011


def test_holes_in_a_split_read_as_ones_and_swallow_writes() -> None:
    bus, device = Bus(), Recorder()
    bus.add_mmio(0x1002, 1, device)
    assert bus.read(MMIO, 0x1000, 8) == 0xFFFF_FFFF_FF10_FFFF
    assert bus.write(MMIO, 0x1000, 4, 0x44332211)
    assert device.log == [("read", 0, 1), ("write", 0, 1, 0x33)]


@pytest.mark.parametrize(
    ("address", "size", "pieces"),
    [
        (0x1000, 3, [(0, 2), (2, 1)]),
        (0x1001, 3, [(1, 1), (2, 2)]),
        (0x1001, 5, [(1, 1), (2, 2), (4, 2)]),
        (0x1002, 6, [(2, 2), (4, 4)]),
        (0x1000, 7, [(0, 4), (4, 2), (6, 1)]),
    ],
)
def test_odd_sizes_arrive_in_aligned_pieces(
    address: int, size: int, pieces: list[tuple[int, int]]
) -> None:
    bus, device = Bus(), Recorder()
    bus.add_mmio(0x1000, 8, device)
    assert bus.read(MMIO, address, size) is not None
    assert device.log == [("read", offset, length) for offset, length in pieces]


@pytest.mark.parametrize("space", [PIO, MMIO])
def test_an_access_past_the_last_address_goes_on_at_zero(space: Space) -> None:
    bus, first, last = Bus(), Recorder("first"), Recorder("last")
    bus.add(Placement(first, space, 0, 4))
    bus.add(Placement(last, space, space.size - 2, 2))
    assert bus.write(space, space.size - 1, 4, 0x44332211)
    assert last.log == [("write", 1, 1, 0x11)]
    assert first.log == [("write", 0, 2, 0x3322), ("write", 2, 1, 0x44)]


@pytest.mark.parametrize("size", [0, -1, 9, 16])
def test_sizes_that_no_access_has(size: int) -> None:
    bus = Bus()
    with pytest.raises(ConfigError, match="1 to 8 bytes"):
        bus.read(PIO, 0, size)
    with pytest.raises(ConfigError, match="1 to 8 bytes"):
        bus.write(PIO, 0, size, 0)


@pytest.mark.parametrize(
    ("first", "length"), [(0x3F8, 8), (0x3FF, 1), (0x3F0, 9), (0x3FA, 2), (0x300, 0x200)]
)
def test_a_conflict_names_both_devices_and_all_four_numbers(first: int, length: int) -> None:
    bus = Bus()
    bus.add_pio(0x3F8, 8, Recorder("com1"))
    before = bus.version, bus.ranges, dict(bus.by_slot)
    with pytest.raises(BusConflict) as caught:
        bus.add_pio(first, length, Recorder("mouse"))
    assert str(caught.value) == (
        f"mouse (ports {first:#x}-{first + length - 1:#x}) overlaps com1 (ports 0x3f8-0x3ff)"
    )
    assert (bus.version, bus.ranges, bus.by_slot) == before


def test_the_same_range_twice_and_neighbours() -> None:
    bus, device = Bus(), Recorder()
    bus.add_mmio(0x1000, 0x1000, device)
    with pytest.raises(BusConflict, match="addresses 0x1000-0x1fff"):
        bus.add_mmio(0x1000, 0x1000, device)
    bus.add_mmio(0x2000, 0x1000, Recorder("next"))
    bus.add_mmio(0x0FFF, 1, Recorder("before"))
    bus.add_pio(0x1000, 0x1000, Recorder("the other space"))


@pytest.mark.parametrize(
    "placement",
    [
        Placement(Recorder(), PIO, 0, 0),
        Placement(Recorder(), PIO, 0x80, -1),
        Placement(Recorder(), PIO, -1, 1),
        Placement(Recorder(), PIO, 0xFFFF, 2),
        Placement(Recorder(), MMIO, (1 << 64) - 1, 2),
        Placement(Recorder(), PIO, 0, 1, offset=-1),
    ],
)
def test_places_that_do_not_exist(placement: Placement) -> None:
    with pytest.raises(ConfigError, match="recorder"):
        Bus().add(placement)


def test_a_device_needs_a_name_a_method_and_a_sound_width() -> None:
    class Nameless:
        def read(self, offset: int, size: int) -> int:
            return 0

    class Mute:
        name = "mute"

    class Odd(Recorder):
        width = 3

    with pytest.raises(ConfigError, match="no name"):
        Bus().add_pio(0, 1, Nameless())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="none of read, write and posted"):
        Bus().add_pio(0, 1, Mute())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="width is 1, 2, 4 or 8"):
        Bus().add_pio(0, 1, Odd())


def test_one_device_in_several_places() -> None:
    bus, device = Bus(), Recorder()
    bus.add_pio(0x60, 1, device)
    bus.add_pio(0x64, 1, device, offset=4)
    bus.read(PIO, 0x60, 1)
    bus.read(PIO, 0x64, 1)
    bus.write(PIO, 0x64, 1, 9)
    assert device.log == [("read", 0, 1), ("read", 4, 1), ("write", 4, 1, 9)]
    bus.remove(device)
    assert bus.ranges == ()


def test_ranges_are_sorted_and_slots_never_come_back() -> None:
    bus = Bus()
    versions = [bus.version]
    for space, address in ((MMIO, 0x2000), (PIO, 0x300), (MMIO, 0x1000), (PIO, 0x200)):
        bus.add(Placement(Recorder(f"{address:x}"), space, address, 4))
        versions.append(bus.version)
    assert [(r.space, r.first, r.last) for r in bus.ranges] == [
        (PIO, 0x200, 0x203),
        (PIO, 0x300, 0x303),
        (MMIO, 0x1000, 0x1003),
        (MMIO, 0x2000, 0x2003),
    ]
    assert {slot: r.name for slot, r in bus.by_slot.items()} == {
        0: "2000",
        1: "300",
        2: "1000",
        3: "200",
    }
    bus.remove("1000")
    versions.append(bus.version)
    assert 2 not in bus.by_slot
    assert bus.add_mmio(0x1000, 4, Recorder("again")).slot == 4
    versions.append(bus.version)
    assert len(set(versions)) == len(versions)


def test_a_bus_takes_any_number_of_ranges_in_its_life() -> None:
    bus = Bus()
    for _ in range(70_000):
        bus.by_slot.clear()
        last = bus.add_pio(0, 1, Recorder())
    assert last.slot == 69_999


class TestMoving:
    def test_the_old_places_are_free_and_the_new_ones_taken_in_one_step(self) -> None:
        bus, page, seen = Bus(), Recorder("page"), list[list[int]]()
        bus.add_mmio(0x1000, 0x1000, page)
        bus.on_change(lambda: seen.append([range_.first for range_ in bus.ranges]))
        moved = bus.move(page, [Placement(page, MMIO, 0x1800, 0x1000)])

        assert [range_.first for range_ in moved] == [0x1800]
        assert seen == [[0x1800]]
        assert bus.read(MMIO, 0x1000, 4) is None

    def test_where_another_device_stands_that_one_stays(self) -> None:
        bus, page = Bus(), Recorder("page")
        bus.add_mmio(0x1000, 0x1000, page)
        other = bus.add_mmio(0x5800, 4, Recorder("other"))
        places = [Placement(page, MMIO, address, 0x1000) for address in (0x5000, 0x6000)]

        assert [range_.first for range_ in bus.move(page, places)] == [0x6000]
        assert bus.find(MMIO, 0x5800) == other
        assert bus.find(MMIO, 0x5000) is None
        assert bus.move(page, []) == []

    def test_a_place_that_is_none_changes_nothing(self) -> None:
        bus, page = Bus(), Recorder("page")
        before = [bus.add_mmio(0x1000, 0x1000, page)]
        with pytest.raises(ConfigError):
            bus.move(page, [Placement(page, MMIO, 0x1000, 0)])
        assert list(bus.ranges) == before
        assert list(bus.by_slot.values()) == before


def test_subscribers_are_told_of_every_change() -> None:
    bus = Bus()
    seen: list[int] = []

    def changed() -> None:
        seen.append(len(bus.ranges))
        if len(bus.ranges) == 1:
            bus.add_pio(0x200, 1, Recorder("second"))

    end = bus.on_change(changed)
    bus.add_pio(0x100, 1, Recorder("first"))
    with pytest.raises(BusConflict):
        bus.add_pio(0x100, 1, Recorder("third"))
    assert seen == [1, 2], "a change while told of one, and nothing for a refused one"
    end()
    bus.on_change(seen.clear)
    bus.remove("first")
    assert seen == []


@pytest.mark.parametrize(
    "change",
    [
        lambda bus: bus.add_pio(0x200, 1, Recorder("second")),
        lambda bus: bus.remove("first"),
        lambda bus: bus.replace({"first": Recorder("other")}),
        lambda bus: bus.move(bus.ranges[0].device, [Placement(Recorder("first"), PIO, 0x300, 1)]),
    ],
)
def test_a_change_that_a_subscriber_refuses_is_none(change: Callable[[Bus], object]) -> None:
    bus, told = Bus(), list[list[Range]]()
    first = bus.add_pio(0x100, 1, Recorder("first"))

    def refuse() -> None:
        told.append(list(bus.ranges))
        if list(bus.ranges) != [first]:
            raise KeyboardInterrupt

    bus.on_change(refuse)
    with pytest.raises(KeyboardInterrupt):
        change(bus)
    assert list(bus.ranges) == list(bus.by_slot.values()) == [first]
    assert bus.find(PIO, 0x100) == first
    # They hear that all is as it was.
    assert (len(told), told[-1]) == (2, [first])


def test_remove_by_name_or_itself_or_not_at_all() -> None:
    bus, one, two = Bus(), Recorder("one"), Recorder("two")
    bus.add_pio(0, 1, one)
    bus.add_pio(1, 1, two)
    bus.remove(one)
    bus.remove("two")
    assert bus.ranges == ()
    with pytest.raises(ConfigError, match="no device 'one' on the bus; there is none"):
        bus.remove(one)
    bus.add_pio(0, 1, two)
    with pytest.raises(ConfigError, match="no device 'three' on the bus; there is two"):
        bus.remove("three")


@pytest.mark.parametrize("error", [GuestExit(3), GuestReset("by hand"), ZeroDivisionError("mine")])
def test_what_a_device_raises_passes_unchanged(error: Exception) -> None:
    class Raiser:
        name = "raiser"

        def read(self, offset: int, size: int) -> int:
            raise error

        def write(self, offset: int, size: int, value: int) -> None:
            raise error

    bus = Bus()
    bus.add_pio(0x10, 2, Raiser())
    for access in (
        lambda: bus.read(PIO, 0x10, 2),
        lambda: bus.read(PIO, 0x0F, 2),
        lambda: bus.write(PIO, 0x10, 1, 0),
        lambda: bus.read_string(0x10, 1, 3),
        lambda: bus.write_string(0x10, 1, b"abc"),
    ):
        with pytest.raises(type(error)) as caught:
            access()
        assert caught.value is error
    assert bus.find(PIO, 0x10) is not None, "the bus is as before"


def test_string_io_is_repeated_access_at_one_port() -> None:
    bus, device = Bus(), Recorder()
    bus.add_pio(0x170, 8, device)
    assert bus.write_string(0x170, 2, b"\x01\x02\x03\x04")
    assert bus.read_string(0x171, 4, 2) == b"\x11\x12\x13\x14" * 2
    assert device.log == [
        ("write", 0, 2, 0x0201),
        ("write", 0, 2, 0x0403),
        ("read", 1, 4),
        ("read", 1, 4),
    ]
    assert bus.read_string(0x500, 2, 2) is None
    assert bus.write_string(0x500, 2, b"abcd") is False
    with pytest.raises(ConfigError, match="whole elements"):
        bus.write_string(0x170, 2, b"abc")


class Tape(Recorder):
    def read_string(self, offset: int, size: int, count: int) -> bytes:
        self.log.append(("string", offset, size, count))
        return bytes(size * count)


class ByteTape(Tape):
    width = 1


def test_a_device_that_can_gives_a_string_at_once() -> None:
    bus, tape = Bus(), Tape()
    bus.add_pio(0x170, 8, tape)
    assert bus.read_string(0x171, 2, 3) == bytes(6)
    assert bus.read_string(0x177, 1, 2) == bytes(2)
    assert tape.log == [("string", 1, 2, 3), ("string", 7, 1, 2)]


@pytest.mark.parametrize(
    ("tape", "offset", "port", "size"),
    [
        pytest.param(Tape(), 0, 0x177, 2, id="reaches past the device"),
        pytest.param(Tape(), 4, 0x170, 2, id="the range is not the device's start"),
        pytest.param(ByteTape(), 0, 0x170, 2, id="wider than the device"),
    ],
)
def test_a_string_whose_elements_are_cut_is_read_one_by_one(
    tape: Tape, offset: int, port: int, size: int
) -> None:
    bus = Bus()
    bus.add_pio(0x170, 8, tape, offset=offset)
    found = bus.read_string(port, size, 2)
    assert found is not None
    assert len(found) == 2 * size
    assert {kind for kind, *_ in tape.log} == {"read"}


@given(
    claims=st.lists(st.tuples(st.integers(0, 24), st.integers(1, 8)), max_size=5),
    address=st.integers(0, 24),
    size=st.integers(1, 8),
    value=st.integers(0, (1 << 64) - 1),
)
def test_split_accesses_move_every_byte_to_its_owner(
    claims: list[tuple[int, int]], address: int, size: int, value: int
) -> None:
    class Bytes:
        def __init__(self, first: int, length: int) -> None:
            self.name = f"bytes at {first}"
            self.first = first
            self.cells = bytearray(length)

        def read(self, offset: int, size: int) -> int:
            self.check(offset, size)
            return int.from_bytes(self.cells[offset : offset + size], "little")

        def write(self, offset: int, size: int, value: int) -> None:
            self.check(offset, size)
            self.cells[offset : offset + size] = value.to_bytes(size, "little")

        def check(self, offset: int, size: int) -> None:
            assert size in (1, 2, 4, 8)
            assert 0 <= offset <= offset + size <= len(self.cells)

    bus = Bus()
    owners: dict[int, Range] = {}
    for first, length in claims:
        wanted = range(first, first + length)
        if owners.keys().isdisjoint(wanted):
            added = bus.add_mmio(first, length, Bytes(first, length))
            owners.update(dict.fromkeys(wanted, added))
        else:
            with pytest.raises(BusConflict):
                bus.add_mmio(first, length, Bytes(first, length))
    for at in range(34):
        assert bus.find(MMIO, at) is owners.get(at)
    touched = range(address, address + size)
    claimed = not owners.keys().isdisjoint(touched)
    assert bus.write(MMIO, address, size, value % (1 << 8 * size)) is claimed
    data = bytes((value >> 8 * i) & 0xFF if at in owners else 0xFF for i, at in enumerate(touched))
    expected = int.from_bytes(data, "little") if claimed else None
    assert bus.read(MMIO, address, size) == expected
