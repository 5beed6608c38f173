"""The MP tables, as an operating system reads them from memory."""

from __future__ import annotations

import struct

import pytest
from tables.acpi_reader import Memory

from pykvm.tables import Hardware, build
from pykvm.tables.mptable import mp_tables

EBDA = 0x9FC00
SIZES = {0: 20, 1: 8, 2: 8, 3: 8, 4: 8}


def entries(hardware: Hardware) -> list[bytes]:
    memory = Memory(build(hardware).pieces)
    pointer = memory.scan(b"_MP_", EBDA, EBDA + 0x400)
    assert memory.sums_to_zero(pointer, 16)
    table, length, revision, _, *features = memory.unpack("IBBB5B", pointer + 4)
    assert (length, revision, features) == (1, 4, [0] * 5)
    assert memory.bytes.startswith(b"PCMP", table)
    (length,) = memory.unpack("H", table + 4)
    assert memory.sums_to_zero(table, length)
    count, lapic = memory.unpack("HI", table + 34)
    assert lapic == 0xFEE00000
    found, at = [], table + 44
    for _ in range(count):
        size = SIZES[memory.bytes[at]]
        found.append(bytes(memory.bytes[at : at + size]))
        at += size
    assert at == table + length
    return found


def test_every_entry_of_two_processors() -> None:
    hardware = Hardware(2, signature=0x800F12, features=0x178BFBFF)
    found = entries(hardware)
    assert [entry.hex() for entry in found[:4]] == [
        "00001403" + "120f8000" + "fffb8b17" + "00" * 8,
        "00011401" + "120f8000" + "fffb8b17" + "00" * 8,
        "0100" + b"ISA   ".hex(),
        "02001101" + "0000c0fe",
    ]
    pins = {0: 2} | {irq: irq for irq in range(1, 16) if irq != 2}
    assert [struct.unpack("<BBHBBBB", entry) for entry in found[4:-2]] == [
        (3, 0, 0, 0, irq, 0, pin) for irq, pin in pins.items()
    ]
    assert [entry.hex() for entry in found[-2:]] == ["0403000000000000", "040100000000ff01"]


def test_the_sci_is_a_level() -> None:
    found = entries(Hardware(devices=frozenset(["acpi-pm"])))
    flags = {entry[5]: entry[2:4].hex() for entry in found if entry[0] == 3}
    assert flags.pop(9) == "0d00"
    assert set(flags.values()) == {"0000"}


@pytest.mark.parametrize("vcpus", [255, 256, 300])
def test_ids_have_a_byte(vcpus: int) -> None:
    processors = [entry for entry in entries(Hardware(vcpus)) if entry[0] == 0]
    assert [entry[1] for entry in processors] == list(range(255))


def test_without_apics_there_is_none() -> None:
    assert mp_tables(Hardware(irqchip="none")) == ()
