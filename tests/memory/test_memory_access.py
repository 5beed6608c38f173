"""Bytes, integers, strings, fill and search in guest memory."""

from __future__ import annotations

import array
import mmap
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import ConfigError, MemoryRangeError
from pykvm.memory import GuestMemory, HostMapping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGE = 0x1000


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    """Two regions that touch at 0x2000, a third beyond a gap, and a ROM at its end."""
    with GuestMemory() as memory:
        memory.add_ram(0x2000, PAGE, name="second")
        memory.add_ram(0x1000, PAGE, name="first")
        memory.add_ram(0x8000, PAGE, name="third")
        memory.add_rom(0x9000, b"ROM" * 5, name="rom")
        yield memory


@pytest.mark.parametrize("address", [0x1000, 0x1FF8, 0x1FFC, 0x2000, 0x2FF8])
def test_what_is_written_is_read(memory: GuestMemory, address: int) -> None:
    memory.write(address, b"12345678")
    assert memory.read(address, 8) == b"12345678"
    into = bytearray(8)
    assert memory.read_into(address, into) == 8
    assert into == b"12345678"
    assert memory.read(address - 1, 1) == b"\0" if address > 0x1000 else True


@pytest.mark.parametrize(
    ("address", "length", "hole"),
    [
        (0, 1, 0),
        (0xFFF, 2, 0xFFF),
        (0x2FFF, 2, 0x3000),
        (0x3000, 1, 0x3000),
        (0x1000, 0x2001, 0x3000),
        (0x7FFF, 0x10, 0x7FFF),
        (0xA000, 8, 0xA000),
        (1 << 64, 1, 1 << 64),
        (-1, 4, -1),
    ],
)
def test_out_of_range_names_the_address_and_the_regions(
    memory: GuestMemory, address: int, length: int, hole: int
) -> None:
    accesses: list[Callable[[], object]] = [
        lambda: memory.read(address, length),
        lambda: memory.read_into(address, bytearray(length)),
        lambda: memory.write(address, bytes(length)),
        lambda: memory.view(address, length),
        lambda: memory.fill(address, length),
    ]
    for access in accesses:
        with pytest.raises(MemoryRangeError) as caught:
            access()
        assert (caught.value.address, caught.value.length) == (address, length)
        asked = f" ({length:#x} bytes from {address:#x} on asked for)" if length > 1 else ""
        assert f"no guest memory at {hole:#x}{asked}; there is" in str(caught.value)
        assert "first 0x1000-0x2000, second 0x2000-0x3000, third 0x8000-0x9000" in str(caught.value)
    assert not memory.covers(address, length)


def test_a_write_that_does_not_fit_changes_nothing(memory: GuestMemory) -> None:
    attempts: list[Callable[[], object]] = [
        lambda: memory.write(0x2FFE, b"\xff" * 4),
        lambda: memory.fill(0x2FFE, 4, 0xFF),
        lambda: memory.write_u32(0x2FFE, 0xFFFFFFFF),
    ]
    for attempt in attempts:
        with pytest.raises(MemoryRangeError):
            attempt()
    with pytest.raises(ConfigError):
        memory.write(0x8FFE, b"\xff" * 4)  # runs into the ROM
    assert memory.read(0x2FFE, 2) == memory.read(0x8FFE, 2) == b"\0\0"


def test_no_memory_at_all() -> None:
    with GuestMemory() as memory, pytest.raises(MemoryRangeError, match="there is no region"):
        memory.read_u8(0)


def test_no_bytes_are_nothing_anywhere(memory: GuestMemory) -> None:
    assert memory.read(0x5000, 0) == b""
    assert len(memory.view(0x5000, 0)) == 0
    assert memory.read_into(0x5000, bytearray()) == 0
    memory.write(0x5000, b"")
    memory.fill(0x5000, 0)
    assert memory.covers(0x5000, 0)
    with pytest.raises(ConfigError, match="from 0 on|negative"):
        memory.read(0x1000, -1)
    with pytest.raises(ConfigError, match="from 0 on|negative"):
        memory.fill(0x1000, -1)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("address", [0x1000, 0x1003, 0x1FFF, 0x2FF8])
def test_integers_are_little_endian(memory: GuestMemory, size: int, address: int) -> None:
    value = 0xF1E2D3C4B5A69788 & ((1 << 8 * size) - 1)
    getattr(memory, f"write_u{8 * size}")(address, value)
    assert memory.read(address, size) == value.to_bytes(size, "little")
    assert getattr(memory, f"read_u{8 * size}")(address) == value
    assert memory.read(address + size, 1) == b"\0" if address + size < 0x3000 else True


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("address", [0x1000, 0x1FFF])
def test_integers_that_do_not_fit(memory: GuestMemory, size: int, address: int) -> None:
    for value in (1 << 8 * size, -1):
        with pytest.raises(ConfigError, match="does not fit"):
            getattr(memory, f"write_u{8 * size}")(address, value)


