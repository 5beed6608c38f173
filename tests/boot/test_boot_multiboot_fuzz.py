"""Multiboot kernels of any shape: an image or a LoadError, never anything else."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from boot.elfs import HLT, Sym
from boot.hostile import EXAMPLES, attempt, hostile
from boot.multiboots import ADDRESSES, BASE, END, header1, header2, kernel, tag
from hypothesis import given
from hypothesis import strategies as st

from pykvm.boot import Module, Setup, Source
from pykvm.memory import GuestMemory

SYMBOLS = (Sym("f", BASE), Sym("g", BASE + 8))
HEADERS = {
    "multiboot": header1(),
    "multiboot with addresses": header1(ADDRESSES, BASE, BASE, 0, BASE + 0x1000, BASE + 40),
    "multiboot2": header2(tag(1, 1, 6), tag(6)),
    "multiboot2 with addresses": header2(tag(2, BASE, BASE, 0, 0), tag(3, BASE + 64)),
    "multiboot2, relocatable": header2(tag(10, 0x10_0000, 0xFFFF_FFFF, 0x1000, 2)),
}
SOUND = [
    kernel(header, bits=bits, symbols=SYMBOLS) for header in HEADERS.values() for bits in (32, 64)
] + [header.ljust(0x100, HLT) for name, header in HEADERS.items() if "addresses" in name]


@pytest.fixture(scope="module")
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(overcommit=True) as memory:
        memory.add_ram(0, 0x20_0000)
        yield memory


def word(value: int) -> int:
    return value % (1 << 32)


words = st.one_of(
    hostile.map(word),
    st.sampled_from([BASE, BASE + 0x20, BASE - 4, 0x20_0000, 0x1F_F000, 0x9_F000, 0]),
)
setups = st.builds(
    Setup,
    initrd=st.none() | st.builds(Source, st.just("i"), st.sampled_from([b"", b"x" * 0x1001])),
    modules=st.lists(
        st.builds(
            Module,
            st.builds(Source, st.just("m"), st.sampled_from([b"", b"y", bytes(0x1F_0000)])),
            st.sampled_from(["", "words"]),
        ),
        max_size=3,
    ).map(tuple),
)


def test_the_kernels_to_mutate_are_placed(memory: GuestMemory) -> None:
    assert [attempt(memory, file) for file in SOUND] == ["placed"] * len(SOUND)


@EXAMPLES
@given(
    st.sampled_from(SOUND),
    st.lists(st.tuples(st.integers(0, 0x200), st.integers(0, 255)), max_size=6),
    st.none() | st.integers(0, 0x400),
    setups,
)
def test_a_few_bytes_changed_or_the_end_cut_off(
    memory: GuestMemory,
    data: bytes,
    changes: list[tuple[int, int]],
    end: int | None,
    setup: Setup,
) -> None:
    mutated = bytearray(data)
    for position, value in changes:
        mutated[position % len(mutated)] = value
    attempt(memory, bytes(mutated[:end]), setup=setup)


@EXAMPLES
@given(st.lists(words, min_size=5, max_size=5), st.integers(0, 0x1_FFFF), setups)
def test_hostile_addresses(
    memory: GuestMemory, addresses: list[int], flags: int, setup: Setup
) -> None:
    header = header1(flags & 3 | ADDRESSES, *addresses)
    attempt(memory, header.ljust(0x100, HLT), setup=setup)
    attempt(memory, header1(flags, *addresses).ljust(0x100, HLT))
    attempt(memory, kernel(header))
    header_addr, load_addr, load_end_addr, bss_end_addr, entry = addresses
    wishes = tag(2, header_addr, load_addr, load_end_addr, bss_end_addr), tag(3, entry)
    attempt(memory, header2(*wishes).ljust(0x100, HLT), setup=setup)


tags = st.builds(
    lambda kind, content, flags, size: tag(kind, *content, flags=flags, size=size),
    st.integers(0, 12),
    st.lists(words, max_size=6),
    st.integers(0, 3),
    st.none() | st.sampled_from([0, 1, 4, 7, 8, 9, 12, 24, 28, 0x7FFF, 0xFFFF_FFFF]),
)


@EXAMPLES
@given(
    st.lists(tags, max_size=6),
    st.sampled_from([END, b"", bytes(4), bytes(8)]),
    st.sampled_from([0, 0, 0, 1, 8, 15, 16, 17, 24, 0x8000, 0x8001, 0xFFFF_FFFF]),
    st.sampled_from([0, 0, 0, 4]),
)
def test_hostile_tags(
    memory: GuestMemory, wishes: list[bytes], end: bytes, length: int, architecture: int
) -> None:
    header = header2(*wishes, end=end, length=length, architecture=architecture)
    attempt(memory, kernel(header))
    attempt(memory, header)
    attempt(memory, header + HLT * 64)


@EXAMPLES
@given(words, words, words, st.integers(0, 3), st.sampled_from([0x10, 0x8000, 0x20_0000]))
def test_hostile_relocation(
    memory: GuestMemory, low: int, high: int, align: int, preference: int, size: int
) -> None:
    wishes = (
        tag(2, BASE, BASE, 0, BASE + 0x100 + size),
        tag(3, BASE),
        tag(10, low, high, align, preference),
    )
    attempt(memory, header2(*wishes).ljust(0x100, HLT))
    attempt(memory, kernel(header2(tag(10, low, high, align, preference)), symbols=SYMBOLS))


@EXAMPLES
@given(st.sampled_from([32, 64]), st.booleans(), st.data())
def test_hostile_section_headers(
    memory: GuestMemory, bits: int, second: bool, data: st.DataObject
) -> None:
    header = HEADERS["multiboot2" if second else "multiboot"]
    file = bytearray(kernel(header, bits=bits, symbols=SYMBOLS))
    shape, at = {32: ("<I", 0x20), 64: ("<Q", 0x28)}[bits]
    (start,) = struct.unpack_from(shape, file, at)
    for _ in range(data.draw(st.integers(1, 5))):
        offset = start + data.draw(st.integers(0, len(file) - start - 8))
        struct.pack_into(shape, file, offset, data.draw(hostile) % (1 << bits))
    assert attempt(memory, bytes(file)) == "placed"


def test_sections_by_the_thousand_cost_neither_time_nor_memory(memory: GuestMemory) -> None:
    """As many as there can be, each of them as long as the file, in a machine that is too small."""
    file = bytearray(kernel(HEADERS["multiboot"], symbols=SYMBOLS))
    section = struct.pack("<10I", 1, 1, 0, 0, 0, len(file), 0, 0, 1, 0)
    struct.pack_into("<I", file, 0x20, len(file))
    struct.pack_into("<HHH", file, 0x2E, 40, 0xFFFF, 0)
    assert attempt(memory, bytes(file) + section * 0xFFFF) == "placed"


def test_magic_numbers_by_the_thousand(memory: GuestMemory) -> None:
    for magic in (0x1BADB002, 0xE85250D6):
        assert attempt(memory, struct.pack("<I", magic) * (1 << 18)) == "refused"
