"""The commands for a firmware, carried out as a firmware does, give what `link` gives."""

from __future__ import annotations

import struct

import pytest

from pykvm.tables import Checksum, Hardware, Pointer, Table, acpi_tables, link
from pykvm.tables.loader import COMMANDS, loader_files

RSDP = Table("RSDP", bytes(16), (Pointer(4, 4, "B"), Pointer(8, 8, "A")), (Checksum(0, 0, 16),))
A = Table("A", b"\0" + b"a" * 20, (), (Checksum(0, 0, 21),))
B = Table("B", bytes(8), (Pointer(0, 4, "A"), Pointer(4, 4, "B")), align=64)


def name_of(field: bytes) -> str:
    name, nul, rest = field.partition(b"\0")
    assert nul
    assert not rest.strip(b"\0")
    return name.decode()


def firmware(files: dict[str, bytes], zones: dict[int, int]) -> dict[str, tuple[int, bytes]]:
    """Where the files come to lie, and with what in them; `zones` has the next address in each."""
    memory: dict[str, bytearray] = {}
    places: dict[str, int] = {}
    script = files[COMMANDS]
    assert len(script) % 128 == 0
    for at in range(0, len(script), 128):
        command, name = struct.unpack_from("<I56s", script, at)
        file, rest = name_of(name), at + 60
        if command == 1:
            align, zone = struct.unpack_from("<IB", script, rest)
            assert file not in places
            places[file] = -(-zones[zone] // align) * align
            zones[zone] = places[file] + len(files[file])
            memory[file] = bytearray(files[file])
        elif command == 2:
            source, offset, size = struct.unpack_from("<56sIB", script, rest)
            field = slice(offset, offset + size)
            value = int.from_bytes(memory[file][field], "little") + places[name_of(source)]
            memory[file][field] = value.to_bytes(size, "little")
        else:
            assert command == 3
            offset, start, length = struct.unpack_from("<III", script, rest)
            covered = memory[file][start : start + length]
            memory[file][offset] = (memory[file][offset] - sum(covered)) & 0xFF
    return {file: (places[file], bytes(memory[file])) for file in places}


@pytest.mark.parametrize(
    "tables",
    [
        (RSDP, A, B),
        acpi_tables(Hardware(vcpus=2, devices=frozenset({"acpi-pm", "hpet", "pm-timer", "com1"}))),
    ],
    ids=["made up", "a PC's"],
)
def test_a_firmware_that_obeys_links_them(tables: tuple[Table, ...]) -> None:
    placed = firmware(loader_files(tables), {1: 0x7FE_0010, 2: 0xF_5B3D})
    root, rest = placed["etc/acpi/rsdp"], placed["etc/acpi/tables"]
    assert 0xF_0000 <= root[0] <= 0x10_0000
    assert root[0] % 16 == 0
    position, places = rest[0], {"RSDP": root[0]}
    for table in tables[1:]:
        position = -(-position // table.align) * table.align
        places[table.name] = position
        position += len(table.data)
    for piece in link(tables, places):
        start, content = root if piece.name == "RSDP" else rest
        at = piece.address - start
        assert content[at : at + len(piece.data)] == piece.data, piece.name


def test_no_tables_no_files() -> None:
    assert loader_files(()) == {}
