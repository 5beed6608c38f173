"""ELF notes, and the protocol that a file asks for by name."""

from __future__ import annotations

import pytest
from boot.elfs import HLT, Part, elf
from boot.kernels import note, vmlinux

from pykvm import boot
from pykvm.boot.notes import Note, named_protocol, read_notes
from pykvm.boot.source import Source
from pykvm.errors import LoadError


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


def test_what_is_damaged_ends_them() -> None:
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


def test_a_file_names_its_protocol() -> None:
    wish = note("pykvm", 1, b"elf\0")
    assert named_protocol(Source("k", elf(Part(HLT), wish))) == "elf"
    assert boot.load(vmlinux()).protocol == "linux"
    # Its entry is not where it is linked, but that is for the protocol to know.
    assert boot.load(vmlinux(wish)).protocol == "elf"
    assert boot.load(vmlinux(wish), protocol="linux").protocol == "linux"
    assert boot.load(vmlinux(note("pykvm", 2, b"elf\0"))).protocol == "linux"


def test_a_protocol_that_does_not_know_the_file_or_does_not_exist() -> None:
    with pytest.raises(LoadError, match=r"no linux64 image \(no boot flag"):
        boot.load(elf(Part(HLT), note("pykvm", 1, b"linux64")))
    with pytest.raises(LoadError) as caught:
        boot.load(elf(Part(HLT), note("pykvm", 1, b"\xffx")), name="k")
    assert str(caught.value) == (
        "k: names the boot protocol '\\\\xffx' (note of owner pykvm), and there is none\n"
        f"choose from {', '.join(boot.PROTOCOLS)}, here or in the file"
    )


def test_the_guests_with_a_pvh_note_stay_bare(guests: object) -> None:
    image = boot.load(f"{guests}/hello.elf")
    assert (image.protocol, boot.protocol_of(image).PC) == ("elf", False)
    assert boot.load(f"{guests}/hello.elf", protocol="pvh").protocol == "pvh"
    assert boot.load(f"{guests}/pvh.elf").protocol == "pvh"
