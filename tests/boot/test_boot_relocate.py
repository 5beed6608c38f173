"""Position-independent executables: where they are placed and what is relocated."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from boot.elfs import EM_X86_64, ET_DYN, HLT, PT_DYNAMIC, Part, R, W, dynamic, elf

from pykvm.errors import LoadError
from support.boot import load

DT_RELA, DT_RELASZ, DT_RELAENT = 7, 8, 9
DT_REL, DT_RELSZ, DT_RELENT = 17, 18, 19
DT_RELRSZ, DT_RELR, DT_RELRENT = 35, 36, 37
DT_PLTRELSZ, DT_PLTREL, DT_JMPREL = 2, 20, 23
BASE = 0x40_0000


def pie(data: bytes, *tags: tuple[int, int], bits: int = 64, **fields: Any) -> bytes:
    """A PIE with code at 0 and `data` at 0x1000, and a dynamic section of `tags`."""
    return elf(
        Part(HLT * 16, 0),
        Part(data, 0x1000, R | W),
        Part(dynamic(*tags, bits=bits), type=PT_DYNAMIC),
        type=ET_DYN,
        bits=bits,
        **fields,
    )


def relocated(data: bytes) -> bytes:
    """The second segment of the PIE, placed at BASE."""
    return bytes(load(data, address=BASE).segments[1].data)


def quads(data: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(data) // 8}Q", data)


def longs(data: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(data) // 4}I", data)


class TestPlace:
    def test_at_one_mebibyte(self) -> None:
        image = load(elf(Part(HLT, 0x10), Part(b"x", 0x1000, R | W), type=ET_DYN))
        assert [s.address for s in image.segments] == [0x10_0010, 0x10_1000]
        assert image.entry == 0x10_0010

    def test_aligned_as_its_largest_segment(self) -> None:
        image = load(elf(Part(HLT, 0, align=0), Part(HLT, 0x1000, align=1 << 21), type=ET_DYN))
        assert image.entry == 0x20_0000

    def test_where_it_is_linked_if_that_is_high_enough(self) -> None:
        assert load(elf(Part(HLT, 0x30_0000), type=ET_DYN)).entry == 0x30_0000

    def test_where_the_caller_says(self) -> None:
        assert load(elf(Part(HLT, 0x30_0010), type=ET_DYN), address=0x8000).entry == 0x8010

    def test_not_off_its_alignment(self) -> None:
        with pytest.raises(LoadError) as caught:
            load(elf(type=ET_DYN), name="g.elf", address=0x8010)
        assert str(caught.value) == (
            "g.elf: cannot be placed at 0x8010: its segments are aligned to 0x1000 (p_align)\n"
            "choose a multiple of 0x1000, or link it with -z max-page-size=0x1000"
        )

    @pytest.mark.parametrize("align", [3, 1 << 31, (1 << 64) - 1])
    def test_alignment_that_makes_no_sense(self, align: int) -> None:
        with pytest.raises(LoadError, match=rf"segment 0 has alignment \(p_align\) {align:#x}: "):
            load(elf(Part(align=align), type=ET_DYN))


def test_rela_sets_the_word_to_addend_plus_base() -> None:
    table = struct.pack("<QQq", 0x1000, 8, 0x1234) + struct.pack("<QQq", 0, 0, 0)
    data = pie(bytes(8) + table, (DT_RELA, 0x1008), (DT_RELASZ, len(table)), (DT_RELAENT, 24))
    assert relocated(data) == struct.pack("<Q", BASE + 0x1234) + table


def test_rela_of_x32_is_a_word_or_a_quad_wide() -> None:
    table = struct.pack("<IIi", 0x1000, 8, 0x10) + struct.pack("<IIi", 0x1008, 38, -1)
    data = pie(
        bytes(16) + table,
        *((DT_RELA, 0x1010), (DT_RELASZ, len(table)), (DT_RELAENT, 12)),
        bits=32,
        machine=EM_X86_64,
    )
    assert longs(relocated(data)[:16]) == (BASE + 0x10, 0, BASE - 1, 0)


def test_rel_adds_the_base_and_leaves_nothing_to_add_again() -> None:
    data = pie(
        longs_of(0x1234, 0xFFFF_FFFF) + longs_of(0x1000, 8, 0x1004, 8),
        *((DT_REL, 0x1008), (DT_RELSZ, 16), (DT_RELENT, 8)),
        bits=32,
    )
    assert longs(relocated(data)) == (BASE + 0x1234, BASE - 1, 0, 0, 0, 0)


def test_relr_adds_the_base_and_leaves_nothing_to_add_again() -> None:
    words = list(range(0x100, 0x100 + 70))
    # The word at 0x1000, then of the 63 after it the first and the last, then the one after those.
    table = [0x1000, 1 | 1 << 1 | 1 << 63, 1 | 1 << 1]
    data = pie(
        struct.pack("<73Q", *words, *table),
        *((DT_RELR, 0x1000 + 70 * 8), (DT_RELRSZ, 24), (DT_RELRENT, 8)),
    )
    for index in (0, 1, 63, 64):
        words[index] += BASE
    assert quads(relocated(data)) == (*words, 1, 1, 1)


def test_plt_relocations_come_in_the_format_that_the_file_names() -> None:
    rela = struct.pack("<QQq", 0x1000, 8, 0x10)
    tags = (DT_JMPREL, 0x1008), (DT_PLTRELSZ, 24), (DT_PLTREL, DT_RELA)
    assert quads(relocated(pie(bytes(8) + rela, *tags)))[0] == BASE + 0x10
    rel = struct.pack("<QQ", 0x1000, 8)
    tags = (DT_JMPREL, 0x1008), (DT_PLTRELSZ, 16), (DT_PLTREL, DT_REL)
    assert quads(relocated(pie(struct.pack("<Q", 0x10) + rel, *tags))) == (BASE + 0x10, 0, 0)


def test_the_file_given_stays_as_it_is() -> None:
    table = struct.pack("<QQ", 0x1000, 8)
    data = bytearray(pie(bytes(8) + table, (DT_REL, 0x1008), (DT_RELSZ, 16), (DT_RELENT, 16)))
    before = bytes(data)
    load(data, address=BASE)
    assert data == before


def test_what_follows_dt_null_does_not_count() -> None:
    assert load(pie(b"x", (0, 0), (1, 1))).segments[1].address == 0x10_1000


def test_a_number_means_another_relocation_on_another_machine() -> None:
    rel = (DT_REL, 0x1008), (DT_RELSZ, 8), (DT_RELENT, 8)
    with pytest.raises(LoadError, match="needs the relocation type 38 at 0x1000: "):
        load(pie(bytes(8) + longs_of(0x1000, 38), *rel, bits=32))


@pytest.mark.parametrize(
    ("tags", "table", "message"),
    [
        (
            [(DT_RELA, 0x1008), (DT_RELASZ, 24), (DT_RELAENT, 24)],
            struct.pack("<QQq", 0x1000, 37, 0),
            "needs the relocation R_X86_64_IRELATIVE at 0x1000: only a dynamic linker can apply it",
        ),
        (
            [(DT_RELA, 0x1008), (DT_RELASZ, 24), (DT_RELAENT, 24)],
            struct.pack("<QQq", 0x1000, 5 << 32 | 6, 0),
            "needs the relocation R_X86_64_GLOB_DAT at 0x1000: only a dynamic linker can apply it",
        ),
        (
            [(DT_RELA, 0x1008), (DT_RELASZ, 24), (DT_RELAENT, 24)],
            struct.pack("<QQq", 0x1000, 0xFFFF_FFFF, 0),
            "needs the relocation type 4294967295 at 0x1000: only a dynamic linker can apply it",
        ),
        (
            [(DT_RELA, 0x1008), (DT_RELASZ, 24), (DT_RELAENT, 24)],
            struct.pack("<QQq", 0x1019, 8, 0),
            "word to relocate at 0x1019 (0x8 bytes) lies in no segment's part of the file",
        ),
        (
            [(DT_RELA, 0x1008), (DT_RELASZ, 24), (DT_RELAENT, 24)],
            struct.pack("<QQq", 0xFF8, 8, 0),
            "word to relocate at 0xff8 (0x8 bytes) lies in no segment's part of the file",
        ),
        (
            [(DT_RELA, 0x1008), (DT_RELASZ, 1 << 60), (DT_RELAENT, 24)],
            bytes(24),
            "relocation table (DT_RELA) has 0x1000000000000000 bytes in entries of 24, "
            "but an entry has 24",
        ),
        (
            [(DT_RELA, 0x1008), (DT_RELASZ, 24 << 40), (DT_RELAENT, 24)],
            bytes(24),
            "relocation table (DT_RELA) at 0x1008 (0x180000000000 bytes) "
            "lies in no segment's part of the file",
        ),
        (
            [(DT_REL, 0x1008), (DT_RELSZ, 24), (DT_RELENT, 0)],
            bytes(24),
            "relocation table (DT_REL) has 0x18 bytes in entries of 0, but an entry has 16",
        ),
        (
            [(DT_RELR, 0x1008), (DT_RELRSZ, 24)],
            bytes(24),
            "relocation table (DT_RELR) has 0x18 bytes in entries of None, but an entry has 8",
        ),
    ],
    ids=range(9),
)
def test_refused(tags: list[tuple[int, int]], table: bytes, message: str) -> None:
    with pytest.raises(LoadError) as caught:
        load(pie(bytes(8) + table, *tags), name="g.elf")
    assert caught.value.message == f"g.elf: {message}"


def longs_of(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)
