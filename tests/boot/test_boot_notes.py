"""ELF notes, and the protocol that a file asks for by name."""

from __future__ import annotations

import struct

import pytest
from boot.elfs import HLT, Part, elf, sectioned
from boot.kernels import note, vmlinux

from pykvm import boot
from pykvm.boot.notes import Note, named_protocol, read_notes, unreadable_entry_note
from pykvm.boot.source import Source
from pykvm.errors import LoadError
from support.boot import load


def notes(*parts: Part, bits: int = 64, machine: int | None = None) -> list[Note]:
    return list(read_notes(Source("k", elf(Part(HLT), *parts, bits=bits, machine=machine))))


@pytest.mark.parametrize("bits", [32, 64])
def test_each_program_header_of_notes(bits: int) -> None:
    both = Part(note("Xen", 18, b"12345").data + note("A", 1, b"").data, 0, type=4)
    assert notes(both, note("GNU", 3, b"id"), bits=bits) == [
        Note("Xen", 18, b"12345"),
        Note("A", 1, b""),
        Note("GNU", 3, b"id"),
    ]


def test_notes_aligned_to_8_bytes() -> None:
    first, second = note("GNU", 5, b"12345", align=8), note("Xen", 18, b"1234", align=8)
    both = Part(first.data + second.data, 0, type=4, align=8)
    assert notes(both) == [Note("GNU", 5, b"12345"), Note("Xen", 18, b"1234")]


def test_a_damaged_note_ends_the_reading() -> None:
    good = note("Xen", 18, b"1234").data
    assert notes(Part(good + b"\xff" * 12, 0, type=4)) == [Note("Xen", 18, b"1234")]
    assert notes(Part(good + good[:11], 0, type=4)) == [Note("Xen", 18, b"1234")]
    assert notes(note(), machine=183) == []
    assert list(read_notes(Source("k", b"\x7fELF"))) == []
    assert list(read_notes(Source("k", b"#!/bin/sh"))) == []


def test_a_million_notes_are_not_read() -> None:
    many = Part(bytes(12) * 100_000, 0, type=4)
    assert len(notes(many)) == (64 << 10) // 12
    assert len(notes(many, note())) == (64 << 10) // 12


XEN = Note("Xen", 18, b"1234")


def raw(desc: bytes, name: bytes = b"Xen\0", kind: int = 18, *, gap: int = 0) -> bytes:
    """A note with `gap` bytes between name and description."""
    return struct.pack("<III", len(name), len(desc), kind) + name + bytes(gap) + desc


class TestPadding:
    @pytest.mark.parametrize("align", [0, 1, 4, 8, 16, 4096])
    def test_whatever_the_segment_declares(self, align: int) -> None:
        # The first ends at 28: the second is at 28 for who pads to 4, at 32 for who pads to 8.
        for between in (0, 4):
            first = raw(b"123456789012", b"GNU\0", 5) + bytes(between)
            part = Part(first + raw(b"1234"), 0, type=4, align=align)
            assert XEN in notes(part), between

    def test_the_declared_way_comes_first(self) -> None:
        # Both ways a note: the description at 20 or, padded to 8, at 24.
        twice = raw(b"abcd", b"Xen\0\0\0\0\0", gap=0) + b"efgh"
        assert [one.desc for one in notes(Part(twice, 0, type=4))] == [b"abcd", b"efgh"]
        assert [one.desc for one in notes(Part(twice, 0, type=4, align=8))] == [b"efgh", b"abcd"]

    def test_sizes_padded_to_8_as_qemu_reads_them(self) -> None:
        part = Part(raw(bytes(8), gap=4)[:20] + b"\x10" * 8, 0, type=4, align=8)
        assert Note("Xen", 18, b"\x10" * 8) in notes(part)

    @pytest.mark.parametrize("name", [b"Xen", b"Xen\0", b"Xen\0\0\0\0\0"])
    def test_a_name_with_or_without_its_end(self, name: bytes) -> None:
        assert notes(Part(raw(b"1234", name, gap=-len(name) % 4), 0, type=4)) == [XEN]

    def test_strangers_count_only_as_declared(self) -> None:
        part = Part(raw(b"1234", b"A\0\0\0\0\0\0\0") + b"5678", 0, type=4, align=8)
        assert notes(part) == [Note("A", 18, b"5678")]


