"""Multiboot 1: which files are kernels, what they ask for, and what they find at entry."""

from __future__ import annotations

import struct

import pytest
from boot.elfs import HLT, Part, R, Sym, W, elf
from boot.multiboots import (
    ADDRESSES,
    BASE,
    header1,
    info1,
    kernel,
    memory_map1,
    modules1,
)

from pykvm import boot
from pykvm.boot import multiboot, multiboot2, multiboot_search
from pykvm.boot.image import Module, Setup
from pykvm.boot.multiboot_kernel import memory_kib
from pykvm.boot.multiboot_sections import SectionHeader, Sections
from pykvm.boot.plan import Plan
from pykvm.boot.source import Request, Source
from pykvm.errors import ConfigError, LoadError
from pykvm.memory import GuestMemory
from pykvm.tables import Hardware, Piece, Tables, build, memory_map
from pykvm.x86.state import Mode
from support.boot import load

K, M = 1 << 10, 1 << 20


def flat(*addresses: int, flags: int = ADDRESSES, before: bytes = b"", size: int = 64) -> bytes:
    """A file that is no ELF file, with its header after `before`, then HLTs."""
    return (before + header1(flags, *addresses)).ljust(size, HLT)


class TestRecognised:
    @pytest.mark.parametrize("bits", [32, 64])
    def test_by_its_header(self, bits: int) -> None:
        image = load(kernel(header1(), bits=bits), name="k.elf")
        assert (image.kind, image.protocol) == ("multiboot", "multiboot")
        assert (image.mode, image.word) == (Mode.PROTECTED, 4)
        assert image.entry == BASE + 12

    def test_only_where_the_words_add_up_to_nothing(self) -> None:
        broken = kernel(header1()[:8] + b"\0\0\0\1")
        assert load(broken).protocol == "elf"

    def test_only_at_a_multiple_of_four(self) -> None:
        file = bytearray(kernel(bytes(2) + header1() + bytes(2)))
        assert load(bytes(file)).protocol == "elf"

    def test_the_first_sound_header_counts(self) -> None:
        decoy = struct.pack("<I", 0x1BADB002) * 3
        assert multiboot.find_header(Source("k", decoy + header1(7))) == (12, 7)

    def test_up_to_the_end_of_the_first_8_kib(self) -> None:
        last = 8192 - 12
        file = kernel(header1(), offset=last)
        assert multiboot.find_header(Source("k", file)) == (last, 3)
        assert load(file).protocol == "multiboot"

    def test_a_header_that_reaches_past_8_kib(self) -> None:
        with pytest.raises(LoadError, match="has a multiboot header at 0x1ff8, past the first"):
            load(kernel(header1(), offset=8192 - 8))

    def test_an_elf_file_with_its_header_past_8_kib_is_told_so(self) -> None:
        file = kernel(header1(), offset=0x2100)
        with pytest.raises(LoadError) as caught:
            load(file, name="k.elf")
        assert caught.value.message == (
            "k.elf: has a multiboot header at 0x2100, past the first 8192 bytes"
        )
        assert caught.value.hint == (
            "put its section first in the linker script; boot='elf' starts it without"
        )
        assert load(file, protocol="elf").protocol == "elf"

    def test_any_other_file_with_its_header_past_8_kib_too(self) -> None:
        file = bytes(0x2100) + header1(ADDRESSES, *[0] * 5)
        with pytest.raises(LoadError, match="it has a multiboot header at 0x2100, past the first"):
            load(file)

    def test_a_mode_or_an_address_makes_it_something_else(self) -> None:
        file = kernel(header1(), bits=64)
        assert load(file, mode=Mode.LONG).protocol == "elf"
        assert load(file, mode=Mode.PROTECTED).protocol == "multiboot"
        with pytest.raises(LoadError, match="cannot be placed at 0x200000"):
            load(file, address=0x20_0000)
        with pytest.raises(LoadError, match="would start in protected mode, and long mode is ask"):
            load(file, mode=Mode.LONG, protocol="multiboot")

    def test_insisting_on_it_says_what_is_missing(self) -> None:
        with pytest.raises(LoadError, match=r"no multiboot image: no header in the first 8192"):
            load(elf(), protocol="multiboot")

    def test_is_asked_before_elf(self) -> None:
        names = boot.PROTOCOLS
        assert names.index("multiboot") < names.index("multiboot2") < names.index("elf")


