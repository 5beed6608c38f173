"""Symbols: names to addresses and back, from sound files and from garbage."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from boot.elfs import (
    ET_DYN,
    HLT,
    SHN_ABS,
    STB_LOCAL,
    STB_WEAK,
    STT_FILE,
    STT_NOTYPE,
    STT_OBJECT,
    STT_SECTION,
    Part,
    Sym,
    elf,
)

from pykvm.boot import Symbols
from pykvm.boot.symbols import Symbol
from support.boot import load

GUESTS = sorted(Path(__file__).parents[2].glob("guests/build/*.elf"))


def symbols_of(*symbols: Sym, **fields: int) -> Symbols:
    return load(elf(Part(HLT * 0x200, 0x1000), symbols=symbols, **fields)).symbols


@pytest.mark.parametrize("bits", [32, 64])
def test_names_and_addresses(bits: int) -> None:
    symbols = symbols_of(Sym("main", 0x1000, 0x20), Sym("table", 0x1100, 8, STT_OBJECT), bits=bits)
    assert dict(symbols) == {"main": 0x1000, "table": 0x1100}
    assert symbols.find(0x101F) == ("main", 0x1F)
    assert symbols.describe(0x1000) == "main"
    assert symbols.describe(0x1104) == "table+0x4"


def test_an_address_before_between_and_after_has_no_symbol() -> None:
    symbols = symbols_of(Sym("main", 0x1010, 0x20))
    for address in (0, 0x100F, 0x1030, 1 << 63):
        assert symbols.find(address) is None
        assert symbols.describe(address) == f"{address:#x}"


def test_a_symbol_without_size_reaches_to_the_next_or_the_segments_end() -> None:
    symbols = symbols_of(Sym("a", 0x1000, type=STT_NOTYPE), Sym("b", 0x1010, type=STT_NOTYPE))
    assert symbols.find(0x100F) == ("a", 0xF)
    assert symbols.find(0x11FF) == ("b", 0x1EF)
    assert symbols.find(0x1200) is None


def test_what_is_no_place_in_the_program_is_left_out() -> None:
    symbols = symbols_of(
        Sym("undefined", 0, section=0),
        Sym("file.c", 0x1000, type=STT_FILE),
        Sym("section", 0x1000, type=STT_SECTION),
        Sym("", 0x1000),
        Sym("kept", 0x1000),
    )
    assert list(symbols) == ["kept"]


def test_an_absolute_symbol_is_a_number_and_names_no_address() -> None:
    symbols = symbols_of(
        Sym("main", 0x1000, 0x20), Sym("SIZE", 0x1004, type=STT_NOTYPE, section=SHN_ABS)
    )
    assert symbols["SIZE"] == 0x1004
    assert symbols.describe(0x1004) == "main+0x4"


def test_a_name_given_twice_is_the_global_symbol() -> None:
    symbols = symbols_of(
        Sym("f", 0x1010, binding=STB_LOCAL), Sym("f", 0x1020), Sym("f", 0x1030, binding=STB_WEAK)
    )
    assert symbols["f"] == 0x1020


def test_an_address_with_several_names_is_the_global_function() -> None:
    symbols = symbols_of(
        Sym("alias", 0x1000, 4, binding=STB_WEAK),
        Sym("main", 0x1000, 4),
        Sym("label", 0x1000, 0, STT_NOTYPE),
        Sym(".L1", 0x1000, 0, STT_NOTYPE, STB_LOCAL),
    )
    assert symbols.find(0x1001) == ("main", 1)


def test_a_placed_pie_has_its_symbols_where_it_lies() -> None:
    data = elf(
        Part(HLT * 16, 0),
        type=ET_DYN,
        symbols=(Sym("main", 8), Sym("SIZE", 8, section=SHN_ABS)),
    )
    symbols = load(data, address=0x40_0000).symbols
    assert dict(symbols) == {"main": 0x40_0008, "SIZE": 8}
    assert symbols.find(0x40_0009) == ("main", 1)


def test_kernel_linked_high_is_found_by_virtual_address() -> None:
    high = 0xFFFF_FFFF_8000_0000
    data = elf(
        Part(vaddr=0x1000), Part(HLT * 64, high, paddr=0x2000), symbols=(Sym("kernel", high),)
    )
    assert load(data).symbols.describe(high + 2) == "kernel+0x2"


def test_a_stripped_file_has_none() -> None:
    symbols = load(elf()).symbols
    assert len(symbols) == 0
    assert symbols.find(0x10_0000) is None
    assert repr(symbols) == "<0 symbols>"


def test_symbols_are_read_once_and_only_when_asked_for() -> None:
    reads: list[int] = []

    def read() -> list[Symbol]:
        reads.append(1)
        return [Symbol("main", 0x1000)]

    symbols = Symbols(read)
    assert not reads
    assert symbols["main"] == 0x1000
    assert symbols.describe(0x1001) == "main+0x1"
    assert len(reads) == 1
    with pytest.raises(KeyError):
        symbols["other"]


class TestGarbage:
    FILE = elf(Part(HLT * 0x200, 0x1000), symbols=(Sym("main", 0x1000), Sym("f", 0x1010)))

    @pytest.mark.parametrize(
        "fields",
        [
            {"e_shoff": 1 << 62},
            {"e_shentsize": 0},
            {"e_shentsize": 65535},
            {"e_shnum": 1},
            {"e_shoff": 1},
        ],
        ids=str,
    )
    def test_section_headers_that_cannot_be(self, fields: dict[str, int]) -> None:
        assert dict(symbols_of(Sym("main", 0x1000), **fields)) == {}

    def test_sections_counted_in_the_first_header_are_found(self) -> None:
        assert dict(symbols_of(Sym("main", 0x1000), e_shnum=0)) == {"main": 0x1000}

    def test_more_sections_than_the_file_holds_are_not_missed(self) -> None:
        assert dict(symbols_of(Sym("main", 0x1000), e_shnum=0xFFFE)) == {"main": 0x1000}

    def test_a_truncated_table_yields_what_is_there(self) -> None:
        start = struct.unpack_from("<Q", self.FILE, 0x28)[0] + 64
        broken = bytearray(self.FILE)
        names = struct.unpack_from("<Q", broken, start + 64 + 24)[0]
        struct.pack_into("<Q", broken, names - 48, 0xFFFF_FFFF)  # st_name of "main"
        assert dict(load(bytes(broken)).symbols) == {"f": 0x1010}
        struct.pack_into("<Q", broken, start + 32, 1 << 60)  # sh_size of .symtab
        assert load(bytes(broken)).symbols["f"] == 0x1010
        struct.pack_into("<I", broken, start + 40, 77)  # sh_link of .symtab
        assert dict(load(bytes(broken)).symbols) == {}

    def test_names_that_repeat_take_no_more_memory_than_the_file(self) -> None:
        many = tuple(Sym("x" * 4000, 0x1000 + i, type=STT_OBJECT) for i in range(1000))
        assert sum(map(len, symbols_of(*many))) <= 4000
        symbols = load(elf(Part(HLT * 0x2000, 0x1000), symbols=many)).symbols
        assert 1 <= len(list(symbols._read())) <= 7

    def test_a_name_that_never_ends_is_no_name(self) -> None:
        assert dict(symbols_of(Sym("x" * 5000, 0x1000), Sym("main", 0x1008))) == {"main": 0x1008}

    def test_bytes_that_are_no_text_become_replacement_characters(self) -> None:
        data = self.FILE.replace(b"main", b"m\xff\xfen")
        assert load(data).symbols["m��n"] == 0x1000


@pytest.mark.parametrize("path", GUESTS, ids=lambda path: path.name)
def test_finds_what_pyelftools_finds(path: Path) -> None:
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    image = load(path)
    with path.open("rb") as stream:
        theirs = ELFFile(stream)
        table = theirs.get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        expected = {
            (symbol.name, symbol["st_value"])
            for symbol in table.iter_symbols()
            if symbol["st_shndx"] != "SHN_UNDEF"
            and symbol["st_info"]["type"] in ("STT_NOTYPE", "STT_OBJECT", "STT_FUNC")
            and symbol.name
        }
        bias = image.entry - theirs["e_entry"]
    mine = {(name, address - bias) for name, address in image.symbols.items()}
    assert mine <= expected
    assert {name for name, _ in mine} == {name for name, _ in expected}
    assert image.symbols.describe(image.entry) in ("_start", "pvh_start")
