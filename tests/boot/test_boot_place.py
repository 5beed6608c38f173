"""What a guest finds in memory and registers at its entry, byte for byte."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import pytest
from boot.elfs import ET_DYN, HLT, Part, R, W, elf

from pykvm import boot
from pykvm.boot.image import Setup
from pykvm.boot.placement import FreeMemory
from pykvm.errors import ConfigError, LoadError, MemoryRangeError
from pykvm.memory import GuestMemory
from pykvm.x86.descriptors import flat_gdt
from pykvm.x86.paging import walk
from pykvm.x86.state import Mode
from pykvm.x86.tss import tss64
from support.boot import load

K, M, G = 1 << 10, 1 << 20, 1 << 30


def memory_of(*regions: tuple[int, int]) -> GuestMemory:
    memory = GuestMemory(overcommit=True)
    for start, size in regions:
        memory.add_ram(start, size)
    return memory


def layout(entry: boot.Entry) -> list[str]:
    return [str(place) for place in entry.layout]


def strings(memory: GuestMemory, pointers: Sequence[int]) -> list[bytes]:
    return [memory.read_cstring(pointer) for pointer in pointers]


class TestLongMode:
    def test_layout(self, memory: GuestMemory) -> None:
        image = load(elf(Part(memsz=0x100), Part(b"x", 0x20_0000, R | W)), name="g.elf")
        assert layout(boot.place(image, memory)) == [
            "stack (0x1000-0x11000)",
            "TSS (0x11000-0x11068)",
            "GDT (0x11080-0x110d8)",
            "arguments (0x110e0-0x110f6)",
            "page tables (0x12000-0x18000)",
            "segment 0 (0x100000-0x100100)",
            "segment 1 (0x200000-0x200001)",
        ]

    def test_registers(self, memory: GuestMemory) -> None:
        state = boot.place(load(elf(Part(HLT * 4), entry=0x10_0002)), memory).state
        assert state.mode is Mode.LONG
        assert (state.rip, state.rsp, state.cr3) == (0x10_0002, 0x1_0FF8, 0x1_2000)
        assert (state.rdi, state.rsi) == (1, 0x1_10E0)
        assert (state.gdt.base, state.tr.base) == (0x1_1080, 0x1_1000)

    def test_enters_as_a_called_function(self, memory: GuestMemory) -> None:
        memory.fill(0x1000, 0x1_0000, 0xAA)
        state = boot.place(load(elf()), memory).state
        assert state.rsp % 16 == 8
        assert memory.read_u64(state.rsp) == 0

    def test_descriptors(self, memory: GuestMemory) -> None:
        state = boot.place(load(elf()), memory).state
        image = flat_gdt(state.tr.base).image
        assert memory.read(state.gdt.base, len(image)) == image
        assert state.gdt.limit == len(image) - 1
        assert memory.read(state.tr.base, 0x68) == tss64()

    def test_arguments(self, memory: GuestMemory) -> None:
        image = load(elf(), name="g.elf")
        state = boot.place(
            image,
            memory,
            Setup(
                args=(
                    "-v",
                    "",
                    "grüße",
                    "\udcff",
                )
            ),
        ).state
        assert state.rdi == 5
        *pointers, end = struct.unpack("<6Q", memory.read(state.rsi, 48))
        assert end == 0
        expected = [b"g.elf", b"-v", b"", "grüße".encode(), b"\xff"]
        assert strings(memory, pointers) == expected

    def test_many_arguments_find_room_after_the_page_tables(self, memory: GuestMemory) -> None:
        args = ["x" * 1000] * 100
        entry = boot.place(load(elf()), memory, Setup(args=tuple(args)))
        assert entry.layout[-2].name == "arguments"
        assert entry.state.rsi == 0x1_8000
        assert memory.read_cstring(memory.read_u64(0x1_8000 + 8 * 100)) == b"x" * 1000

    def test_x32_pointers_are_four_bytes(self, memory: GuestMemory) -> None:
        image = load(elf(bits=32, machine=62), name="g.elf")
        state = boot.place(image, memory, Setup(args=("a",))).state
        assert state.mode is Mode.LONG
        *pointers, end = struct.unpack("<3I", memory.read(state.rsi, 12))
        assert (strings(memory, pointers), end) == ([b"g.elf", b"a"], 0)

    @pytest.mark.parametrize("size", [1 * M, 5 * G + 2 * M])
    def test_identity_paging_covers_ram_and_four_gigabytes(self, size: int) -> None:
        with memory_of((0, size)) as memory:
            state = boot.place(load(elf(Part(vaddr=0x8_0000))), memory).state
            for address in (0, 0xFFFFF, 4 * G - 1, max(size, 4 * G) - 1):
                found = walk(
                    memory.read,
                    address,
                    cr0=state.cr0,
                    cr3=state.cr3,
                    cr4=state.cr4,
                    efer=state.efer,
                    access="write",
                )
                assert found.physical == address, found
                assert found.page_size == 2 * M
                assert not found.user
            above = walk(
                memory.read,
                max(size, 4 * G),
                cr0=state.cr0,
                cr3=state.cr3,
                cr4=state.cr4,
                efer=state.efer,
            )
            assert above.physical is None


class TestProtectedMode:
    def test_layout_and_registers(self, memory: GuestMemory) -> None:
        entry = boot.place(load(elf(bits=32), name="g.elf"), memory)
        assert layout(entry) == [
            "stack (0x1000-0x11000)",
            "TSS (0x11000-0x11068)",
            "arguments (0x11070-0x1107e)",
            "GDT (0x11080-0x110d8)",
            "segment 0 (0x100000-0x100001)",
        ]
        state = entry.state
        assert state.mode is Mode.PROTECTED
        assert (state.rip, state.rsp, state.gdt.base) == (0x10_0000, 0x1_0FEC, 0x1_1080)
        assert memory.read(state.gdt.base, 0x58) == flat_gdt(state.tr.base).image

    def test_arguments_are_on_the_stack_as_after_a_call(self, memory: GuestMemory) -> None:
        image = load(elf(bits=32), name="g.elf")
        state = boot.place(
            image,
            memory,
            Setup(
                args=(
                    "one",
                    "two",
                )
            ),
        ).state
        returns_to, argc, argv = struct.unpack("<3I", memory.read(state.rsp, 12))
        assert (returns_to, argc) == (0, 3)
        assert (state.rsp + 4) % 16 == 0
        *pointers, end = struct.unpack("<4I", memory.read(argv, 16))
        assert (strings(memory, pointers), end) == ([b"g.elf", b"one", b"two"], 0)

    @pytest.mark.parametrize("data", [elf(), HLT], ids=["elf64", "flat"])
    def test_pointers_are_four_bytes_whatever_the_file(
        self, memory: GuestMemory, data: bytes
    ) -> None:
        image = load(data, name="g", mode=Mode.PROTECTED)
        state = boot.place(image, memory, Setup(args=("one",))).state
        _, argc, argv = struct.unpack("<3I", memory.read(state.rsp, 12))
        *pointers, end = struct.unpack("<3I", memory.read(argv, 12))
        assert (argc, strings(memory, pointers), end) == (2, [b"g", b"one"], 0)

    def test_everything_lies_below_four_gigabytes(self) -> None:
        image = load(elf(bits=32))
        with (
            memory_of((0x10_0000, 0x1000), (4 * G, 1 * M)) as memory,
            pytest.raises(LoadError, match=r"no room for the stack \(64 KiB\)"),
        ):
            boot.place(image, memory)


class TestRealMode:
    def test_stack_below_the_image(self, memory: GuestMemory) -> None:
        entry = boot.place(load(HLT, mode=Mode.REAL), memory)
        assert layout(entry) == ["stack (0x500-0x7c00)", "image (0x7c00-0x7c01)"]
        state = entry.state
        assert state.mode is Mode.REAL
        assert (state.cs.selector, state.rip, state.linear_rip) == (0, 0x7C00, 0x7C00)
        assert (state.ss.selector, state.rsp) == (0, 0x7C00)
        assert memory.read(0x7C00, 1) == HLT

    @pytest.mark.parametrize(
        ("address", "cs", "ip", "ss", "sp"),
        [
            (0x07C05, 0x0000, 0x7C05, 0x0000, 0x7C00),
            (0x0FFF0, 0x0000, 0xFFF0, 0x0000, 0xFFF0),
            (0x10000, 0x1000, 0x0000, 0x0000, 0x0000),
            (0x10020, 0x1000, 0x0020, 0x0002, 0x0000),
            (0xF0004, 0xF000, 0x0004, 0xE000, 0x0000),
        ],
    )
    def test_segments(
        self, memory: GuestMemory, address: int, cs: int, ip: int, ss: int, sp: int
    ) -> None:
        state = boot.place(load(HLT, address=address), memory).state
        assert (state.cs.selector, state.rip, state.ss.selector, state.rsp) == (cs, ip, ss, sp)
        assert state.linear_rip == address
        assert state.ds.selector == state.es.selector == cs
        assert state.ds.base == cs << 4
        # The first push lands right below the image, down to the alignment.
        assert (ss << 4) + ((sp - 2) & 0xFFFF) == (address & -16) - 2

    @pytest.mark.parametrize("address", [0, 0x600, 0x8F0])
    def test_stack_elsewhere_where_there_is_no_room_below(self, address: int) -> None:
        with memory_of((0, 64 * K)) as memory:
            entry = boot.place(load(HLT, address=address), memory)
            assert layout(entry)[-1] == "stack (0x1000-0x2000)"
            assert (entry.state.ss.selector, entry.state.rsp) == (0, 0x2000)

    def test_the_least_room_below_that_will_do(self, memory: GuestMemory) -> None:
        entry = boot.place(load(HLT, address=0x900), memory)
        assert layout(entry) == ["stack (0x500-0x900)", "image (0x900-0x901)"]

    def test_an_image_at_the_start_of_ram_has_its_stack_above(self) -> None:
        with memory_of((0x8000, 32 * K)) as memory:
            entry = boot.place(load(HLT * 0x1001, address=0x8000), memory)
            assert layout(entry) == ["image (0x8000-0x9001)", "stack (0xa000-0xb000)"]

    def test_elf_with_16_bit_code(self, memory: GuestMemory) -> None:
        image = load(elf(Part(vaddr=0x7C00), bits=32), mode=Mode.REAL)
        state = boot.place(image, memory).state
        assert (state.mode, state.linear_rip, state.rsp) == (Mode.REAL, 0x7C00, 0x7C00)

    def test_arguments_are_refused(self, memory: GuestMemory) -> None:
        with pytest.raises(LoadError, match="^boot.bin: arguments are given, but a real-mode"):
            boot.place(load(HLT, name="boot.bin"), memory, Setup(args=("x",)))


class TestMemory:
    def test_segments_are_written_and_their_rest_is_zero(self, memory: GuestMemory) -> None:
        memory.fill(0x10_0000, 0x8_0000, 0xAA)
        image = load(elf(Part(b"code", memsz=0x5_0001), Part(b"d" * 70000, 0x16_0000)))
        boot.place(image, memory)
        assert memory.read(0x10_0000, 4) == b"code"
        assert memory.read(0x10_0004, 0x5_0001 - 4) == bytes(0x5_0001 - 4)
        assert memory.read(0x15_0001, 1) == b"\xaa"
        assert memory.read(0x16_0000, 70001) == b"d" * 70000 + b"\xaa"

    def test_placing_again_gives_the_same_memory(self, memory: GuestMemory) -> None:
        image = load(elf(Part(b"code", memsz=0x2_0000)), name="g.elf")
        boot.place(image, memory, Setup(args=("a",)))
        fresh = memory.read(0x1_1000, 0x18_0000 - 0x1_1000)
        memory.fill(0x1000, 0x17_F000, 0xAA)
        entry = boot.place(image, memory, Setup(args=("a",)))
        for place in entry.layout:
            if place.name != "stack":
                start, size = place.start, place.end - place.start
                assert memory.read(start, size) == fresh[start - 0x1_1000 :][:size], place

    def test_a_huge_bss_in_fresh_memory_costs_no_host_memory(self) -> None:
        def resident_anonymous() -> int:
            with open("/proc/self/status", encoding="ascii") as lines:
                line = next(line for line in lines if line.startswith("RssAnon"))
            return int(line.split()[1]) * K

        with memory_of((0, 256 * M)) as memory:
            image = load(elf(Part(memsz=200 * M)))
            before = resident_anonymous()
            boot.place(image, memory)
            assert resident_anonymous() - before < 50 * M

    def test_structures_go_where_segments_are_not(self, memory: GuestMemory) -> None:
        image = load(elf(Part(HLT, 0x5000), Part(b"x", 0x1_0000, memsz=0x1000)), name="g")
        entry = boot.place(image, memory)
        assert layout(entry) == [
            "TSS (0x1000-0x1068)",
            "GDT (0x1080-0x10d8)",
            "arguments (0x10e0-0x10f2)",
            "segment 0 (0x5000-0x5001)",
            "page tables (0x6000-0xc000)",
            "segment 1 (0x10000-0x11000)",
            "stack (0x11000-0x21000)",
        ]

    def test_structures_do_not_go_into_rom(self) -> None:
        with GuestMemory(overcommit=True) as memory:
            memory.add_rom(0x1000, bytes(0x2_F000))
            memory.add_ram(0x3_0000, 4 * M)
            entry = boot.place(load(elf()), memory)
            assert entry.layout[0].start == 0x3_0000

    def test_one_megabyte_is_enough_for_long_mode(self) -> None:
        with memory_of((0, 1 * M)) as memory:
            entry = boot.place(load(elf(Part(vaddr=0x8_0000))), memory)
            assert entry.layout[-1].end <= 1 * M

    def test_the_pie_and_its_symbols(self, memory: GuestMemory) -> None:
        image = load(elf(Part(HLT, 0), type=ET_DYN), address=0x20_0000)
        entry = boot.place(image, memory)
        assert entry.state.rip == 0x20_0000
        assert memory.read(0x20_0000, 1) == HLT
        assert entry.symbols is image.symbols


class TestRefused:
    def refusal(self, data: bytes, memory: GuestMemory) -> str:
        image = load(data, name="hello.elf")
        with pytest.raises(LoadError) as caught:
            boot.place(image, memory)
        return str(caught.value)

    def test_segment_outside_memory(self) -> None:
        data = elf(Part(), Part(vaddr=0x10_1000), Part(b"", 0x7F00_0000, memsz=0x4000))
        with memory_of((0, 64 * M)) as memory:
            assert self.refusal(data, memory) == (
                "hello.elf: segment 2 (0x7f000000-0x7f004000) lies outside guest memory (64 MiB)\n"
                "give the guest more memory (memory='2G') or link it lower"
            )

    def test_segment_across_the_end_of_memory(self, memory: GuestMemory) -> None:
        assert self.refusal(elf(Part(vaddr=4 * M - 1, memsz=2)), memory) == (
            "hello.elf: segment 0 (0x3fffff-0x400001) lies outside guest memory (4 MiB)\n"
            "give the guest more memory (memory='8M') or link it lower"
        )

    def test_segment_that_twice_the_memory_holds_to_the_last_byte(
        self, memory: GuestMemory
    ) -> None:
        assert "memory='8M'" in self.refusal(elf(Part(vaddr=4 * M, memsz=4 * M)), memory)

    def test_segment_that_no_memory_could_hold(self, memory: GuestMemory) -> None:
        assert self.refusal(elf(Part(memsz=1 << 60)), memory) == (
            "hello.elf: segment 0 (0x100000-0x1000000000100000) lies outside guest memory (4 MiB)\n"
            "link it lower"
        )

    def test_segment_in_a_hole(self) -> None:
        with memory_of((0, 1 * M), (4 * M, 1 * M)) as memory:
            assert self.refusal(elf(Part(vaddr=2 * M)), memory).startswith(
                "hello.elf: segment 0 (0x200000-0x200001) lies outside guest memory "
                "(ram 0x0-0x100000, ram 0x400000-0x500000)\n"
            )

    def test_segment_in_rom(self) -> None:
        with memory_of((0, 1 * M)) as memory:
            memory.add_rom(1 * M, bytes(0x1000), name="bios")
            assert self.refusal(elf(), memory) == (
                "hello.elf: segment 0 (0x100000-0x100001) lies in read-only memory "
                "(bios 0x100000-0x101000)\nlink it elsewhere, or put RAM there"
            )

    def test_no_memory_at_all(self) -> None:
        with GuestMemory() as memory:
            assert "lies outside guest memory (there is none)" in self.refusal(elf(), memory)

    def test_no_room_for_the_structures(self) -> None:
        with memory_of((0, 0x2_0000)) as memory:
            message = self.refusal(elf(Part(vaddr=0x1_1000, memsz=0xA000)), memory)
        assert message == (
            "hello.elf: no room for the page tables (24 KiB): the largest free piece of the "
            "guest's 128 KiB of memory has 19.8 KiB\ngive the guest more memory (memory=)"
        )

    def test_nothing_is_written_unless_all_fits(self) -> None:
        with memory_of((0, 0x2_0000)) as memory:
            self.refusal(elf(Part(vaddr=0x1_1000, memsz=0xA000)), memory)
            assert memory.read(0, 0x2_0000) == bytes(0x2_0000)

    @pytest.mark.parametrize(
        ("argument", "reason"),
        [("a\0b", "contains a NUL, which ends a C string"), ("\ud800", "is not text: ")],
    )
    def test_arguments_that_are_no_c_strings(
        self, memory: GuestMemory, argument: str, reason: str
    ) -> None:
        with pytest.raises(ConfigError) as caught:
            boot.place(load(elf()), memory, Setup(args=(argument,)))
        assert caught.value.message.startswith(f"argument {argument!r} {reason}")

    def test_the_error_is_not_the_memorys(self, memory: GuestMemory) -> None:
        with pytest.raises(MemoryRangeError):
            memory.read(4 * M, 1)
        assert "outside guest memory" in self.refusal(elf(Part(vaddr=4 * M)), memory)


class TestFreeMemory:
    def test_regions_that_touch_are_one(self) -> None:
        free = FreeMemory("g", [(0x3000, 0x5000), (0, 0x3000)])
        assert free.take("all", 0x4000)[1:] == (0x1000, 0x5000)

    def test_the_first_page_stays_free(self) -> None:
        with pytest.raises(LoadError, match="largest free piece of the guest's 4 KiB"):
            FreeMemory("g", [(0, 0x1000)]).take("stack", 1)

    def test_limit(self) -> None:
        free = FreeMemory("g", [(0, 0x9000)], limit=0x3000)
        assert free.take("a", 0x2000)[1:] == (0x1000, 0x3000)
        with pytest.raises(LoadError):
            free.take("b", 1)
        assert free.end == 0x9000

    def test_alignment(self) -> None:
        free = FreeMemory("g", [(0x1008, 0x9000)])
        assert [free.take("x", 8, align=16).start for _ in range(2)] == [0x1010, 0x1020]
        assert free.take("y", 8, align=8).start == 0x1008

    @pytest.mark.parametrize(
        ("limits", "found"),
        [
            ({}, 0x1000),
            ({"highest": True}, 0x8000),
            ({"low": 0x1001}, 0x2000),
            ({"low": 0x2001}, 0x6000),
            ({"high": 0x1FFF}, None),
            ({"high": 0x7FFF, "highest": True}, 0x6000),
            ({"high": 0x5FFF, "highest": True}, 0x2000),
            ({"low": 0x8001}, None),
            ({"low": 0x7000, "high": 0x7FFF}, None),
        ],
    )
    def test_find(self, limits: dict[str, Any], found: int | None) -> None:
        free = FreeMemory("g", [(0, 0x3000), (0x5800, 0x9800)])
        assert free.find(0x1000, align=0x1000, **limits) == found
        assert free.find(0x1000, align=0x1000, **limits) == found, "it takes nothing"