class TestFlags:
    @pytest.mark.parametrize("flags", [0, 1, 2, 3, 0x8000_0000, 1 << 20])
    def test_what_can_be_met_or_ignored(self, flags: int) -> None:
        assert load(kernel(header1(flags))).protocol == "multiboot"

    def test_a_video_mode_it_starts_without_and_a_remark_says_so(self, memory: GuestMemory) -> None:
        entry = boot.place(load(kernel(header1(7, *[0] * 9)), name="k"), memory)
        assert entry.remarks == (
            "k: its multiboot header asks for a video mode (flag bit 2); there is no video, and it "
            "starts without",
        )
        # Bits 11 and 12: VBE and a framebuffer.
        assert info1(memory, entry.state.rbx).flags & 0x1800 == 0

    def test_no_remarks_without_a_video_mode(self, memory: GuestMemory) -> None:
        assert boot.place(load(kernel(header1())), memory).remarks == ()

    def test_unknown_flags_are_refused_by_their_bits(self) -> None:
        with pytest.raises(LoadError, match="does not know: flag bit 3, 15") as caught:
            load(kernel(header1(0x8009)))
        assert caught.value.hint.endswith("boot='multiboot' starts it anyway")

    def test_unknown_bits_are_a_remark_if_the_caller_names_the_protocol(
        self, memory: GuestMemory
    ) -> None:
        image = load(kernel(header1(0x8009)), name="k", protocol="multiboot")
        assert boot.place(image, memory).remarks == (
            "k: its multiboot header requires what the specification does not know: flag bit 3, "
            "15; it starts without",
        )


def test_an_image_over_the_bios_data_area_stays_whole(memory: GuestMemory) -> None:
    # The area is 0x15 bytes at 0x400.
    file = flat(0x300, 0x300, 0, 0, 0x340, size=0x120)
    entry = boot.place(load(file), memory, Setup(hardware=Hardware()))
    assert memory.read(0x300, len(file)) == file
    assert "BDA" not in [place.name for place in entry.layout]


class TestElf:
    def test_segments_go_where_their_physical_addresses_say(self) -> None:
        high = 0xC000_0000
        file = elf(
            Part(header1() + HLT * 8, 0x10_0000),
            Part(HLT * 8, high + 0x20_0000, paddr=0x20_0000, memsz=0x100),
            bits=32,
            entry=high + 0x20_0004,
        )
        image = load(file)
        assert [segment.address for segment in image.segments] == [0x10_0000, 0x20_0000]
        assert image.entry == 0x20_0004

    def test_an_entry_that_is_physical_already(self) -> None:
        file = elf(
            Part(header1() + HLT * 8, 0xC010_0000, paddr=0x10_0000), bits=32, entry=0x10_000C
        )
        assert load(file).entry == 0x10_000C

    def test_an_entry_that_is_nowhere(self) -> None:
        file = elf(Part(header1() + HLT), bits=32, entry=0x50_0000)
        with pytest.raises(LoadError, match=r"entry 0x500000 \(e_entry\) lies in no part"):
            load(file)

    def test_64_bit_addresses_above_4_gib_are_virtual_only(self) -> None:
        high = 0xFFFF_FFFF_8000_0000
        file = elf(Part(header1() + HLT, high, paddr=BASE), entry=high + 12)
        assert load(file).entry == BASE + 12
        with pytest.raises(LoadError, match="ends above 4 GiB, and a multiboot kernel starts in"):
            load(elf(Part(header1() + HLT, high), entry=high + 12))
        with pytest.raises(LoadError, match=r"\(0xfffffffe-0x10000000b\) ends above 4 GiB"):
            load(elf(Part(header1() + HLT, 0xFFFF_FFFE), entry=0xFFFF_FFFF))

    def test_no_elf_and_no_addresses(self) -> None:
        with pytest.raises(LoadError, match="multiboot header at 0x8 that says no addresses"):
            load(bytes(8) + header1() + HLT * 8)


