"""Tables in ELF files that are larger than any program's: read so far, or refused."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from boot.elfs import ET_DYN, HLT, PT_DYNAMIC, Part, Sym, dynamic, elf

from pykvm.boot import relocate, symbols
from pykvm.boot.large_file import LargeFile
from pykvm.errors import LoadError
from support.boot import load

MIB = 1 << 20
DT_RELA, DT_RELASZ, DT_RELAENT = 7, 8, 9
DT_RELRSZ, DT_RELR, DT_RELRENT = 35, 36, 37
SH_SIZE, SH_ENTRY = 32, 64
SYMTAB, STRTAB = 1, 2


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How much of a large file is read at a time."""
    sizes: list[int] = []
    read = LargeFile._read

    def noted(self: LargeFile, offset: int, size: int) -> memoryview:
        sizes.append(size)
        return read(self, offset, size)

    monkeypatch.setattr(LargeFile, "_read", noted)
    return sizes


def sparse(path: Path, image: bytes, size: int) -> Path:
    path.write_bytes(image)
    with path.open("r+b") as file:
        file.truncate(size)
    return path


def with_section(image: bytes, number: int, size: int) -> bytes:
    """The file with sh_size of one section changed."""
    (start,) = struct.unpack_from("<Q", image, 40)
    changed = bytearray(image)
    struct.pack_into("<Q", changed, start + number * SH_ENTRY + SH_SIZE, size)
    return bytes(changed)


@pytest.mark.parametrize("section", [SYMTAB, STRTAB])
def test_a_huge_table_is_read_so_far(tmp_path: Path, reads: list[int], section: int) -> None:
    sound = elf(Part(HLT * 64), symbols=(Sym("main", 0x10_0000, 64), Sym("end", 0x10_0020)))
    image = with_section(sound, section, 4096 * MIB)
    loaded = load(str(sparse(tmp_path / "huge.elf", image, 4096 * MIB)))
    assert dict(loaded.symbols) == {"main": 0x10_0000, "end": 0x10_0020}
    assert max(reads) <= symbols._MOST_NAMES


def test_more_symbols_than_any_program_has(monkeypatch: pytest.MonkeyPatch) -> None:
    many = tuple(Sym(f"s{number}", 0x10_0000 + number) for number in range(20))
    image = elf(Part(HLT * 64), symbols=many)
    monkeypatch.setattr(symbols, "_MOST_SYMBOLS", 12)
    assert len(load(image).symbols) == 12
    monkeypatch.setattr(symbols, "_MOST_ENTRIES", 8)
    # The first entry of a table names nothing.
    assert len(load(image).symbols) == 7
    monkeypatch.setattr(symbols, "_MOST_NAMES", 10)
    assert dict(load(image).symbols) == {
        "s0": 0x10_0000,
        "s1": 0x10_0001,
        "s2": 0x10_0002,
    }


def pie(*tables: tuple[int, int], table: bytes = b"", filesz: int | None = None) -> bytes:
    return elf(
        Part(dynamic(*tables), 0x0, type=PT_DYNAMIC),
        Part(HLT * 0x1000, 0x0),
        Part(table, 0x1000, filesz=filesz, memsz=filesz),
        type=ET_DYN,
        entry=0,
    )


def test_a_huge_dynamic_section(tmp_path: Path, reads: list[int]) -> None:
    image = elf(
        Part(b"", 0x0, type=PT_DYNAMIC, filesz=4000 * MIB, offset=0x1000),
        Part(HLT * 64, 0x0),
        type=ET_DYN,
        entry=0,
    )
    load(str(sparse(tmp_path / "huge.elf", image, 4096 * MIB)))
    assert max(reads) <= MIB


def test_more_relocations_than_any_program_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relocate, "_MOST_RELOCATIONS", 100)
    for count in (100, 101):
        table = bytes(24 * count)
        tables = ((DT_RELA, 0x1000), (DT_RELASZ, len(table)), (DT_RELAENT, 24))
        image = pie(*tables, table=table)
        if count == 100:
            load(image)
            continue
        with pytest.raises(LoadError, match="has more than 100 relocations"):
            load(image)


def test_a_small_table_that_stands_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relocate, "_MOST_RELOCATIONS", 100)
    # An address and a bitmap of the 63 words after it, twice the same.
    table = struct.pack("<QQ", 0x100, (1 << 64) - 1) * 2
    tables = ((DT_RELR, 0x1000), (DT_RELRSZ, len(table)), (DT_RELRENT, 8))
    with pytest.raises(LoadError, match="has more than 100 relocations"):
        load(pie(*tables, table=table))


@pytest.mark.parametrize("room", [None, 64 * MIB])
def test_segments_that_are_the_same_bytes_again_and_again(
    tmp_path: Path, reads: list[int], room: int | None
) -> None:
    """Relocating them would take a copy of each."""
    parts = [Part(b"", number << 32, filesz=1024 * MIB, offset=0x1000) for number in range(1, 21)]
    image = elf(Part(HLT * 64, 0x0), *parts, type=ET_DYN, entry=0)
    path = sparse(tmp_path / "many.elf", image, 1025 * MIB)
    with pytest.raises(LoadError, match="its 21 segments have 0x500000040 bytes in the file"):
        load(str(path), room=room)
    assert max(reads) <= MIB


def test_words_are_found_in_any_order_of_segments() -> None:
    word = struct.pack("<Q", 0x1234)
    table = struct.pack("<QQq", 0x3000, 8, 0x55) + struct.pack("<QQq", 0x2000, 8, 0x66)
    tables = ((DT_RELA, 0x1000), (DT_RELASZ, len(table)), (DT_RELAENT, 24))
    image = elf(
        Part(dynamic(*tables), 0x0, type=PT_DYNAMIC),
        Part(word, 0x3000),
        Part(HLT * 0x1000, 0x0),
        Part(word, 0x2000),
        Part(table, 0x1000),
        type=ET_DYN,
        entry=0,
    )
    loaded = load(image)
    data = {segment.address: bytes(segment.data) for segment in loaded.segments}
    assert data[0x10_3000] == struct.pack("<Q", 0x10_0055)
    assert data[0x10_2000] == struct.pack("<Q", 0x10_0066)