def test_view_is_the_memory_itself(memory: GuestMemory) -> None:
    view = memory.view(0x1100, 16)
    view[0:3] = b"abc"
    assert memory.read(0x1100, 3) == b"abc"
    memory.write(0x1100, b"X")
    assert view[0] == ord("X")
    assert not view.readonly
    assert memory.view(0x9000, 3).readonly
    with pytest.raises(MemoryRangeError, match="2 regions"):
        memory.view(0x1FFF, 2)


def test_any_contiguous_buffer_goes_in_and_out(memory: GuestMemory) -> None:
    words = array.array("I", [1, 2, 3])
    memory.write(0x1000, words)
    assert [memory.read_u32(0x1000 + 4 * i) for i in range(3)] == [1, 2, 3]
    back = array.array("I", [0, 0, 0])
    memory.read_into(0x1000, back)
    assert back == words
    memory.write(0x1000, memoryview(b"a-b-c-")[::2])
    assert memory.read(0x1000, 3) == b"abc"
    for unsuitable in (b"bytes", memoryview(bytearray(6))[::2]):
        with pytest.raises(ConfigError, match="writable, contiguous"):
            memory.read_into(0x1000, unsuitable)


def test_fill(memory: GuestMemory) -> None:
    memory.fill(0x1FF0, 0x20, 0xAA)
    assert memory.read(0x1FEF, 0x22) == b"\0" + b"\xaa" * 0x20 + b"\0"
    memory.fill(0x9000, 3, ord("r"), rom=True)
    assert memory.read(0x9000, 4) == b"rrrR"
    with pytest.raises(ConfigError, match="byte is an integer from 0 to 255, not"):
        memory.fill(0x1000, 1, 256)


def test_fill_larger_than_one_step() -> None:
    with GuestMemory() as memory:
        memory.add_ram(0, 4 << 20)
        memory.fill(1, (4 << 20) - 2, 7)
        assert memory.read(0, 4 << 20) == b"\0" + b"\7" * ((4 << 20) - 2) + b"\0"


def test_strings(memory: GuestMemory) -> None:
    assert memory.write_cstring(0x1FFD, "hellö") == 7
    assert memory.read_cstring(0x1FFD) == "hellö".encode()
    assert memory.read_cstring(0x2100) == b""
    assert memory.write_cstring(0x1000, b"abc") == 4
    assert memory.read_cstring(0x1000, 4) == b"abc"
    with pytest.raises(ConfigError, match="no NUL within 3 bytes of 0x1000"):
        memory.read_cstring(0x1000, 3)


def test_a_string_that_runs_off_the_end_of_memory(memory: GuestMemory) -> None:
    memory.fill(0x2FF0, 0x10, ord("x"))
    with pytest.raises(MemoryRangeError, match="no guest memory at 0x3000"):
        memory.read_cstring(0x2FF0)
    with pytest.raises(ConfigError, match="no NUL"):
        memory.read_cstring(0x2FF0, 0x10)
    with pytest.raises(MemoryRangeError):
        memory.read_cstring(0x5000)


def test_find_goes_by_address_across_seams_and_gaps(memory: GuestMemory) -> None:
    memory.write(0x8123, b"needle")
    assert memory.find(b"needle") == 0x8123
    memory.write(0x1FFD, b"needle")
    assert memory.find(b"needle") == 0x1FFD
    assert memory.find(b"needle", 0x1FFE) == 0x8123
    assert memory.find(b"needle", 0x1FFE, 0x8128) is None
    assert memory.find(b"needle", 0x1FFE, 0x8129) == 0x8123
    assert memory.find(b"needle", 0, 0x2002) is None
    assert memory.find(b"needle", 0, 0x2003) == 0x1FFD
    assert memory.find(b"ROM", 0x9001) == 0x9003
    assert memory.find(b"absent") is None
    # Bytes that only look adjacent: the gap between second and third is no seam.
    memory.write(0x2FFD, b"xyz")
    memory.write(0x8000, b"abc")
    assert memory.find(b"xyzabc") is None
    with pytest.raises(ConfigError, match="empty"):
        memory.find(b"")


def test_find_spans_more_than_two_regions() -> None:
    with GuestMemory() as memory:
        for index in range(4):
            memory.add_ram(index * PAGE, PAGE)
        needle = bytes(range(1, 256)) * 20  # longer than a region
        memory.write(0xF80, needle)
        assert memory.find(needle) == 0xF80
        assert memory.find(needle, 0xF81) is None