class TestAddressFields:
    def test_all_five_place_the_file(self) -> None:
        # The header is 8 bytes into what is loaded, which starts 4 bytes into the file.
        file = flat(0x10_0008, 0x10_0000, 0x10_0030, 0x10_1000, 0x10_0028, before=bytes(12))
        image = load(file)
        (segment,) = image.segments
        assert (segment.address, segment.size) == (0x10_0000, 0x1000)
        assert segment.data == file[4 : 4 + 0x30]
        assert image.entry == 0x10_0028

    def test_zero_ends_mean_the_whole_file_and_no_bss(self) -> None:
        image = load(flat(BASE, BASE, 0, 0, BASE + 40))
        (segment,) = image.segments
        assert (len(segment.data), segment.size) == (64, 64)

    def test_they_count_more_than_elf_headers(self) -> None:
        header = header1(ADDRESSES, 0x20_0000, 0x20_0000, 0, 0, 0x20_0020)
        image = load(kernel(header))
        assert [segment.address for segment in image.segments] == [0x20_0000]
        assert image.entry == 0x20_0020

    @pytest.mark.parametrize(
        ("addresses", "what"),
        [
            ((BASE, BASE + 4, 0, 0, BASE), "load_addr 0x100004 > header_addr 0x100000"),
            ((BASE + 4, BASE, 0, 0, BASE), "load_addr 0x100000 belongs to 0x4 bytes before the"),
            ((BASE, BASE, BASE - 4, 0, BASE), "load_end_addr 0xffffc < load_addr 0x100000"),
            ((BASE, BASE, BASE + 65, 0, BASE), "load_end_addr 0x100041 lies past the file's end"),
            ((BASE, BASE, 0, BASE + 63, BASE), "bss_end_addr 0x10003f < 0x100040"),
            ((0xFFFF_FFE0, 0xFFFF_FFE0, 0, 0, 0xFFFF_FFF0), "0xffffffe0 + 0x40 is above 4 GiB"),
        ],
    )
    def test_contradictions(self, addresses: tuple[int, ...], what: str) -> None:
        with pytest.raises(LoadError, match="addresses in its multiboot header make") as caught:
            load(flat(*addresses))
        assert what in caught.value.message

    def test_an_entry_outside_what_is_loaded(self) -> None:
        for entry in (BASE - 1, BASE + 64):
            with pytest.raises(LoadError, match=r"\(entry_addr\) lies in no part"):
                load(flat(BASE, BASE, 0, BASE + 0x1000, entry))

    def test_a_file_that_ends_within_them(self) -> None:
        with pytest.raises(LoadError, match="header at 0x0 without its address fields"):
            load(header1(ADDRESSES, 0, 0, 0, 0))


