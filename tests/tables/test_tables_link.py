"""Tables before and after they are placed."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import ConfigError
from pykvm.layout import BIOS_END, BIOS_START, EBDA_START
from pykvm.tables import Checksum, Hardware, Pointer, Table, acpi_tables, build, link

PC = frozenset(
    ["acpi-pm", "com1", "com2", "hpet", "i8042", "pm-timer", "pvpanic", "pci-config", "rtc"]
)


def test_pointers_are_filled_in_before_checksums() -> None:
    first = Table("first", b"\1" + bytes(7), (Pointer(1, 4, "second"),), (Checksum(7, 0, 8),))
    pieces = link([first, Table("second", b"x")], {"first": 0x100, "second": 0x12345678})
    assert pieces[0].address == 0x100
    assert pieces[0].data == bytes.fromhex("01 78 56 34 12 00 00 eb")
    assert sum(pieces[0].data) % 256 == 0
    assert pieces[1].data == b"x"


def test_a_checksum_covers_an_earlier_one() -> None:
    table = Table("t", b"\5\0\0", checksums=(Checksum(1, 0, 2), Checksum(2, 0, 3)))
    assert link([table], {"t": 0})[0].data == b"\5\xfb\0"


def test_what_is_not_linked_yet_has_zeros_there() -> None:
    for table in acpi_tables(Hardware(devices=PC)):
        for pointer in table.pointers:
            assert not any(table.data[pointer.offset : pointer.offset + pointer.width])
        for checksum in table.checksums:
            assert table.data[checksum.offset] == 0


def test_every_pointer_leads_to_a_table_that_is_there() -> None:
    tables = acpi_tables(Hardware(devices=PC))
    names = [table.name for table in tables]
    assert len(set(names)) == len(names)
    assert {pointer.target for table in tables for pointer in table.pointers} == set(names) - {
        "RSDP"
    }


@given(
    st.integers(1, 1500),
    st.sampled_from(["user", "kernel", "split", "none"]),
    st.frozensets(st.sampled_from(sorted(PC))),
)
def test_each_lies_alone_in_a_place_of_its_own(
    vcpus: int, irqchip: str, devices: frozenset[str]
) -> None:
    tables = build(Hardware(vcpus, irqchip, devices))
    pieces = sorted(tables.pieces, key=lambda piece: piece.address)
    for before, after in pairwise(pieces):
        assert before.end <= after.address, f"{before.name}, {after.name}"
    for piece in pieces:
        low, high = {"BDA": (0x400, 0x500)}.get(piece.name, (BIOS_START, BIOS_END))
        if piece.name in ("EBDA", "MP pointer"):
            low, high = EBDA_START, EBDA_START + 0x400
        assert low <= piece.address < piece.end <= high, piece.name
    assert (tables.rsdp == BIOS_START) is ("acpi-pm" in devices)
    assert any(piece.name == "MP pointer" for piece in pieces) is (irqchip != "none")


def test_more_processors_than_there_is_room_for() -> None:
    assert build(Hardware(2048, devices=PC)).rsdp
    with pytest.raises(ConfigError, match=r"vcpus=4000: .*the DSDT has \d+ bytes, and at most \d+"):
        build(Hardware(4000, devices=PC))
