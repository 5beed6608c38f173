"""ACPI tables for a firmware to place: files of fw_cfg, and the commands that say what to do.

The firmware copies the files to memory of its choice, adds the address of one to what stands in
another wherever a command says so, and fills in checksums.

Source: QEMU, hw/acpi/bios-linker-loader.c, which describes the commands.
"""

from __future__ import annotations

import struct

from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pykvm.tables.table import Table

__all__ = ["COMMANDS", "loader_files"]

#: The file of commands, and those of tables: the root pointer, which the firmware puts where
#: kernels look for it, and all others.
COMMANDS = "etc/table-loader"
ROOT_FILE = "etc/acpi/rsdp"
TABLES_FILE = "etc/acpi/tables"

ROOT = "RSDP"

ALLOCATE = 1
ADD_POINTER = 2
ADD_CHECKSUM = 3

ZONE_HIGH = 1
ZONE_FSEG = 2

_COMMAND_SIZE = 128
_ALLOCATE = struct.Struct("<I56sIB")
_ADD_POINTER = struct.Struct("<I56s56sIB")
_ADD_CHECKSUM = struct.Struct("<I56sIII")


def loader_files(tables: Iterable[Table]) -> dict[str, bytes]:
    """The files for `tables`, the root pointer among them, by name; none if there are no tables."""
    tables = tuple(tables)
    if not tables:
        return {}
    files: dict[str, bytearray] = {ROOT_FILE: bytearray(), TABLES_FILE: bytearray()}
    places: dict[str, tuple[str, int]] = {}
    for table in tables:
        name = ROOT_FILE if table.name == ROOT else TABLES_FILE
        content = files[name]
        content += bytes(-len(content) % table.align)
        places[table.name] = name, len(content)
        content += table.data
    align = max(table.align for table in tables)
    commands = [
        _ALLOCATE.pack(ALLOCATE, ROOT_FILE.encode(), 16, ZONE_FSEG),
        _ALLOCATE.pack(ALLOCATE, TABLES_FILE.encode(), align, ZONE_HIGH),
    ]
    for table in tables:
        commands += _commands(table, places, files)
    script = b"".join(command.ljust(_COMMAND_SIZE, b"\0") for command in commands)
    return {COMMANDS: script, **{name: bytes(content) for name, content in files.items()}}


def _commands(
    table: Table, places: dict[str, tuple[str, int]], files: dict[str, bytearray]
) -> list[bytes]:
    """What is to be done to `table`; where its pointers are, the targets' offsets are written."""
    name, start = places[table.name]
    commands = []
    for pointer in table.pointers:
        target, offset = places[pointer.target]
        at = start + pointer.offset
        files[name][at : at + pointer.width] = offset.to_bytes(pointer.width, "little")
        commands.append(
            _ADD_POINTER.pack(ADD_POINTER, name.encode(), target.encode(), at, pointer.width)
        )
    commands += [
        _ADD_CHECKSUM.pack(
            ADD_CHECKSUM,
            name.encode(),
            start + checksum.offset,
            start + checksum.start,
            checksum.length,
        )
        for checksum in table.checksums
    ]
    return commands
