"""SMBIOS: what it says of the machine, by both entry points."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables.acpi_reader import Memory

from pykvm.tables import Hardware, build

MIB = 1 << 20
GIB = 1 << 30


class Structure(NamedTuple):
    kind: int
    handle: int
    body: bytes
    strings: list[str]

    def text(self, offset: int) -> str:
        return self.strings[self.body[offset - 4] - 1]


def structures(memory: Memory, at: int, length: int) -> list[Structure]:
    found, end = [], at + length
    while at < end:
        kind, size, handle = memory.unpack("BBH", at)
        body = bytes(memory.bytes[at + 4 : at + size])
        after = memory.bytes.index(b"\0\0", at + size)
        texts = bytes(memory.bytes[at + size : after]).split(b"\0")
        found.append(Structure(kind, handle, body, [text.decode() for text in texts if text]))
        at = after + 2
    assert at == end
    return found


def read(hardware: Hardware) -> list[Structure]:
    """By both entry points."""
    memory = Memory(build(hardware).pieces)
    entry = memory.scan(b"_SM3_", 0xF0000, 0x100000)
    assert memory.sums_to_zero(entry, memory.bytes[entry + 6])
    size, table = memory.unpack("IQ", entry + 12)
    old = memory.scan(b"_SM_", 0xF0000, 0x100000)
    assert memory.sums_to_zero(old, memory.bytes[old + 5])
    assert memory.bytes.startswith(b"_DMI_", old + 16)
    assert memory.sums_to_zero(old + 16, 15)
    assert memory.unpack("HI", old + 22) == (size, table)
    found = structures(memory, table, size)
    assert memory.unpack("H", old + 28) == (len(found),)
    largest = max(
        4 + len(one.body) + sum(len(text) + 1 for text in one.strings or [""]) + 1 for one in found
    )
    assert memory.unpack("H", old + 8) == (largest,)
    return found


def test_structures_of_a_machine_with_four_vcpus() -> None:
    found = read(Hardware(vcpus=4, ram=((0, 3 * GIB), (4 * GIB, 5 * GIB))))
    assert [one.kind for one in found] == [0, 1, 3, 4, 16, 17, 19, 19, 32, 127]
    assert len({one.handle for one in found}) == len(found)
    bios, system = found[:2]
    assert (bios.text(4), system.text(4), system.text(5)) == ("pykvm", "pykvm", "PC")
    # Linux takes a BIOS of this century for one of a machine that has PCI as PCs have it.
    assert int(bios.text(8)[-4:]) >= 2001
    processor = found[3].body
    assert processor[0x23 - 4] == 4
    assert struct.unpack_from("<H", processor, 0x2A - 4) == (4,)
    assert struct.unpack_from("<I", found[4].body, 7 - 4) == (4 * MIB,)
    assert struct.unpack_from("<H", found[5].body, 0xC - 4) == (4096,)
    assert [struct.unpack_from("<II", one.body) for one in found[6:8]] == [
        (0, 3 * MIB - 1),
        (4 * MIB, 5 * MIB - 1),
    ]


def test_more_than_the_old_fields_hold() -> None:
    found = read(Hardware(vcpus=300, ram=((0, 3 * GIB), (4 * GIB, 1 << 43))))
    processor, array, device, *mapped = found[3:8]
    assert processor.body[0x23 - 4] == 0xFF
    assert struct.unpack_from("<H", processor.body, 0x2A - 4) == (300,)
    size = (1 << 43) - GIB
    assert struct.unpack_from("<I", array.body, 7 - 4) == (0x80000000,)
    assert struct.unpack_from("<Q", array.body, 0xF - 4) == (size,)
    assert struct.unpack_from("<H", device.body, 0xC - 4) == (0x7FFF,)
    assert struct.unpack_from("<I", device.body, 0x1C - 4) == (size // MIB,)
    assert struct.unpack_from("<II", mapped[1].body) == (0xFFFFFFFF, 0xFFFFFFFF)
    assert struct.unpack_from("<QQ", mapped[1].body, 0xF - 4) == (4 * GIB, (1 << 43) - 1)


@given(st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(1, 1 << 40)), max_size=40))
def test_any_memory_is_told_of(sizes: list[tuple[int, int]]) -> None:
    at, ram = 0, []
    for gap, size in sizes:
        ram.append((at + 4096 * gap, at + 4096 * (gap + size)))
        at = ram[-1][1]
    found = read(Hardware(ram=tuple(ram)))
    assert sum(one.kind == 19 for one in found) == min(len(ram), 16)


@pytest.mark.skipif(shutil.which("dmidecode") is None, reason="Debian's dmidecode")
def test_dmidecode_reads_it(tmp_path: Path) -> None:
    pieces = {piece.name: piece.data for piece in build(Hardware(vcpus=4)).pieces}
    entry = bytearray(pieces["SMBIOS 3"])
    # A dump has the table 32 bytes in.
    entry[16:24] = (32).to_bytes(8, "little")
    entry[5] = 0
    entry[5] = -sum(entry) & 0xFF
    (tmp_path / "dump").write_bytes(bytes(entry).ljust(32, b"\0") + pieces["SMBIOS"])
    said = subprocess.run(
        ["dmidecode", "--from-dump", tmp_path / "dump"], capture_output=True, text=True, check=True
    ).stdout
    for line in ("Vendor: pykvm", "Product Name: PC", "Core Count: 4", "Size: 64 MB"):
        assert line in said
    for trouble in ("<OUT OF SPEC>", "<BAD INDEX>", "truncated", "Wrong"):
        assert trouble not in said
