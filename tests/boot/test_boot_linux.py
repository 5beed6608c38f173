"""A Linux kernel in a machine: where it goes, and what it finds at its entry, byte for byte."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from boot.elfs import HLT, Part, elf
from boot.kernels import CODE, FIELDS, PACKERS, K, M, bzimage, field, note, packed, vmlinux

from pykvm import boot
from pykvm.boot.image import Module, Setup
from pykvm.boot.linux_image import version_of
from pykvm.boot.source import Source
from pykvm.boot.zero_page import SetupData, pack_setup_data
from pykvm.errors import ConfigError, LoadError
from pykvm.memory import GuestMemory
from pykvm.tables import E820Entry, E820Type, Hardware, Piece, Tables, memory_map
from pykvm.x86.paging import walk
from pykvm.x86.state import Mode
from support.boot import load

PAGE = 0x1000


def memory_of(*regions: tuple[int, int]) -> GuestMemory:
    memory = GuestMemory(overcommit=True)
    for start, size in regions:
        memory.add_ram(start, size)
    return memory


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with memory_of((0, 64 * M)) as memory:
        yield memory


def page_of(memory: GuestMemory, entry: boot.Entry) -> bytes:
    return memory.read(entry.state.rsi, PAGE)


def layout(entry: boot.Entry) -> list[str]:
    return [str(place) for place in entry.layout]


def refusal(data: bytes, memory: GuestMemory, setup: Setup | None = None) -> str:
    image = load(data, name="k")
    with pytest.raises(LoadError) as caught:
        boot.place(image, memory, setup)
    assert all(memory.read(start, 1 * M) == bytes(1 * M) for start in (0, 1 * M))
    return str(caught.value)


class TestEntries:
    def test_the_kernel_proper(self, memory: GuestMemory) -> None:
        image = load(packed(vmlinux()))
        assert (image.kind, image.protocol, image.mode, image.entry) == (
            *("linux", "linux", Mode.LONG),
            16 * M,
        )
        assert boot.protocol_of(image).PC
        entry = boot.place(image, memory)
        assert (entry.state.rip, entry.state.mode) == (16 * M, Mode.LONG)
        assert memory.read(16 * M, 65) == HLT * 64 + b"\0"
        assert entry.remarks == ()

    @pytest.mark.parametrize("pack", PACKERS)
    def test_whatever_it_is_packed_with(self, pack: str) -> None:
        # What relocates it to a random address follows the ELF file, and is not needed.
        image = load(packed(vmlinux() + bytes(4000), None, pack))
        assert (image.protocol, image.entry) == ("linux", 16 * M)
        assert [segment.data for segment in image.segments] == [HLT * 64]

    def test_uncompressed(self, memory: GuestMemory) -> None:
        entry = boot.place(load(vmlinux()), memory)
        assert (entry.state.rip, entry.state.mode) == (16 * M, Mode.LONG)
        page = page_of(memory, entry)
        assert {name: field(page, name) for name in ("boot_flag", "header", "version")} == {
            "boot_flag": 0xAA55,
            "header": 0x53726448,
            "version": 0x20F,
        }

    def test_linux64_and_linux32(self, memory: GuestMemory) -> None:
        for name, mode, offset in (
            ("linux64", Mode.LONG, 0x200),
            ("linux32", Mode.PROTECTED, 0),
        ):
            image = load(packed(vmlinux()), protocol=name)
            assert (image.protocol, image.mode, image.entry) == (name, mode, M + offset)
            entry = boot.place(image, memory)
            assert memory.read(M, len(CODE)) == CODE
            assert field(page_of(memory, entry), "code32_start") == M
            assert entry.remarks == ()

    def test_without_a_64_bit_entry(self, memory: GuestMemory) -> None:
        data = packed(vmlinux(), xloadflags=0)
        image = load(data, name="k")
        assert (image.protocol, image.mode, image.entry) == ("linux", Mode.PROTECTED, M)
        assert boot.place(image, memory).remarks == (
            "k: the kernel unpacks itself, in the guest: it has no 64-bit entry (xloadflags)",
        )
        with pytest.raises(LoadError, match=r"has no 64-bit entry \(xloadflags 0x0") as caught:
            load(data, protocol="linux64")
        assert caught.value.hint == "enter it at its 32-bit entry: boot='linux32'"

    @pytest.mark.parametrize(
        ("payload", "reason"),
        [
            (b"\1\2\3\4", "its payload is in a format that pykvm does not know (01 02 03 04 ...)"),
            (PACKERS["gzip"](b"no kernel"), "its payload is no ELF file"),
            (b"", "its header names no payload (payload_length 0)"),
        ],
    )
    def test_what_cannot_be_unpacked_unpacks_itself(
        self, memory: GuestMemory, payload: bytes, reason: str
    ) -> None:
        image = load(packed(b"", payload), name="k")
        assert (image.protocol, image.mode, image.entry) == ("linux", Mode.LONG, M + 0x200)
        remarks = boot.place(image, memory).remarks
        assert remarks == (f"k: the kernel unpacks itself, in the guest: {reason}",)

    def test_a_kernel_that_ends_before_its_64_bit_entry(self) -> None:
        with pytest.raises(LoadError, match="ends at 0x200 of its code, before its 64-bit entry"):
            load(bzimage(CODE[:0x200]), protocol="linux64")

    def test_an_elf_file_that_does_not_say_so_is_one_by_name(self) -> None:
        data = elf(Part(HLT, M))
        assert load(data).protocol == "elf"
        assert load(data, protocol="linux").protocol == "linux"

    def test_32_bit_elf_files_are_refused_with_advice(self) -> None:
        narrow = elf(Part(HLT), note(), bits=32)
        for data in (narrow, packed(narrow)):
            with pytest.raises(
                LoadError, match="is a 32-bit Linux kernel as an ELF file"
            ) as caught:
                load(data)
            assert "bzImage" in caught.value.hint

    def test_a_mode_that_is_not_the_kernels(self) -> None:
        for data in (bzimage(), vmlinux(), packed(vmlinux())):
            with pytest.raises(LoadError, match="entered in long mode, not in real mode"):
                load(data, mode=Mode.REAL)
            assert load(data, mode=Mode.LONG).mode is Mode.LONG

    def test_symbols_are_those_of_the_elf_file(self, guests: object) -> None:
        symbols = load(f"{guests}/vmlinux").symbols
        assert symbols["kernel_main"] >> 24 == 0xFFFFFFFF81
        assert symbols.describe(symbols["kernel_main"] + 2) == "kernel_main+0x2"

    def test_one_without_linuxs_note_is_another_kernel(self) -> None:
        image = load(elf(Part(HLT * 64, 16 * M)), protocol="linux")
        assert (image.kind, image.protocol) == ("elf64", "linux")
        assert load(vmlinux()).kind == "linux"

    def test_the_version_is_in_the_first_line_that_it_prints(self) -> None:
        banner = b"Linux version 6.1.0 (me@here) #1 SMP\n\0"
        text = Part(HLT * 64 + banner, 0xFFFF_FFFF_8100_0000, paddr=16 * M)
        data = elf(text, note(), entry=16 * M)
        assert version_of(load(data)) == "6.1.0 (me@here) #1 SMP"
        assert version_of(load(vmlinux())) == ""


class TestPayload:
    def test_it_must_lie_in_the_kernel(self) -> None:
        with pytest.raises(LoadError, match=r"payload ends at 0x2000 \(payload_offset 0x1000 \+"):
            load(packed(vmlinux(), payload_length=0x1000))

    def test_a_bomb_is_bounded_by_the_header_and_by_the_guests_memory(self) -> None:
        bomb = PACKERS["gzip"](b"\x7fELF" + bytes(4 * M))
        with pytest.raises(LoadError, match="unpacks to more than 0x10000 bytes"):
            load(packed(b"", bomb))
        with pytest.raises(LoadError, match="unpacks to more than 0x200000 bytes"):
            load(packed(b"", bomb, init_size=0xFFFF_FFFF), room=2 * M)

    def test_a_damaged_one_is_refused(self) -> None:
        with pytest.raises(LoadError, match=r"k: payload \(gzip, 0x\w+ bytes\) cannot be unpacked"):
            load(packed(b"", PACKERS["gzip"](vmlinux())[:-20]), name="k")

    def test_messages_about_what_is_in_it(self) -> None:
        with pytest.raises(LoadError, match="^k: payload: built for AArch64"):
            load(packed(elf(machine=183)), name="k")


class TestPlace:
    def test_layout(self, memory: GuestMemory) -> None:
        setup = Setup("quiet", initrd=Source("rd", b"rd" * 3000))
        assert layout(boot.place(load(vmlinux()), memory, setup)) == [
            "zero page (0x1000-0x2000)",
            "command line (0x2000-0x2006)",
            "setup data (0x2010-0x2040)",
            "GDT (0x2040-0x2098)",
            "page tables (0x3000-0x9000)",
            "segment 0 (0x1000000-0x1010000)",
            "initrd (0x3ffe000-0x3fff770)",
        ]

    def test_where_it_prefers_to_be(self, memory: GuestMemory) -> None:
        data = bzimage(relocatable_kernel=1, pref_address=16 * M)
        assert boot.place(load(data), memory).state.rip == 16 * M + 0x200

    def test_elsewhere_where_there_is_no_room(self) -> None:
        data = bzimage(relocatable_kernel=1, pref_address=16 * M)
        with memory_of((0, 8 * M)) as memory:
            entry = boot.place(load(data), memory)
            assert entry.state.rip == 2 * M + 0x200
            assert memory.read(2 * M, len(CODE)) == CODE
            assert field(page_of(memory, entry), "code32_start") == 2 * M

    def test_the_kernel_proper_elsewhere(self) -> None:
        fields = {"relocatable_kernel": 1, "kernel_alignment": 4 * K}
        with memory_of((0, 8 * M)) as memory:
            entry = boot.place(load(packed(vmlinux(), **fields)), memory)
            # Whatever the header says: it maps itself by pages of 2 MiB.
            assert (entry.state.rip, memory.read(2 * M, 4)) == (2 * M, HLT * 4)

    def test_not_at_an_odd_address_even_if_it_says_so(self) -> None:
        fields = {"relocatable_kernel": 1, "init_size": M}
        with memory_of((0, 8 * M)) as memory:
            data = packed(vmlinux(paddr=16 * M + 64 * K), **fields)
            assert "cannot be moved" in refusal(data, memory)

    @pytest.mark.parametrize("init_size", [6 * M + 1, 0xFFFF_FFFF])
    def test_no_room_for_all_that_it_needs(self, init_size: int) -> None:
        data = bzimage(relocatable_kernel=1, pref_address=16 * M, init_size=init_size)
        with memory_of((0, 8 * M)) as memory:
            assert refusal(data, memory).startswith("k: no room for the kernel (")

    def test_no_room_and_it_cannot_be_moved(self) -> None:
        with memory_of((0, 8 * M)) as memory:
            data = bzimage(pref_address=16 * M)
            assert refusal(data, memory) == (
                "k: the kernel needs 64 KiB of RAM at 0x1000000 and cannot be moved; the guest has "
                "7.6 MiB\ngive the guest more memory (memory=), or boot a kernel with "
                "CONFIG_RELOCATABLE"
            )
            needs = "k: the kernel needs 64 KiB of RAM at 0x1000000 and cannot be moved"
            assert refusal(vmlinux(), memory).startswith(needs)

    def test_one_that_cannot_be_moved_moves_itself(self, memory: GuestMemory) -> None:
        data = bzimage(pref_address=16 * M, init_size=46 * M)
        entry = boot.place(load(data), memory, Setup(initrd=Source("rd", bytes(M))))
        assert entry.state.rip == M + 0x200
        # The initrd is clear of where it goes to.
        assert "initrd (0x3f00000-0x4000000)" in layout(entry)
        with memory_of((0, 64 * M)) as other:
            data = bzimage(pref_address=2 * M, init_size=60 * M)
            setup = Setup(initrd=Source("rd", bytes(3 * M)))
            assert "no room for the initrd (3 MiB)" in refusal(data, other, setup)

    def test_an_address_of_the_callers(self, memory: GuestMemory) -> None:
        movable = {"relocatable_kernel": 1}
        image = load(bzimage(**movable), address=32 * M)
        assert boot.place(image, memory).state.rip == 32 * M + 0x200
        image = load(packed(vmlinux(), **movable), address=32 * M)
        assert boot.place(image, memory).state.rip == 32 * M
        for data in (bzimage(**movable), packed(vmlinux(), **movable)):
            with pytest.raises(LoadError, match=r"wants a multiple of 0x200000"):
                load(data, address=32 * M + PAGE)
        for data in (bzimage(), vmlinux(), packed(vmlinux())):
            with pytest.raises(LoadError, match="does not say that it can be moved"):
                load(data, address=32 * M)

    def test_below_1_mib_a_pc_keeps_some_to_itself(self, memory: GuestMemory) -> None:
        segment = Part(HLT, 0x9F000, memsz=0x2000)
        data = elf(segment, Part(HLT, M), note(), entry=M)
        assert "the kernel needs" in refusal(data, memory)

    def test_modules_are_refused(self, memory: GuestMemory) -> None:
        setup = Setup(modules=(Module(Source("m", b"m")),))
        assert "a Linux kernel receives none" in refusal(vmlinux(), memory, setup)


class TestZeroPage:
    def test_the_header_filled_in(self, memory: GuestMemory) -> None:
        data = bytearray(bzimage(jump=0x6EEB, vid_mode=1))
        data[0x26C:0x274] = b"later..."
        setup = Setup(initrd=Source("rd", bytes(100)))
        entry = boot.place(load(bytes(data), protocol="linux64"), memory, setup)
        page = page_of(memory, entry)
        changed = {
            "type_of_loader": 0xFF,
            "vid_mode": 0xFFFF,
            "code32_start": M,
            "ramdisk_image": 0x3FFF000,
            "ramdisk_size": 100,
            "cmd_line_ptr": 0x2000,
            "setup_data": 0x2010,
        }
        assert {name: field(page, name) for name in changed} == changed
        for name in changed:
            offset, size = FIELDS[name]
            data[offset : offset + size] = page[offset : offset + size]
        assert page[0x1F1:0x270] == data[0x1F1:0x270]
        assert page[0x270:0x290] == bytes(0x20)

    def test_all_else_is_zero_but_the_memory_map(self, memory: GuestMemory) -> None:
        page = bytearray(page_of(memory, boot.place(load(vmlinux()), memory)))
        expected = memory_map([(0, 64 * M)])
        table = b"".join(one.pack() for one in expected)
        assert page[0x1E8] == len(expected) == 5
        assert page[0x2D0 : 0x2D0 + len(table)] == table
        page[0x1E8] = 0
        page[0x1F1:0x26C] = bytes(0x26C - 0x1F1)
        page[0x2D0 : 0x2D0 + len(table)] = bytes(len(table))
        assert page == bytes(PAGE)

    def test_a_dirty_guest_memory_makes_no_difference(self, memory: GuestMemory) -> None:
        memory.fill(0, 1 * M, 0xFF)
        page = page_of(memory, boot.place(load(vmlinux()), memory))
        assert page[0x1EF] == 0
        assert page[:0x1E8] == bytes(0x1E8)

    def test_tables(self, memory: GuestMemory, monkeypatch: pytest.MonkeyPatch) -> None:
        tables = Tables((Piece("RSDP", 0xE0000, b"RSD PTR "), Piece("x", 0x9FC00, b"x")), 0xE0000)
        monkeypatch.setattr("pykvm.boot.plan.build", lambda hardware: tables)
        entry = boot.place(load(vmlinux()), memory, Setup(hardware=Hardware()))
        assert page_of(memory, entry)[0x70:0x78] == (0xE0000).to_bytes(8, "little")
        assert memory.read(0xE0000, 8) == b"RSD PTR "
        assert "RSDP (0xe0000-0xe0008)" in layout(entry)

    def test_no_memory_for_the_tables(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tables = Tables((Piece("RSDP", 0xE0000, b"RSD PTR "),), 0xE0000)
        monkeypatch.setattr("pykvm.boot.plan.build", lambda hardware: tables)
        with memory_of((0, 0x80000), (M, 4 * M)) as memory:
            image = load(vmlinux(paddr=2 * M), name="k")
            with pytest.raises(LoadError, match=r"k: the firmware's RSDP \(0xe0000-0xe0008\)"):
                boot.place(image, memory, Setup(hardware=Hardware()))

    def test_setup_data(self, memory: GuestMemory) -> None:
        seeds = set()
        for _ in range(2):
            page = page_of(memory, boot.place(load(vmlinux()), memory))
            raw = memory.read(field(page, "setup_data"), 48)
            assert struct.unpack("<QII", raw[:16]) == (0, 9, 32)
            seeds.add(raw[16:])
        assert len(seeds) == 2

    def test_setup_data_is_a_list(self) -> None:
        items = [SetupData(1, b"a" * 20), SetupData(2, b"b"), SetupData(3, b"")]
        packed = pack_setup_data(items, 0x1000)
        # Each after the one before it, at a multiple of 8; the last leads nowhere.
        assert [struct.unpack_from("<QII", packed, at) for at in (0, 40, 64)] == [
            (0x1028, 1, 20),
            (0x1040, 2, 1),
            (0, 3, 0),
        ]
        assert (packed[16:40], packed[56:64]) == (b"a" * 20 + bytes(4), b"b" + bytes(7))
        assert len(packed) == 80

    def test_no_setup_data_before_2_09(self, memory: GuestMemory) -> None:
        image = load(bzimage(version=0x208), protocol="linux32")
        entry = boot.place(image, memory)
        assert not any("setup data" in one for one in layout(entry))
        assert page_of(memory, entry)[0x250:0x268] == bytes(0x18)

    def test_a_memory_map_longer_than_the_page_has_room_for(self) -> None:
        holes = [(0, 8 * M)] + [(16 * M + number * 8 * K, 4 * K) for number in range(130)]
        with memory_of(*holes) as memory:
            entry = boot.place(load(vmlinux(paddr=2 * M)), memory)
            page = page_of(memory, entry)
            assert page[0x1E8] == 128
            seed = field(page, "setup_data")
            following = memory.read_u64(seed)
            kind, size = memory.read_u32(following + 8), memory.read_u32(following + 12)
            assert (memory.read_u64(following), kind, size) == (0, 1, 7 * 20)
            last = E820Entry(16 * M + 129 * 8 * K, 4 * K, E820Type.RAM)
            assert memory.read(following + 16 + 5 * 20, 20) == last.pack()


class TestCommandLine:
    def test_the_words_in_their_order(self, memory: GuestMemory) -> None:
        entry = boot.place(load(vmlinux()), memory, Setup("a  b", ("c", "d e")))
        assert memory.read_cstring(field(page_of(memory, entry), "cmd_line_ptr")) == b"a  b c d e"

    def test_an_empty_command_line(self, memory: GuestMemory) -> None:
        entry = boot.place(load(vmlinux()), memory)
        assert memory.read_cstring(field(page_of(memory, entry), "cmd_line_ptr")) == b""

    @pytest.mark.parametrize(
        ("data", "longest"), [(bzimage(cmdline_size=255), 255), (vmlinux(), 2047)]
    )
    def test_too_long(self, memory: GuestMemory, data: bytes, longest: int) -> None:
        assert refusal(data, memory, Setup("x" * (longest + 1))) == (
            f"k: the command line has {longest + 1} bytes, and the kernel takes {longest}\n"
            "shorten it (append=): a kernel would cut it off without a word"
        )
        entry = boot.place(load(data), memory, Setup("x" * longest))
        line = field(page_of(memory, entry), "cmd_line_ptr")
        assert memory.read(line, longest + 1) == b"x" * longest + b"\0"

    @pytest.mark.parametrize("text", ["a\0b", "\ud800"])
    def test_what_is_no_c_string(self, memory: GuestMemory, text: str) -> None:
        with pytest.raises(ConfigError, match="command line"):
            boot.place(load(vmlinux()), memory, Setup(text))


class TestInitrd:
    def test_as_high_as_it_may_be(self, memory: GuestMemory) -> None:
        setup = Setup(initrd=Source("rd", b"initrd"))
        for limit, start in (
            (0x7FFF_FFFF, 0x3FFF000),
            (40 * M - 1, 0x27FF000),
            (40 * M, 0x27FF000),
        ):
            data = bzimage(initrd_addr_max=limit)
            entry = boot.place(load(data, protocol="linux64"), memory, setup)
            page = page_of(memory, entry)
            assert (field(page, "ramdisk_image"), field(page, "ramdisk_size")) == (start, 6)
            assert memory.read(start, 6) == b"initrd"

    def test_an_initrd_stays_below_4_gib(self) -> None:
        with memory_of((0, 32 * M), (1 << 32, 32 * M)) as memory:
            setup = Setup(initrd=Source("rd", b"initrd"))
            data = bzimage(initrd_addr_max=0xFFFF_FFFF)
            entry = boot.place(load(data, protocol="linux64"), memory, setup)
            assert field(page_of(memory, entry), "ramdisk_image") == 0x1FFF000

    def test_larger_than_memory(self, memory: GuestMemory) -> None:
        assert refusal(vmlinux(), memory, Setup(initrd=Source("rd", bytes(65 * M)))) == (
            "k: no room for the initrd (65 MiB): the largest free piece below 0x80000000 of the "
            "guest's 63.6 MiB of memory has 47.9 MiB\ngive the guest more memory (memory=)"
        )


class TestState:
    def test_long_mode(self, memory: GuestMemory) -> None:
        state = boot.place(load(vmlinux()), memory).state
        assert (state.cs.selector, state.ds.selector, state.ss.selector) == (0x10, 0x18, 0x18)
        assert (state.cs.l, state.cs.limit, state.ds.limit) == (1, 0xFFFF_FFFF, 0xFFFF_FFFF)
        assert (state.rflags, state.rsi) == (2, 0x1000)
        for address in (0, 0x1000, 64 * M, (4 << 30) - 1):
            found = walk(
                memory.read, address, cr0=state.cr0, cr3=state.cr3, cr4=state.cr4, efer=state.efer
            )
            assert found.physical == address

    def test_protected_mode(self, memory: GuestMemory) -> None:
        state = boot.place(load(bzimage(), protocol="linux32"), memory).state
        assert (state.cs.selector, state.cs.db, state.cs.limit) == (0x10, 1, 0xFFFF_FFFF)
        for segment in (state.ds, state.es, state.fs, state.gs, state.ss):
            assert (segment.selector, segment.base, segment.limit) == (0x18, 0, 0xFFFF_FFFF)
        assert (state.rbp, state.rdi, state.rbx, state.rsi, state.rflags) == (0, 0, 0, 0x1000, 2)
        assert (state.cr0 >> 31, state.gdt.limit) == (0, 31)
        table = memory.read(state.gdt.base, 32)
        assert table[16:24].hex() == "ffff0000009bcf00"
        assert table[24:32].hex() == "ffff00000093cf00"
