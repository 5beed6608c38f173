"""The memory map: what is RAM for a kernel, and what a PC keeps to itself whatever is there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.host import IDENTITY_MAP_ADDRESS, TSS_ADDRESS
from pykvm.tables import E820Type, memory_map
from pykvm.tables.e820 import KEPT, KVM_PAGES

G = 1 << 30


def ram_of(*ram: tuple[int, int]) -> list[tuple[int, int]]:
    return [(one.address, one.end) for one in memory_map(ram) if one.type is E820Type.RAM]


@pytest.mark.parametrize(
    ("ram", "expected"),
    [
        ((0, 5 * G), [(0, 0x9_FC00), (0x10_0000, 0xFEFF_C000), (0xFF00_0000, 5 * G)]),
        ((0xA_0000, 0xF_0000), []),
        ((0xFEFF_B000, 0xFEFF_D000), [(0xFEFF_B000, 0xFEFF_C000)]),
        ((0xFEFF_D000, 0xFF00_1000), [(0xFF00_0000, 0xFF00_1000)]),
    ],
)
def test_what_is_kept_is_cut_out(ram: tuple[int, int], expected: list[tuple[int, int]]) -> None:
    assert ram_of(ram) == expected


@given(st.integers(0, 5 * G), st.integers(0, 5 * G))
def test_all_else_is_ram(start: int, end: int) -> None:
    kept = sum(max(0, min(end, high) - max(start, low)) for low, high in KEPT)
    found = ram_of((start, end))
    assert sum(last - first for first, last in found) == max(0, end - start - kept)
    assert all(last <= low or first >= high for first, last in found for low, high in KEPT)


def test_kvms_pages_are_where_the_host_puts_them() -> None:
    assert KVM_PAGES in memory_map([])
    assert KVM_PAGES.address == IDENTITY_MAP_ADDRESS
    assert KVM_PAGES.end == TSS_ADDRESS + 0x3000
