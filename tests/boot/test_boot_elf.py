"""Reading ELF files: what is loaded where, and what is refused in which words."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from boot.elfs import (
    EM_386,
    EM_X86_64,
    ET_CORE,
    ET_DYN,
    ET_REL,
    HLT,
    PT_DYNAMIC,
    PT_INTERP,
    PT_LOAD,
    Part,
    R,
    W,
    X,
    dynamic,
    elf,
)

from pykvm.boot.elf import read_header, read_program_headers
from pykvm.boot.source import Source
from pykvm.descriptor import Descriptor
from pykvm.errors import ConfigError, LoadError
from pykvm.x86.state import Mode
from support.boot import load
from support.resources import descriptors

GUESTS = sorted(Path(__file__).parents[2].glob("guests/build/*.elf"))


def refusal(data: bytes, **request: Any) -> LoadError:
    """The error that loading `data` as g.elf ends in."""
    with pytest.raises(LoadError) as caught:
        load(data, name="g.elf", **request)
    assert caught.value.message.startswith("g.elf: ")
    return caught.value


class TestLoaded:
    def test_elf64_starts_in_long_mode(self) -> None:
        code = Part(b"\x90\xf4", 0x10_0000, memsz=0x3000)
        data = Part(b"data", 0x20_0000, R | W)
        image = load(elf(code, data, entry=0x10_0001), name="g.elf")
        assert image[:5] == ("g.elf", "elf64", "elf", Mode.LONG, 0x10_0001)
        assert [(s.name, s.address, bytes(s.data), s.size) for s in image.segments] == [
            ("segment 0", 0x10_0000, b"\x90\xf4", 0x3000),
            ("segment 1", 0x20_0000, b"data", 4),
        ]
        assert [(s.executable, s.writable) for s in image.segments] == [
            (True, False),
            (False, True),
        ]
        assert image.word == 8

    def test_elf32_starts_in_protected_mode(self) -> None:
        image = load(elf(bits=32))
        assert (image.kind, image.mode, image.entry, image.word) == (
            "elf32",
            Mode.PROTECTED,
            0x10_0000,
            4,
        )

    def test_x32_starts_in_long_mode_with_short_pointers(self) -> None:
        image = load(elf(bits=32, machine=EM_X86_64))
        assert (image.kind, image.mode, image.word) == ("elf32", Mode.LONG, 4)

    @pytest.mark.parametrize("mode", Mode)
    def test_the_caller_chooses_the_mode(self, mode: Mode) -> None:
        assert load(elf(Part(vaddr=0x8000)), mode=mode).mode is mode

    def test_only_pt_load_is_loaded_and_empty_segments_are_not(self) -> None:
        note = Part(b"note", 0x30_0000, type=4)
        empty = Part(b"", 0x10_0000)
        image = load(elf(empty, Part(), note))
        assert [s.name for s in image.segments] == ["segment 1"]

    def test_bss_alone_is_a_segment_wherever_its_offset_points(self) -> None:
        image = load(elf(Part(), Part(b"", 0x20_0000, R | W, memsz=0x1000, offset=1 << 40)))
        assert image.segments[1].size == 0x1000
        assert len(image.segments[1].data) == 0

    def test_a_segment_goes_where_its_physical_address_says(self) -> None:
        low = Part(vaddr=0x10_0000)
        high = Part(b"kernel", 0xFFFF_FFFF_8020_0000, R | X, paddr=0x20_0000)
        image = load(elf(low, high))
        assert [s.address for s in image.segments] == [0x10_0000, 0x20_0000]

    def test_physical_addresses_that_are_all_zero_do_not_count(self) -> None:
        image = load(elf(Part(vaddr=0x10_0000, paddr=0), Part(vaddr=0x20_0000, paddr=0)))
        assert [s.address for s in image.segments] == [0x10_0000, 0x20_0000]

    def test_segments_may_touch(self) -> None:
        assert load(elf(Part(HLT * 16, 0x1000), Part(HLT, 0x1010))).segments[1].end == 0x1011

    def test_a_file_has_its_own_name(self, tmp_path: Path) -> None:
        path = tmp_path / "kernel"
        path.write_bytes(elf())
        assert load(path).name == "kernel"
        assert load(str(path), name="other").name == "other"


@pytest.mark.parametrize(
    ("data", "message", "hint"),
    [
        (b"", "is empty", ""),
        (
            elf()[:19],
            "ELF header is truncated: the file has 19 bytes, 20 are needed",
            "copy or build the file again",
        ),
        (
            elf()[:63],
            "ELF header is truncated: the file has 63 bytes, 64 are needed",
            "copy or build the file again",
        ),
        (
            elf(bits=32)[:51],
            "ELF header is truncated: the file has 51 bytes, 52 are needed",
            "copy or build the file again",
        ),
        (
            elf(machine=183),
            "built for AArch64 (e_machine 183)",
            "pykvm runs x86 guests: build it for x86-64 or i386",
        ),
        (
            elf(ei_data=2, e_machine=22 << 8),
            "built for IBM S/390 (e_machine 22)",
            "pykvm runs x86 guests: build it for x86-64 or i386",
        ),
        (
            elf(machine=43),
            "built for SPARCV9 (e_machine 43)",
            "pykvm runs x86 guests: build it for x86-64 or i386",
        ),
        (
            elf(machine=60000),
            "built for an unknown machine (e_machine 60000)",
            "pykvm runs x86 guests: build it for x86-64 or i386",
        ),
        (
            elf(ei_data=2, e_machine=EM_X86_64 << 8),
            "is big-endian (EI_DATA 2); x86 is little-endian",
            "",
        ),
        (elf(ei_data=0), "byte order (EI_DATA) is 0: neither 1 nor 2", ""),
        (elf(ei_class=3), "ELF class (EI_CLASS) is 3: neither 1 (32 bits) nor 2 (64 bits)", ""),
        (elf(ei_version=2), "ELF version (EI_VERSION) is 2: only 1 exists", ""),
        (
            elf(machine=EM_386),
            "is an ELF64 file for the Intel 80386 (e_machine 3): there is no such",
            "",
        ),
        (
            elf(type=ET_REL),
            "is an object file: link it first (e_type 1)",
            "ld -o guest.elf FILE.o",
        ),
        (elf(type=ET_CORE), "is a core dump, not a program (e_type 4)", ""),
        (elf(type=0), "is an ELF file of no type (e_type 0)", ""),
        (elf(type=0xFE00), "is of an unknown type (e_type 65024)", ""),
        (
            elf(e_phnum=0),
            "has no program headers (e_phnum 0): nothing says what to load",
            "link it with ld, and do not strip its program headers",
        ),
        (elf(e_phnum=0xFFFF), "has 65535 or more program headers (e_phnum PN_XNUM)", ""),
        (
            elf(e_phentsize=32),
            "program header size (e_phentsize) is 32, in ELF64 it is 56",
            "",
        ),
        (
            elf(bits=32, e_phentsize=0),
            "program header size (e_phentsize) is 0, in ELF32 it is 32",
            "",
        ),
        (
            elf(e_phnum=9),
            "9 program headers (e_phnum) at 0x40 (e_phoff) end at 0x238, "
            "past the end of the file (0x79)",
            "the file is truncated or damaged: copy or build it again",
        ),
        (
            elf(e_phoff=1 << 63),
            "1 program headers (e_phnum) at 0x8000000000000000 (e_phoff) end at "
            "0x8000000000000038, past the end of the file (0x79)",
            "the file is truncated or damaged: copy or build it again",
        ),
        (
            elf(Part(type=PT_LOAD + 3)),
            "has no loadable segment (none of 1 program headers is PT_LOAD with p_memsz > 0)",
            "",
        ),
        (
            elf(Part(b"12345678", memsz=7)),
            "segment 0 has more bytes in the file than in memory (p_filesz 0x8 > p_memsz 0x7)",
            "",
        ),
        (
            elf(Part(filesz=0x1000)),
            "segment 0 ends at file offset 0x1078 (p_offset 0x78 + p_filesz 0x1000), "
            "past the end of the file (0x79)",
            "the file is truncated or damaged: copy or build it again",
        ),
        (
            elf(Part(offset=(1 << 64) - 1)),
            "segment 0 ends at file offset 0x10000000000000000 (p_offset 0xffffffffffffffff + "
            "p_filesz 0x1), past the end of the file (0x79)",
            "the file is truncated or damaged: copy or build it again",
        ),
        (
            elf(Part(vaddr=1 << 63, paddr=0, memsz=(1 << 63) + 1)),
            "segment 0 ends past the 64-bit address space "
            "(p_vaddr 0x8000000000000000 + p_memsz 0x8000000000000001)",
            "",
        ),
        (
            elf(Part(vaddr=0xFFFF_FFFF, memsz=2), bits=32),
            "segment 0 ends past the 32-bit address space (p_vaddr 0xffffffff + p_memsz 0x2)",
            "",
        ),
        (
            elf(Part(HLT * 0x11, 0x1000), Part(b"", 0x5000, R | W, memsz=8), Part(HLT, 0x1010)),
            "segment 0 (0x1000-0x1011) and segment 2 (0x1010-0x1011) overlap",
            "two segments want the same memory: check the linker script's addresses",
        ),
        (
            elf(Part(), entry=0x40_0000),
            "entry 0x400000 (e_entry) lies in no segment",
            "name the function to start with: ld -e _start",
        ),
        (
            elf(Part(), entry=0x10_0001),
            "entry 0x100001 (e_entry) lies in no segment",
            "name the function to start with: ld -e _start",
        ),
        (
            elf(Part(flags=R | W)),
            "entry 0x100000 (e_entry) lies in segment 0 (0x100000-0x100001), "
            "which is not executable",
            "name the function to start with: ld -e _start",
        ),
        (
            elf(Part(memsz=16), entry=0x10_0001),
            "entry 0x100001 (e_entry) lies in the zero-filled part of "
            "segment 0 (0x100000-0x100010)",
            "",
        ),
        (
            elf(Part(vaddr=0xFFFF_FFFF_8010_0000, paddr=0x10_0000)),
            "entry 0xffffffff80100000 (e_entry) is a virtual address: segment 0 is loaded at "
            "0x100000 (p_paddr), and nothing maps it higher yet",
            "link the entry at its physical address, or link the segment where it loads",
        ),
        (
            elf(Part(), Part(b"/lib64/ld-linux-x86-64.so.2\0", type=PT_INTERP)),
            "is dynamically linked (PT_INTERP /lib64/ld-linux-x86-64.so.2)",
            "link it with -static (a guest without an operating system: also -nostdlib)",
        ),
        (
            elf(Part(), Part(dynamic((1, 5)), type=PT_DYNAMIC), type=ET_DYN),
            "is dynamically linked: it needs shared libraries (DT_NEEDED)",
            "link it with -static-pie, or -static -no-pie",
        ),
    ],
)
def test_refused(data: bytes, message: str, hint: str) -> None:
    error = refusal(data)
    assert (error.message, error.hint) == (f"g.elf: {message}", hint)


@pytest.mark.parametrize(
    ("mode", "vaddr", "limit"),
    [(Mode.REAL, 0x10_0000, "0x100000"), (Mode.PROTECTED, 1 << 32, "0x100000000")],
)
def test_entry_out_of_the_modes_reach(mode: Mode, vaddr: int, limit: str) -> None:
    error = refusal(elf(Part(vaddr=vaddr)), mode=mode)
    assert error.message == (
        f"g.elf: entry {vaddr:#x} is out of reach in {mode.value} mode, which starts below {limit}"
    )
    assert error.hint == "link it lower, or choose another mode (mode=)"


def test_a_program_at_a_fixed_address_cannot_be_placed() -> None:
    error = refusal(elf(), address=0x20_0000)
    assert error.message == (
        "g.elf: cannot be placed at 0x200000: it is linked at a fixed address (e_type ET_EXEC)"
    )


def test_a_negative_address_is_the_callers_mistake() -> None:
    with pytest.raises(ConfigError, match="load address -0x1000 is negative"):
        load(elf(type=ET_DYN), address=-0x1000)


def test_one_byte_is_enough_to_be_past_the_end() -> None:
    assert "past the end of the file (0x79)" in refusal(elf(Part(filesz=2, memsz=2))).message
    assert "past the end of the file (0x79)" in refusal(elf(e_phoff=0x42)).message


def test_a_segment_may_end_with_the_address_space() -> None:
    low, last = Part(), Part(HLT, 0xFFFF_FFFF)
    assert load(elf(low, last, bits=32)).segments[1].end == 1 << 32


def test_the_image_keeps_nothing_of_the_callers_buffer() -> None:
    data = bytearray(elf(Part(b"code")))
    image = load(data)
    data[-4:] = b"XXXX"
    assert bytes(image.segments[0].data) == b"code"


def test_a_huge_segment_costs_nothing_to_load() -> None:
    image = load(elf(Part(memsz=1 << 62)))
    assert image.segments[0].size == 1 << 62


class TestFiles:
    def test_missing(self, tmp_path: Path) -> None:
        path = tmp_path / "missing.elf"
        with pytest.raises(LoadError) as caught:
            load(path)
        assert str(caught.value) == f"{path}: cannot be read: No such file or directory"

    def test_directory(self, tmp_path: Path) -> None:
        with pytest.raises(LoadError) as caught:
            load(tmp_path)
        assert str(caught.value) == f"{tmp_path}: is a directory, not a guest file"

    def test_fifo_does_not_hang(self, tmp_path: Path) -> None:
        path = tmp_path / "fifo"
        os.mkfifo(path)
        with pytest.raises(LoadError, match="is a FIFO, not a guest file"):
            load(path)

    def test_endless_device(self) -> None:
        with pytest.raises(LoadError, match="^/dev/zero: is a character device, not a guest file$"):
            load("/dev/zero")

    def test_unreadable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def deny(path: str, flags: int) -> Descriptor:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

        # chmod would not do: root, which tests may run as, reads every file.
        monkeypatch.setattr(Descriptor, "open", deny)
        with pytest.raises(LoadError) as caught:
            load("/boot/secret.elf")
        assert str(caught.value) == "/boot/secret.elf: cannot be read: Permission denied"

    def test_a_name_that_no_file_can_have(self) -> None:
        with pytest.raises(LoadError, match="cannot be read: .*embedded null"):
            load("a\0b")

    def test_larger_than_the_host(self, tmp_path: Path) -> None:
        path = tmp_path / "core"
        path.touch()
        os.truncate(path, 1 << 42)
        with pytest.raises(LoadError, match="is 0x40000000000 bytes long, more than this host has"):
            load(path)

    def test_no_descriptor_stays_open(self, tmp_path: Path) -> None:
        before = descriptors()
        with pytest.raises(LoadError):
            load(tmp_path)
        path = tmp_path / "g.elf"
        path.write_bytes(elf())
        load(path)
        assert descriptors() == before


@pytest.mark.parametrize("path", GUESTS, ids=lambda path: path.name)
def test_reads_the_guests_as_pyelftools_does(path: Path) -> None:
    from elftools.elf.elffile import ELFFile

    source = Source(path.name, path.read_bytes())
    header = read_header(source)
    with path.open("rb") as stream:
        theirs = ELFFile(stream)
        for field in header._fields[2:]:
            if field not in ("e_type", "e_machine", "e_version"):
                assert getattr(header, field) == theirs.header[field], field
        segments = [segment.header for segment in theirs.iter_segments()]
    for mine, their in zip(read_program_headers(source, header), segments, strict=True):
        for field in mine._fields[2:]:
            assert getattr(mine, field) == their[field], field


def test_the_builder_builds_what_pyelftools_reads() -> None:
    """The tests above stand on `elf`: an independent reader must find in it what was put in."""
    import io

    from elftools.elf.elffile import ELFFile

    for bits in (32, 64):
        theirs = ELFFile(io.BytesIO(elf(Part(b"abc", 0x1234, memsz=9), bits=bits)))
        (segment,) = theirs.iter_segments()
        assert (segment["p_vaddr"], segment["p_memsz"], segment.data()) == (0x1234, 9, b"abc")
        assert theirs["e_entry"] == 0x1234


def test_dynamic_section_past_the_end() -> None:
    part = Part(dynamic(), type=PT_DYNAMIC, filesz=0x100)
    error = refusal(elf(Part(), part, type=ET_DYN))
    assert error.message == (
        "g.elf: dynamic section (program header 1) ends at file offset 0x1b1, "
        "past the end of the file (0xc1)"
    )