class TestEntry:
    def test_state(self, memory: GuestMemory) -> None:
        state = boot.place(load(kernel(header1())), memory).state
        assert state.mode is Mode.PROTECTED
        assert (state.rip, state.rax & 0xFFFF_FFFF) == (BASE + 12, 0x2BAD_B002)
        assert (state.cr0 >> 31, state.cr0 & 1, state.rflags) == (0, 1, 2)
        for register in (state.cs, state.ds, state.es, state.fs, state.gs, state.ss):
            assert (register.base, register.limit, register.db) == (0, 0xFFFF_FFFF, 1)
        # As QEMU's: a kernel may reload them before it has a GDT of its own.
        assert (state.cs.selector, state.ss.selector) == (0x08, 0x10)
        assert memory.read(state.gdt.base + 8, 16).hex() == "ffff0000009bcf00ffff00000093cf00"
        assert memory.read(state.rsp - 4, 4) == bytes(4)

    def test_information(self, memory: GuestMemory) -> None:
        image = load(kernel(header1()), name="k.elf")
        entry = boot.place(image, memory, Setup(append="console=com1 quiet", args=("more",)))
        info = info1(memory, entry.state.rbx)
        assert info.flags == 0b10_0100_1101  # memory, command line, modules, map, loader
        assert (info.mem_lower, info.mem_upper) == (639, 3 * K)
        assert memory.read_cstring(info.cmdline) == b"k.elf console=com1 quiet more"
        assert memory.read_cstring(info.boot_loader_name) == b"pykvm"
        assert info.mods_count == 0
        assert memory_map1(memory, info) == [
            (0, 0x9_FC00, 1),
            (0x9_FC00, 0x400, 2),
            (0xE_0000, 0x2_0000, 2),
            (0x10_0000, 3 * M, 1),
            (0xFEFF_C000, 0x4000, 2),
        ]

    def test_modules(self, memory: GuestMemory) -> None:
        setup = Setup(
            initrd=Source("initrd.gz", b"i" * 5000),
            modules=(Module(Source("one", b"1"), "a b"), Module(Source("none", b""))),
        )
        entry = boot.place(load(kernel(header1()), name="k.elf"), memory, setup)
        listed = modules1(memory, info1(memory, entry.state.rbx))
        assert [words for _, _, words in listed] == [b"initrd.gz", b"one a b", b"none"]
        assert [memory.read(start, end - start) for start, end, _ in listed] == [
            b"i" * 5000,
            b"1",
            b"",
        ]
        assert all(start % 0x1000 == 0 and start > BASE for start, _, _ in listed)

    def test_modules_go_below_a_kernel_that_lies_at_the_end(self, memory: GuestMemory) -> None:
        file = elf(Part(header1() + HLT, 0x3F_F000, memsz=0x1000), bits=32, entry=0x3F_F00C)
        entry = boot.place(load(file), memory, Setup(initrd=Source("i", b"x")))
        ((start, _, _),) = modules1(memory, info1(memory, entry.state.rbx))
        assert start == M

    def test_nothing_lies_over_anything_else_or_in_the_bios_area(self, memory: GuestMemory) -> None:
        file = elf(
            Part(header1() + HLT * 4, 0x1_0000, memsz=0x8_0000),
            bits=32,
            entry=0x1_000C,
            symbols=(Sym("f", 0x1_0000),),
        )
        entry = boot.place(load(file), memory, Setup(initrd=Source("i", b"x" * M)))
        ends = [0, *(place.end for place in entry.layout)]
        assert all(end <= place.start for end, place in zip(ends, entry.layout, strict=False))
        firmware = {place.name for place in entry.layout if 0x9_FC00 < place.end <= M}
        assert firmware <= {piece.name for piece in build(Hardware()).pieces}
        names = {place.name for place in entry.layout}
        assert {"multiboot information", "memory map", "module i", "segment 0"} <= names

    @pytest.mark.parametrize("bits", [32, 64])
    def test_symbols(self, memory: GuestMemory, bits: int) -> None:
        file = kernel(header1(), bits=bits, symbols=(Sym("start", BASE + 12),))
        entry = boot.place(load(file), memory)
        info = info1(memory, entry.state.rbx)
        assert info.flags & 1 << 5
        assert (info.syms_num, info.syms_shndx) == (3, 0)
        assert info.syms_size == {32: 40, 64: 64}[bits]
        shape = {32: "<10I", 64: "<IIQQQQIIQQ"}[bits]
        table = memory.read(info.syms_addr, 3 * info.syms_size)
        headers = list(struct.iter_unpack(shape, table))
        symtab, strtab = headers[1], headers[2]
        assert memory.read(strtab[3], strtab[5]) == b"\0start\0"
        assert memory.read(symtab[3], symtab[5])[-{32: 16, 64: 24}[bits]] == 1
        assert headers[0] == (0,) * 10

    def test_symbols_that_find_no_room_are_left_out(self) -> None:
        file = kernel(header1(), symbols=tuple(Sym("f" * 4000 + str(n), n) for n in range(9)))
        with GuestMemory(overcommit=True) as memory:
            memory.add_ram(0, M + 0x4000)
            info = info1(memory, boot.place(load(file), memory).state.rbx)
        assert (info.flags >> 5 & 1, info.syms_num) == (0, 0)

    def test_the_firmwares_tables_are_written(
        self, memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = []

        def one_table(hardware: Hardware) -> Tables:
            seen.append(hardware)
            return Tables((Piece("RSDP", 0xF_0000, b"RSD PTR "),), 0xF_0000)

        monkeypatch.setattr("pykvm.boot.plan.build", one_table)
        hardware = Hardware(vcpus=3)
        boot.place(load(kernel(header1())), memory, Setup(hardware=hardware))
        assert memory.read(0xF_0000, 8) == b"RSD PTR "
        assert seen == [hardware]
        file = elf(Part(header1() + HLT, 0xE_F000, memsz=0x2000), bits=32, entry=0xE_F00C)
        with pytest.raises(LoadError, match=r"\(0xef000-0xf1000\) reaches into what a PC keeps"):
            boot.place(load(file), memory)


class TestSections:
    def test_lie_one_after_the_other_each_aligned(self, memory: GuestMemory) -> None:
        shape = struct.Struct("<10I")
        named = SectionHeader(0, 3, 0, 0, 1, 3, 0, 0, 0, 0)
        aligned = SectionHeader(0, 2, 0, 0, 8, 16, 1, 0, 16, 0)
        paged = SectionHeader(0, 1, 0, 0, 4, 4, 0, 0, 1 << 31, 0)
        loaded = SectionHeader(0, 1, 2, BASE, 0, 99, 0, 0, 1, 0)
        empty = SectionHeader(0, 8, 0, 0, 0, 99, 0, 0, 1, 0)
        listed = [named, aligned, paged, loaded, empty]
        source = Source("k", bytes(range(32)))
        table = b"".join(shape.pack(*header) for header in listed)
        plan = Plan(load(kernel(header1())), memory)
        placed = Sections(source, shape, table, 0).place(plan)
        assert placed is not None
        addresses = [SectionHeader(*fields).sh_addr for fields in shape.iter_unpack(placed)]
        first = addresses[0]
        assert first % 0x1000 == 0
        assert addresses == [first, first + 16, first + 0x1000, BASE, 0]
        plan.write()
        assert memory.read(first, 3) == b"\1\2\3"
        assert memory.read(first + 16, 16) == bytes(range(8, 24))

    def test_beyond_the_files_end_there_are_none(self, memory: GuestMemory) -> None:
        file = bytearray(kernel(header1(), symbols=(Sym("f", BASE),)))
        (start,) = struct.unpack_from("<I", file, 0x20)
        struct.pack_into("<I", file, start + 40 + 16, len(file) - 1)
        info = info1(memory, boot.place(load(bytes(file)), memory).state.rbx)
        assert not info.flags & 1 << 5


def test_memory_sizes_end_at_the_first_hole_or_at_kvms_pages() -> None:
    def sizes(*ram: tuple[int, int]) -> tuple[int, int]:
        return memory_kib(memory_map(ram))

    assert sizes((0, 4 * M)) == (639, 3 * K)
    assert sizes((0, 0x8_0000)) == (512, 0)
    assert sizes((M, 2 * M), (2 * M, 3 * M), (5 * M, 6 * M)) == (0, 2 * K)
    assert sizes((0, 5 << 30)) == (639, (0xFEFF_C000 - M) >> 10)


class TestRefused:
    def test_a_machine_without_memory_for_the_firmwares_tables(self) -> None:
        with GuestMemory(overcommit=True) as memory:
            memory.add_ram(M, M)
            with pytest.raises(LoadError, match="the firmware's .* would lie outside the RAM"):
                boot.place(load(kernel(header1())), memory)
            assert memory.find(b"\xf4") is None

    def test_a_module_larger_than_ram(self, memory: GuestMemory) -> None:
        setup = Setup(initrd=Source("big.img", bytes(5 * M)))
        with pytest.raises(LoadError, match=r"no room for the module big.img \(5 MiB\)"):
            boot.place(load(kernel(header1())), memory, setup)
        assert memory.find(b"\xf4") is None

    def test_a_kernel_outside_ram(self, memory: GuestMemory) -> None:
        file = elf(Part(header1() + HLT, 0x50_0000), bits=32, entry=0x50_000C)
        with pytest.raises(LoadError, match=r"\(0x500000-0x50000d\) lies outside guest memory"):
            boot.place(load(file), memory)

    def test_words_that_are_no_c_string(self, memory: GuestMemory) -> None:
        image = load(kernel(header1()))
        with pytest.raises(ConfigError, match="contains a NUL"):
            boot.place(image, memory, Setup(append="a\0b"))
        with pytest.raises(ConfigError, match="contains a NUL"):
            boot.place(image, memory, Setup(modules=(Module(Source("m", b""), "\0"),)))
        assert memory.find(b"\xf4") is None


def test_only_a_file_with_the_magic_number_is_shown_to_the_protocol() -> None:
    """A file without it, as most are, does not even have the module loaded."""
    magics = {
        "multiboot": multiboot.MULTIBOOT_HEADER_MAGIC,
        "multiboot2": multiboot2.MULTIBOOT2_HEADER_MAGIC,
    }
    assert magics == boot.MAGIC
    assert boot.MAGIC_REACH == multiboot_search.REACH


def test_recognising_costs_no_copy_of_a_large_file() -> None:
    file = Source("big", bytes(8 * M) + header1())
    assert multiboot.recognise(file, Request()) == "no header in the first 8192 bytes"


def test_two_segments_that_overlap(memory: GuestMemory) -> None:
    file = elf(
        Part(header1() + HLT, 0x10_0000, memsz=0x1000),
        Part(b"x", 0x10_0800, R | W),
        bits=32,
        entry=0x10_000C,
    )
    with pytest.raises(LoadError, match="overlap"):
        load(file)
