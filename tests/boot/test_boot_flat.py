"""Flat images, and files that are nothing pykvm knows."""

from __future__ import annotations

import pytest

from pykvm import boot
from pykvm.errors import LoadError
from pykvm.x86.state import Mode
from support.boot import load

CODE = b"\xb0A\xe6\xe9\xf4"


@pytest.mark.parametrize("name", ["boot.bin", "floppy.IMG", "hello.com"])
def test_known_by_its_name(name: str) -> None:
    image = load(CODE, name=name)
    assert image[:5] == (name, "flat", "flat", Mode.REAL, 0x7C00)
    (segment,) = image.segments
    assert (segment.name, segment.address, segment.data, segment.size) == ("image", 0x7C00, CODE, 5)
    assert len(image.symbols) == 0


@pytest.mark.parametrize("mode", Mode)
def test_known_by_the_mode_asked_for(mode: Mode) -> None:
    image = load(CODE, name="code", mode=mode)
    assert (image.kind, image.mode, image.entry) == ("flat", mode, 0x7C00)


def test_known_by_the_address_asked_for() -> None:
    image = load(CODE, name="code", address=0x1_2345)
    assert (image.kind, image.mode, image.entry) == ("flat", Mode.REAL, 0x1_2345)
    assert image.segments[0].address == 0x1_2345


def test_address_zero_is_an_address() -> None:
    assert load(CODE, address=0).entry == 0


def test_an_elf_is_an_elf_whatever_is_asked_for() -> None:
    with pytest.raises(LoadError, match="ELF header is truncated"):
        load(b"\x7fELF", name="x.bin", mode=Mode.REAL)


def test_out_of_the_modes_reach() -> None:
    with pytest.raises(LoadError, match="entry 0x100000 is out of reach in real mode"):
        load(CODE, address=1 << 20)
    assert load(CODE, address=1 << 20, mode=Mode.PROTECTED).entry == 1 << 20


def test_unknown_is_told_what_each_protocol_missed() -> None:
    with pytest.raises(LoadError) as caught:
        load(b"hello, world", name="notes.txt")
    assert caught.value.message == "notes.txt: is no guest that pykvm knows"
    advice, *missed = caught.value.hint.splitlines()
    assert advice == (
        "to run it as raw machine code, say in which mode: mode='real', protected or long"
    )
    asked = set(boot.PROTOCOLS) - {"linux64", "linux32"}
    assert {line.partition(" image: ")[0] for line in missed} == {f"no {one}" for one in asked}
    assert "no elf image: starts with 68 65 6c 6c, not with 7f 45 4c 46" in missed
    assert missed[-1] == (
        "no flat image: no mode or address is given, and the name ends in none of .bin .img .com"
    )


@pytest.mark.parametrize(
    ("start", "what", "hint"),
    [
        (b"#!/bin/sh\n", "a script", "pykvm runs machine code"),
        (b"!<arch>\nlib.o/", "a static library", "link it into an executable first"),
        (b"\x1f\x8b\x08", "compressed with gzip", "decompress it first: gunzip FILE"),
        (b"MZ\x90", "a DOS, Windows or EFI program", "build the guest as an ELF executable"),
        (bytes(0x38) + b"ARM\x64", "a Linux kernel for arm64", "pykvm runs x86 guests"),
        (bytes(0x38) + b"RSC\x05", "a Linux kernel for RISC-V", "pykvm runs x86 guests"),
        (b"MZ" + bytes(0x36) + b"ARM\x64", "a Linux kernel for arm64", "pykvm runs x86 guests"),
        (
            bytes(0x24) + b"\x18\x28\x6f\x01",
            "a Linux kernel for 32-bit Arm (zImage)",
            "pykvm runs x86 guests",
        ),
        (
            bytes(0x28) + b"_FVH",
            "a volume of UEFI firmware that has no reset vector",
            "give the whole image (OVMF.fd)",
        ),
        (b"MZ\0\0zimg", "an EFI zboot image", "give the kernel that is packed in it"),
        (b"/* main */", "source code", "compile and link it first"),
    ],
)
def test_familiar_files_are_called_by_their_name(start: bytes, what: str, hint: str) -> None:
    with pytest.raises(LoadError) as caught:
        load(start, name="guest")
    assert caught.value.message == f"guest: is {what}"
    assert caught.value.hint.startswith(hint)


def test_less_than_the_magic_is_no_elf() -> None:
    with pytest.raises(LoadError) as caught:
        load(b"\x7f")
    assert "no elf image: starts with 7f, not with 7f 45 4c 46" in caught.value.hint.splitlines()
