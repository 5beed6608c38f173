"""The MTRRs that firmware leaves, read as a processor does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.x86.mtrr import IA32_MTRR_DEF_TYPE, firmware_mtrrs

GIB = 1 << 30
CAPABILITIES = 0x508  # KVM's: eight variable ranges, fixed ones, write-combining
UC, WB = 0, 6

# SDM 3A table 12-9: the first address and the size of the ranges that each fixed MTRR has.
FIXED = [(0x250, 0, 0x10000), (0x258, 0x80000, 0x4000), (0x259, 0xA0000, 0x4000)]
FIXED += [(0x268 + at, 0xC0000 + 0x8000 * at, 0x1000) for at in range(8)]


def memory_type(msrs: dict[int, int], address: int, *, bits: int = 40) -> int:
    """SDM 3A 12.11.4.1, "MTRR Precedences"."""
    default = msrs.get(IA32_MTRR_DEF_TYPE, 0)
    if not default >> 11 & 1:
        return UC
    if address < 0x100000 and default >> 10 & 1:
        msr, first, size = max(entry for entry in FIXED if entry[1] <= address)
        return msrs[msr] >> 8 * ((address - first) // size) & 0xFF
    found = set()
    for number in range(8):
        base, mask = msrs.get(0x200 + 2 * number, 0), msrs.get(0x201 + 2 * number, 0)
        field = (1 << bits) - 1 & ~0xFFF
        if mask >> 11 & 1 and address & mask & field == base & mask & field:
            found.add(base & 0xFF)
    assert len(found) <= 1
    return found.pop() if found else default & 0xFF


@pytest.mark.parametrize("top", [64 << 20, GIB, 3 * GIB])
def test_ram_is_write_back_and_what_is_devices_is_not(top: int) -> None:
    ram = [(0, top), (4 * GIB, 5 * GIB)]
    msrs = firmware_mtrrs(ram, capabilities=CAPABILITIES, physical_bits=40)
    for address in (0, 0x9FFFF, 0xC0000, 0xFFFFF, 0x100000, top - 1, 4 * GIB, 5 * GIB - 1):
        assert memory_type(msrs, address) == WB, hex(address)
    for address in (0xA0000, 0xBFFFF, 3 * GIB, 0xFEC00000, 0xFED00000, 0xFEE00000, 0xFFFFFFFF):
        assert memory_type(msrs, address) == UC, hex(address)
    assert list(msrs)[-1] == IA32_MTRR_DEF_TYPE, "they are complete before they are enabled"


@given(st.integers(0, 1 << 20))
def test_ram_that_ends_anywhere_is_write_back(pages: int) -> None:
    """And of the hole after it, as much as the registers can say."""
    end = pages << 12
    msrs = firmware_mtrrs([(0, end)], capabilities=CAPABILITIES, physical_bits=40)
    if end > 0x100000:
        assert memory_type(msrs, end - 1) == WB
    for address in (0xFEE00000, 0xFFFFFFFF):
        if end <= 0xFE000000:
            assert memory_type(msrs, address) == UC
    assert sum(index in range(0x200, 0x210) for index in msrs) <= 16


def test_ram_all_the_way_leaves_no_hole() -> None:
    msrs = firmware_mtrrs([(0, 6 * GIB)], capabilities=CAPABILITIES, physical_bits=40)
    assert 0x200 not in msrs


def test_a_processor_without_fixed_ranges() -> None:
    msrs = firmware_mtrrs([(0, GIB)], capabilities=8, physical_bits=36)
    assert msrs == {0x200: 3 * GIB, 0x201: 0xFC0000800, IA32_MTRR_DEF_TYPE: 0x806}
