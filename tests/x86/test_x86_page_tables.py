"""The entries that the builder writes, bit by bit (SDM 3A tables 4-4 to 4-20)."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

import pytest

from pykvm.errors import ConfigError, MemoryRangeError
from pykvm.x86.paging import PageTables, PagingMode, identity

if TYPE_CHECKING:
    from collections.abc import Callable

K, M, G = 1 << 10, 1 << 20, 1 << 30
LEGACY32, PAE = PagingMode.LEGACY32, PagingMode.PAE
LEVEL4, LEVEL5 = PagingMode.LEVEL4, PagingMode.LEVEL5


def empty(mode: PagingMode) -> PageTables:
    """Tables at 0x1000, 0x2000, ... in the order in which they are needed."""
    return PageTables(mode, iter(range(0x1000, 0x100000, 0x1000)).__next__)


def entries(tables: PageTables) -> dict[tuple[int, int], int]:
    """Every entry that is not zero, by table and slot."""
    size = tables.mode.entry_size
    return {
        (table, slot): value
        for table, page in tables.pages.items()
        for slot, (value,) in enumerate(struct.iter_unpack("<I" if size == 4 else "<Q", page))
        if value
    }


def test_32_bit_paging_4k() -> None:
    tables = empty(LEGACY32)
    tables.map(0x0804_8000, 0x12_3000, 8 * K, writable=False, user=True)

    # 0x08048000: PDE 0x20, PTE 0x48 (SDM 3A figure 4-2).
    assert entries(tables) == {
        (0x1000, 0x20): 0x2005,
        (0x2000, 0x48): 0x12_3005,
        (0x2000, 0x49): 0x12_4005,
    }


def test_32_bit_paging_4m_with_pse36() -> None:
    tables = empty(LEGACY32)
    tables.map(0xC000_0000, 0xAB_0040_0000, 4 * M, 4 * M)

    # Bits 39:32 (0xab) of the physical address are bits 20:13 of the PDE (SDM 3A table 4-4).
    assert entries(tables) == {(0x1000, 0x300): 0x0040_0083 | 0xAB << 13}


def test_pae_paging_has_no_rights_in_the_pdpte() -> None:
    tables = empty(PAE)
    tables.map(0xC020_0000, 0x8_0040_0000, 2 * M, 2 * M, user=True)
    tables.map(0x1000, 0xF_0000_5000, 4 * K, executable=False)

    # SDM 3A table 4-8: bits 1, 2 and 8:5 of a PDPTE are reserved.
    assert entries(tables) == {
        (0x1000, 3): 0x2001,
        (0x2000, 1): 0x8_0040_0087,
        (0x1000, 0): 0x3001,
        (0x3000, 0): 0x4003,
        (0x4000, 1): 0x8000_000F_0000_5003,
    }


def test_4_level_paging_with_each_page_size() -> None:
    tables = empty(LEVEL4)
    tables.map(0xFFFF_FFFF_8010_0000, 0x10_0000, 4 * K)
    tables.map(0xFFFF_FFFF_8020_0000, 0x20_0000, 2 * M, 2 * M)
    tables.map(0xFFFF_8000_4000_0000, 3 * G, 1 * G, 1 * G)

    assert entries(tables) == {
        (0x1000, 511): 0x2003,
        (0x2000, 510): 0x3003,
        (0x3000, 0): 0x4003,
        (0x4000, 0x100): 0x10_0003,
        (0x3000, 1): 0x20_0083,
        (0x1000, 256): 0x5003,
        (0x5000, 1): 0xC000_0083,
    }


def test_5_level_paging() -> None:
    tables = empty(LEVEL5)
    tables.map(0x00FE_0000_0000_0000, 0x5000, 4 * K)

    # Bits 56:48 are the index into the PML5 table (SDM 3A 4.5).
    assert entries(tables) == {
        (0x1000, 0xFE): 0x2003,
        (0x2000, 0): 0x3003,
        (0x3000, 0): 0x4003,
        (0x4000, 0): 0x5003,
        (0x5000, 0): 0x5003,
    }


@pytest.mark.parametrize(
    ("options", "bits"),
    [
        ({}, 0x003),
        ({"writable": False}, 0x001),
        ({"user": True}, 0x007),
        ({"executable": False}, 1 << 63 | 0x003),
        ({"accessed": True}, 0x023),
        ({"dirty": True}, 0x043),
        ({"global_page": True}, 0x103),
        ({"pat": 1}, 0x00B),
        ({"pat": 2}, 0x013),
        ({"pat": 4}, 0x083),
        ({"pat": 7}, 0x09B),
    ],
)
def test_the_bits_of_a_4k_page(options: dict[str, bool], bits: int) -> None:
    tables = empty(LEVEL4)
    tables.map(0, 0x7000, 4 * K, **options)

    assert entries(tables)[0x4000, 0] == 0x7000 | bits


def test_the_pat_bit_of_a_large_page_is_bit_12() -> None:
    tables = empty(LEVEL4)
    tables.map(0, 0, 2 * M, 2 * M, pat=4)

    assert entries(tables)[0x3000, 0] == 1 << 12 | 0x83


def test_an_entry_to_a_table_allows_what_any_page_below_needs() -> None:
    tables = empty(LEVEL4)
    tables.map(0x1000, 0x1000, 4 * K, writable=False)
    assert [entries(tables)[table, 0] & 7 for table in (0x1000, 0x2000, 0x3000)] == [1, 1, 1]

    tables.map(0x2000, 0x2000, 4 * K, user=True, executable=False)
    assert [entries(tables)[table, 0] & 7 for table in (0x1000, 0x2000, 0x3000)] == [7, 7, 7]
    assert entries(tables)[0x4000, 1] == 0x1001


def test_none_as_page_size_takes_the_largest_that_fits() -> None:
    tables = empty(LEVEL4)
    tables.map(0x1FF000, 0x1FF000, 4 * K + 2 * M + 4 * K, None)
    tables.map(G, G, G, None)
    # Not aligned to each other: only small pages can do it.
    tables.map(1 << 39, 0x1000, 8 * K, None)

    assert entries(tables) == {
        (0x1000, 0): 0x2003,
        (0x2000, 0): 0x3003,
        (0x3000, 0): 0x4003,
        (0x4000, 511): 0x1FF003,
        (0x3000, 1): 0x20_0083,
        (0x3000, 2): 0x5003,
        (0x5000, 0): 0x40_0003,
        (0x2000, 1): 0x4000_0083,
        (0x1000, 1): 0x6003,
        (0x6000, 0): 0x7003,
        (0x7000, 0): 0x8003,
        (0x8000, 0): 0x1003,
        (0x8000, 1): 0x2003,
    }


def test_mapping_a_page_again_replaces_it() -> None:
    tables = empty(LEVEL4)
    tables.map(0x1000, 0x7000, 4 * K)
    tables.map(0x1000, 0x8000, 4 * K, writable=False)

    assert entries(tables)[0x4000, 1] == 0x8001


@pytest.mark.parametrize(
    ("mode", "arguments", "message"),
    [
        (LEVEL4, (0x800, 0, 4 * K), "virtual 0x800 is not a multiple of the page, 0x1000"),
        (LEVEL4, (0, 0x1000, 2 * M, 2 * M), "physical 0x1000 is not a multiple of the page"),
        (LEVEL4, (0, 0, 2 * M + 4 * K, 2 * M), "length 0x201000 is not a multiple"),
        (LEVEL4, (0, 0, 0), "cannot map 0 bytes"),
        (LEVEL4, (0, 0, 4 * M, 4 * M), "4-level paging has no pages of 0x400000 bytes"),
        (PAE, (0, 0, G, G), "it has 0x1000, 0x200000"),
        (LEGACY32, (0, 0, 2 * M, 2 * M), "it has 0x1000, 0x400000"),
        (LEVEL4, (1 << 47, 0, 4 * K), "0x800000000000-0x800000000fff is not a linear range"),
        (LEVEL4, ((1 << 47) - 0x1000, 0, 8 * K), "is not a linear range of 4-level paging"),
        (LEVEL4, ((1 << 64) - 0x1000, 0, 8 * K), "is not a linear range of 4-level paging"),
        (LEVEL5, (1 << 56, 0, 4 * K), "is not a linear range of 5-level paging"),
        (PAE, (0xFFFF_F000, 0, 8 * K), "is not a linear range of PAE paging"),
        (LEGACY32, (0, 1 << 32, 4 * K), "physical 0x100000000+0x1000 does not fit 32 bits"),
        (LEGACY32, (0, 1 << 40, 4 * M, 4 * M), "does not fit 40 bits"),
        (LEVEL4, (0, 1 << 52, 4 * K), "does not fit 52 bits"),
    ],
)  # fmt: skip
def test_what_cannot_be_mapped_is_named(
    mode: PagingMode, arguments: tuple[int, ...], message: str
) -> None:
    tables = empty(mode)
    with pytest.raises(ConfigError, match=re.escape(message)):
        tables.map(*arguments)
    assert entries(tables) == {}


@pytest.mark.parametrize(
    ("mode", "arguments", "entry"),
    [
        (LEVEL4, (0x7FFF_FFFF_F000, (1 << 52) - 0x1000, 4 * K), (1 << 52) - 0x1000 | 3),
        (LEVEL4, ((1 << 64) - 0x1000, 0, 4 * K), 3),
        (LEGACY32, (0xFFFF_F000, 0xFFFF_F000, 4 * K), 0xFFFF_F003),
        (LEGACY32, (0, (1 << 40) - 4 * M, 4 * M, 4 * M), 0xFFC0_0083 | 0xFF << 13),
    ],
)
def test_the_last_addresses_can_be_mapped(
    mode: PagingMode, arguments: tuple[int, ...], entry: int
) -> None:
    tables = empty(mode)
    tables.map(*arguments)
    assert list(entries(tables).values())[-1] == entry


def test_a_page_of_another_size_in_the_way_is_named() -> None:
    tables = empty(LEVEL4)
    tables.map(0, 0, 2 * M, 2 * M)
    tables.map(2 * M, 2 * M, 4 * K)
    before = entries(tables)

    with pytest.raises(ConfigError, match="at 0x1000: its PDE holds a page of 0x200000 bytes"):
        tables.map(0x1000, 0, 4 * K)
    with pytest.raises(ConfigError, match="at 0x200000: its PDE holds a table of smaller pages"):
        tables.map(2 * M, 0, 2 * M, 2 * M)
    assert entries(tables) == before


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: empty(LEGACY32).map(0, 0, 4 * K, executable=False), "32-bit paging has no NX"),
        (lambda: empty(LEVEL4).map(0, 0, 4 * K, pat=8), "PAT has 8 entries, there is no 8"),
        (lambda: empty(PagingMode.NONE), "no page tables without paging"),
        (
            lambda: PageTables(LEVEL4, lambda: 0x1800),
            "a page table of 4-level paging cannot lie at 0x1800",
        ),
        (lambda: PageTables(PAE, lambda: 1 << 32), "of PAE paging cannot lie at 0x100000000"),
        (lambda: identity(G, base=0x1001), "a page table of 4-level paging cannot lie at 0x1001"),
        (lambda: identity(0, base=0), "4-level paging cannot map 0x0 bytes"),
        (lambda: identity(G, base=1 << 32, mode=PAE), "of PAE paging cannot lie at 0x100000000"),
        (lambda: identity((1 << 47) + 1, base=0), "4-level paging cannot map 0x800000000001 bytes"),
        (lambda: identity((1 << 32) + 1, base=0, mode=PAE), "PAE paging cannot map 0x100000001"),
        (lambda: identity(G, base=0, page_size=4 * M), "4-level paging has no pages of 0x400000"),
    ],
)
def test_wrong_use_is_named(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


def test_identity_of_4_gib_by_2m_is_six_tables() -> None:
    tables = identity(4 * G, base=0x10_0000)
    words = struct.unpack(f"<{tables.size // 8}Q", tables.image)

    assert (tables.size, tables.root) == (6 * 4 * K, 0x10_0000)
    assert words[0] == 0x10_1003
    assert words[512:516] == (0x10_2003, 0x10_3003, 0x10_4003, 0x10_5003)
    assert words[1024:] == tuple(page * 2 * M | 0x83 for page in range(2048))
    assert not any(words[1:512])
    assert not any(words[516:1024])


def test_identity_rounds_up_to_whole_pages_and_leaves_the_rest_absent() -> None:
    tables = identity(2 * M + 1, base=0x1000, user=True, writable=False)

    assert tables.image[0x2000:0x2018] == struct.pack("<3Q", 0x85, 0x20_0085, 0)


@pytest.mark.parametrize(
    ("mode", "page_size", "length"),
    [
        (LEGACY32, 4 * K, 9 * M),
        (LEGACY32, 4 * M, 4 * G),
        (PAE, 4 * K, 3 * M),
        (PAE, 2 * M, 4 * G),
        (LEVEL4, 4 * K, 3 * M + 4 * K),
        (LEVEL4, 2 * M, 5 * G + 2 * M),
        (LEVEL4, 1 * G, 600 * G),
        (LEVEL5, 2 * M, 5 * G),
    ],
)
def test_identity_maps_as_the_builder_does(mode: PagingMode, page_size: int, length: int) -> None:
    fast = identity(length, base=0x1000, page_size=page_size, mode=mode, user=True)
    slow = PageTables(mode, iter(range(0x1000, 0x80_0000, 0x1000)).__next__)
    slow.map(0, 0, length, page_size, user=True)

    def leaves(read: Callable[[int, int], bytes], table: int, depth: int) -> list[int]:
        size = mode.entry_size
        found = []
        for slot in range(1 << mode.levels[depth].bits):
            entry = int.from_bytes(read(table + slot * size, size), "little")
            last = 1 << mode.levels[depth].shift == page_size
            if entry and not last:
                assert entry & 0xFFF == (1 if mode is PAE and depth == 0 else 7)
                found += leaves(read, entry & ~0xFFF, depth + 1)
            elif entry:
                found.append(entry)
        return found

    assert leaves(fast.read, fast.root, 0) == leaves(slow.read, slow.root, 0)
    assert len(fast.pages) == len(slow.pages)
    assert b"".join(fast.pages.values()) == fast.image


def test_reading_beside_the_tables_is_refused() -> None:
    fast = identity(G, base=0x1000)
    slow = empty(LEVEL4)

    for read, address in (
        (fast.read, 0xFF8),
        (fast.read, 0x1000 + fast.size - 4),
        (slow.read, 0x2000),
        (slow.read, 0x1FFC),
    ):
        with pytest.raises(MemoryRangeError) as caught:
            read(address, 8)
        assert caught.value.address == address