class TestSections:
    @pytest.mark.parametrize("bits", [32, 64])
    @pytest.mark.parametrize("align", [4, 8])
    def test_a_section_of_notes_is_read(self, bits: int, align: int) -> None:
        file = sectioned(raw(b"1234"), bits=bits, align=align)
        assert list(read_notes(Source("k", file))) == [XEN]

    def test_a_section_of_another_type_is_not_read(self) -> None:
        assert list(read_notes(Source("k", sectioned(raw(b"1234"), type=1)))) == []

    def test_a_note_in_a_segment_too_comes_once(self) -> None:
        file = elf(Part(HLT), note("Xen", 18, b"1234"))
        offset = file.index(raw(b"1234"))
        section = struct.pack("<IIQQQQIIQQ", 0, 7, 0, 0, offset, 20, 0, 0, 4, 0)
        header = elf(Part(HLT), note("Xen", 18, b"1234"), e_shoff=len(file), e_shnum=1)
        assert list(read_notes(Source("k", header + section))) == [XEN]

    @pytest.mark.parametrize(
        "file",
        [
            elf(e_shoff=1 << 40, e_shnum=1),
            elf(e_shoff=64, e_shnum=1, e_shentsize=63),
            elf(e_shoff=64, e_shnum=99),
        ],
    )
    def test_a_damaged_section_table_has_none(self, file: bytes) -> None:
        assert list(read_notes(Source("k", file))) == []


def test_an_unreadable_entry_note_is_found() -> None:
    short = raw(b"1234")[:-1]
    assert unreadable_entry_note(Source("k", elf(Part(HLT)))) is None
    file = elf(Part(HLT), Part(short, 0, type=4))
    assert unreadable_entry_note(Source("k", file)) == file.index(short) + 8
    # After more notes than are read.
    many = elf(Part(HLT), Part(bytes(12) * 10_000 + raw(b"1234"), 0, type=4))
    assert XEN not in list(read_notes(Source("k", many)))
    assert unreadable_entry_note(Source("k", many)) == many.index(raw(b"1234")) + 8


def test_a_file_names_its_protocol() -> None:
    wish = note("pykvm", 1, b"elf\0")
    assert named_protocol(Source("k", elf(Part(HLT), wish))) == "elf"
    assert load(vmlinux()).protocol == "linux"
    # Its entry is not where it is linked, but that is for the protocol to know.
    assert load(vmlinux(wish)).protocol == "elf"
    assert load(vmlinux(wish), protocol="linux").protocol == "linux"
    assert load(vmlinux(note("pykvm", 2, b"elf\0"))).protocol == "linux"


def test_a_protocol_that_does_not_know_the_file_or_does_not_exist() -> None:
    with pytest.raises(LoadError, match=r"no linux64 image: no boot flag"):
        load(elf(Part(HLT), note("pykvm", 1, b"linux64")))
    with pytest.raises(LoadError) as caught:
        load(elf(Part(HLT), note("pykvm", 1, b"\xffx")), name="k")
    assert str(caught.value) == (
        "k: names the boot protocol '\\\\xffx' (note of owner pykvm), and there is none\n"
        f"choose from {', '.join(boot.PROTOCOLS)}, here or in the file"
    )


def test_the_guests_with_a_pvh_note_stay_bare(guests: object) -> None:
    image = load(f"{guests}/hello.elf")
    assert (image.protocol, boot.protocol_of(image).PC) == ("elf", False)
    assert load(f"{guests}/hello.elf", protocol="pvh").protocol == "pvh"
    assert load(f"{guests}/pvh.elf").protocol == "pvh"