def test_find_at_the_seam_of_two_search_steps() -> None:
    with GuestMemory() as memory:
        memory.add_ram(0, 20 << 20)
        memory.write((16 << 20) - 3, b"straddles")
        assert memory.find(b"straddles") == (16 << 20) - 3
        assert memory.find(b"straddles", 5) == (16 << 20) - 3


def test_find_never_lets_mmap_look_at_the_last_byte() -> None:
    """CPython 3.11.0 to 3.11.4 read one byte further, which may not be mapped (gh-105235)."""
    ends: list[int] = []

    class Watched(mmap.mmap):
        def find(self, sub: bytes, start: int = 0, stop: int = 0, /) -> int:  # type: ignore[override]
            ends.append(stop)
            return super().find(sub, start, stop)

    mapping = HostMapping(Watched(-1, 2 * PAGE))
    needle = b"\1\1\1x"
    mapping.slice(0, 2 * PAGE)[:] = b"\1" * (2 * PAGE)
    assert mapping.find(needle, 0, 2 * PAGE) == -1
    mapping.slice(2 * PAGE - 1, 1)[:] = b"x"
    assert mapping.find(needle, 0, 2 * PAGE) == 2 * PAGE - 4
    assert mapping.find(needle, 0, 2 * PAGE - 1) == -1
    assert mapping.find(needle, 2 * PAGE - 4, 2 * PAGE) == 2 * PAGE - 4
    assert mapping.find(needle, 2 * PAGE - 3, 2 * PAGE) == -1
    assert ends
    assert max(ends) < 2 * PAGE
    mapping.close()


SPAN = 4 * PAGE


@given(
    needle=st.binary(min_size=1, max_size=6),
    places=st.lists(st.integers(0, SPAN - 6), max_size=4),
    start=st.integers(0, SPAN),
    end=st.integers(0, SPAN),
)
def test_find_agrees_with_bytes(needle: bytes, places: list[int], start: int, end: int) -> None:
    reference = bytearray(SPAN)
    with GuestMemory() as memory:
        memory.add_ram(0, PAGE)
        memory.add_ram(PAGE, 2 * PAGE)
        memory.add_ram(3 * PAGE, PAGE)
        for place in places:
            reference[place : place + len(needle)] = needle
            memory.write(place, needle)
        expected = reference.find(needle, start, end)
        assert memory.find(needle, start, end) == (expected if expected >= 0 else None)


@given(
    writes=st.lists(
        st.tuples(st.integers(0, SPAN - 1), st.binary(max_size=5000), st.booleans()), max_size=8
    )
)
def test_memory_agrees_with_a_bytearray(writes: list[tuple[int, bytes, bool]]) -> None:
    reference = bytearray(SPAN)
    with GuestMemory() as memory:
        memory.add_ram(0, PAGE)
        memory.add_ram(2 * PAGE, 2 * PAGE)
        memory.add_ram(PAGE, PAGE, backing="memfd")
        for address, data, fill in writes:
            if address + len(data) > SPAN:
                with pytest.raises(MemoryRangeError):
                    memory.write(address, data)
            elif fill:
                memory.fill(address, len(data), len(data) & 0xFF)
                reference[address : address + len(data)] = bytes([len(data) & 0xFF]) * len(data)
            else:
                memory.write(address, data)
                reference[address : address + len(data)] = data
        assert memory.read(0, SPAN) == reference


def test_closing_under_readers_in_other_threads_is_safe() -> None:
    from pykvm.errors import ClosedError

    memory = GuestMemory()
    memory.add_ram(0, 4 << 20)
    started = threading.Barrier(4)
    unexpected: list[BaseException] = []

    def read() -> None:
        started.wait(10)
        try:
            while True:
                memory.read(0, 1 << 20)
                memory.write_u64(0x1000, memory.read_u64(0x2000))
        except ClosedError:
            pass
        except BaseException as error:
            unexpected.append(error)
            raise

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    started.wait(10)
    memory.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive(), "a reader did not notice the close"
    assert unexpected == []


def test_a_subscriber_hears_of_memory_before_it_is_added_and_may_refuse_it() -> None:
    heard: list[tuple[str, int, int, bool]] = []

    def refuse(name: str, start: int, size: int, is_rom: bool) -> None:
        raise LookupError(name)

    with GuestMemory() as memory:
        memory.on_add(lambda *area: heard.append(area))
        end = memory.on_add(refuse)
        with pytest.raises(LookupError, match="ram"):
            memory.add_ram(0, 0x1000)
        assert memory.regions == ()
        end()
        memory.add_rom(0x1000, bytes(0x1000), name="bios")
    assert heard == [("ram", 0, 0x1000, False), ("bios", 0x1000, 0x1000, True)]
