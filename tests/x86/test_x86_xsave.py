"""XSAVE and XRSTOR as arithmetic on bytes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.x86.xsave import (
    COMPACTED,
    MXCSR,
    X87_INITIAL,
    XMM0,
    XSTATE_BV,
    Component,
    HeaderError,
    components,
    extent,
    restored,
    saved,
)

# AVX at 576, then one that wants alignment in the compacted format, with a gap in the standard one.
LAYOUT = (Component(4, 256, 576, False), Component(1 << 9, 8, 0x980, True))
EVERYTHING = 0x207


def image(state: int = EVERYTHING, seed: int = 1) -> bytearray:
    content = bytearray(random.Random(seed).randbytes(4096))
    content[MXCSR : MXCSR + 8] = (0x1FA0).to_bytes(4, "little") + b"\xff\xff\x02\0"
    content[512:576] = state.to_bytes(64, "little")
    return content


def area_of(parts: list[tuple[int, bytes]], size: int = 4096) -> bytearray:
    area = bytearray(size)
    for at, data in parts:
        area[at : at + len(data)] = data
    return area


def save(
    source: bytearray, wanted: int, *, compacted: bool = False, lazy: bool = False
) -> bytearray:
    return area_of(
        saved(
            source,
            LAYOUT,
            wanted,
            before=0,
            compacted=compacted,
            skip_unused=lazy or compacted,
            wide=True,
        )
    )


def load(into: bytearray, area: bytes, wanted: int = EVERYTHING, **options: bool) -> bytearray:
    settings = {"only_compacted": False, "wide": True} | options
    return restored(into, area, LAYOUT, wanted, enabled=EVERYTHING, **settings)


def test_components_from_cpuid() -> None:
    leaf = [
        (0, 0x207, 0x240, 0x988),
        (1, 7, 0, 0),
        (9, 8, 0x980, 2),
        (2, 256, 576, 0),
        (5, 0, 0, 0),
    ]
    assert components(leaf) == LAYOUT


def test_extent() -> None:
    assert extent(LAYOUT, 3, 0) == 576
    assert extent(LAYOUT, 7, 0) == 832
    assert extent(LAYOUT, 0x203, 0) == 0x988
    # Compacted: one follows the other, at a multiple of 64 where it wants that.
    assert extent(LAYOUT, 0x207, COMPACTED | 0x207) == 832 + 8
    assert extent(LAYOUT, 0x203, COMPACTED | 0x203) == 576 + 8


def test_xsave_writes_what_was_asked_for_and_nothing_else() -> None:
    parts = saved(image(), LAYOUT, 2, before=0x105, compacted=False, skip_unused=False, wide=True)
    assert [(at, len(data)) for at, data in parts] == [(24, 8), (160, 256), (512, 8)]
    # The bits of XSTATE_BV that were not asked for stay.
    assert int.from_bytes(parts[-1][1], "little") == 0x107


def test_xsave_stores_mxcsr_for_avx_too() -> None:
    parts = saved(image(), LAYOUT, 4, before=0, compacted=False, skip_unused=False, wide=True)
    assert [(at, len(data)) for at, data in parts] == [(24, 8), (512, 8), (576, 256)]


def test_xsave_writes_unused_components_and_xsaveopt_does_not() -> None:
    source = image(state=1)
    assert save(source, 7)[576:832] == source[576:832]
    lazily = save(source, 7, lazy=True)
    assert not any(lazily[576:832])
    assert not any(lazily[XMM0:416])
    assert lazily[XSTATE_BV] == 1


def test_without_rex_w_the_pointers_have_32_bits() -> None:
    source = image()
    (first, *_) = saved(source, LAYOUT, 1, before=0, compacted=False, skip_unused=False, wide=False)
    assert first[1][8:16] == source[8:12] + bytes(4)
    assert first[1][16:24] == source[16:20] + bytes(4)


def test_xsavec_packs_components_and_says_so() -> None:
    source = image()
    area = save(source, 0x203, compacted=True)
    assert int.from_bytes(area[520:528], "little") == COMPACTED | 0x203
    assert area[576:584] == source[0x980:0x988]


def test_xsavec_counts_sse_as_used_when_mxcsr_is_not_as_after_reset() -> None:
    area = save(image(state=0), 3, compacted=True)
    assert area[XSTATE_BV] == 2


@given(
    st.integers(0, EVERYTHING),
    st.integers(0, EVERYTHING),
    st.integers(0, EVERYTHING),
    st.booleans(),
)
def test_what_was_saved_comes_back(state: int, first: int, second: int, compacted: bool) -> None:
    state, first, second = state & EVERYTHING, first & EVERYTHING, second & EVERYTHING
    source, other = image(state, seed=1), image(EVERYTHING, seed=2)
    found = load(other, bytes(save(source, first, compacted=compacted)), second)
    both = first & second
    for part in LAYOUT:
        span = slice(part.offset, part.offset + part.size)
        if not second & part.bit:
            assert found[span] == other[span]
        elif both & state & part.bit:
            assert found[span] == source[span]
        else:
            assert not any(found[span])
    used = int.from_bytes(found[512:520], "little")
    assert used & ~second == EVERYTHING & ~second
    if both & state & 2:
        assert found[XMM0:416] == source[XMM0:416]
    if second & 1 and not both & state & 1:
        assert found[:24] == X87_INITIAL


def header(state: int = 0, format_: int = 0, reserved: bytes = b"") -> bytes:
    fields = state.to_bytes(8, "little") + format_.to_bytes(8, "little") + reserved
    return X87_INITIAL.ljust(24, b"\0") + bytes(488) + fields.ljust(64, b"\0") + bytes(4000)


@pytest.mark.parametrize(
    "area",
    [
        header(state=0x400),
        header(format_=1),
        header(reserved=b"\1"),
        header(format_=COMPACTED | 0x400),
        header(state=4, format_=COMPACTED | 3),
        header(format_=COMPACTED | 3, reserved=bytes(47) + b"\1"),
    ],
)
def test_headers_that_xrstor_refuses(area: bytes) -> None:
    with pytest.raises(HeaderError):
        load(image(), area)


def test_the_end_of_a_standard_header_is_not_looked_at() -> None:
    load(image(), header(reserved=bytes(8) + b"\1"))


def test_xrstors_takes_the_compacted_format_alone() -> None:
    with pytest.raises(HeaderError):
        load(image(), header(), only_compacted=True)
    load(image(), header(format_=COMPACTED | 3), only_compacted=True)


def test_mxcsr_with_reserved_bits() -> None:
    area = bytearray(header())
    area[MXCSR + 2] = 0x10
    with pytest.raises(HeaderError):
        load(image(), bytes(area), 2)
    load(image(), bytes(area), 1)
