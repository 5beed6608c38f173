"""Multiboot 2: what its header's tags ask for, and the tags that answer."""

from __future__ import annotations

import struct

import pytest
from boot.elfs import HLT, Sym
from boot.multiboots import BASE, END, header1, header2, kernel, tag, tags2

from pykvm import boot
from pykvm.boot.image import Module, Setup
from pykvm.boot.source import Source
from pykvm.errors import LoadError
from pykvm.memory import GuestMemory
from pykvm.tables import Piece, Tables
from pykvm.x86.state import Mode
from support.boot import load

K, M = 1 << 10, 1 << 20
OPTIONAL = 1


class TestRecognised:
    @pytest.mark.parametrize("bits", [32, 64])
    def test_by_its_header(self, bits: int) -> None:
        header = header2()
        image = load(kernel(header, bits=bits), name="k.elf")
        assert (image.kind, image.protocol) == ("multiboot2", "multiboot2")
        assert (image.mode, image.entry) == (Mode.PROTECTED, BASE + len(header))

    def test_multiboot_1_comes_first_unless_asked_otherwise(self) -> None:
        file = kernel(header1() + bytes(4) + header2())
        assert load(file).protocol == "multiboot"
        assert load(file, protocol="multiboot2").protocol == "multiboot2"

    def test_only_at_a_multiple_of_eight(self) -> None:
        assert load(kernel(bytes(4) + header2() + bytes(4))).protocol == "elf"

    def test_it_lies_whole_in_the_first_32_kib(self) -> None:
        header = header2()
        last = 32768 - len(header)
        assert load(kernel(header, offset=last)).protocol == "multiboot2"
        with pytest.raises(LoadError) as caught:
            load(kernel(header, offset=last + 8), name="k")
        assert caught.value.message == (
            "k: has a multiboot2 header at 0x7ff0, 0x18 bytes long, not all of it in the first "
            "32768 bytes"
        )

    def test_another_architecture(self) -> None:
        with pytest.raises(LoadError, match="header is for architecture 4: pykvm runs i386"):
            load(kernel(header2(architecture=4)))


class TestTags:
    @pytest.mark.parametrize(
        "wish",
        [
            tag(1, 1, 2, 3, 4, 5, 6, 9, 13, 14, 15, 21),
            tag(1),
            tag(4, 0),
            tag(4, 2),
            tag(6),
            tag(7),
            tag(8, 0x1234),
            tag(9, 0x1234),
            tag(4, 1, flags=OPTIONAL),
            tag(5, 1024, 768, 32, flags=OPTIONAL),
            tag(1, 8, flags=OPTIONAL),
            tag(99, flags=OPTIONAL),
        ],
    )
    def test_what_can_be_met_or_ignored(self, wish: bytes) -> None:
        assert load(kernel(header2(wish))).protocol == "multiboot2"

    @pytest.mark.parametrize(
        ("wish", "what"),
        [
            (tag(1, 6, 8), "information request tag asks for information that is not given: "),
            (tag(1, 6, 8), "not given: framebuffer info (tag 8)"),
            (tag(1, 10, 17), "not given: APM table (tag 10), EFI memory map (tag 17)"),
            (tag(4, 1), "flags tag asks for a console, EGA text or a framebuffer"),
            (tag(5, 1024, 768, 32), "framebuffer tag asks for a framebuffer, and there is no"),
        ],
    )
    def test_a_request_that_is_not_met_is_a_remark(
        self, memory: GuestMemory, wish: bytes, what: str
    ) -> None:
        entry = boot.place(load(kernel(header2(wish)), name="k"), memory)
        (remark,) = entry.remarks
        assert remark.startswith("k: its multiboot2 header's ")
        assert what in remark
        assert remark.endswith("; it starts without")
        assert not {7, 8, 10, 17} & {kind for kind, _ in tags2(memory, entry.state.rbx)}

    @pytest.mark.parametrize("wish", [tag(4, 1), tag(5, 1024, 768, 32), tag(1, 8), tag(99)])
    def test_no_remark_for_an_optional_tag(self, memory: GuestMemory, wish: bytes) -> None:
        optional = wish[:2] + b"\1" + wish[3:]
        assert boot.place(load(kernel(header2(optional))), memory).remarks == ()

    @pytest.mark.parametrize(
        ("wish", "what"),
        [
            (tag(1, 8, 0x1234), "information of a kind that is not known: tag 4660"),
            (tag(99), "type 99 tag asks for what the specification does not know"),
        ],
    )
    def test_what_the_specification_does_not_know_is_refused(
        self, memory: GuestMemory, wish: bytes, what: str
    ) -> None:
        with pytest.raises(LoadError) as caught:
            load(kernel(header2(wish)))
        assert what in caught.value.message
        assert caught.value.hint.startswith("mark the tag optional")
        image = load(kernel(header2(wish)), protocol="multiboot2")
        (remark,) = boot.place(image, memory).remarks
        assert what in remark

    @pytest.mark.parametrize(
        ("wish", "what"),
        [
            (tag(6, size=0), "tag at 0x88 (type 6) has size 0x0: from 8"),
            (tag(6, size=7), "has size 0x7"),
            (tag(6, size=0xFFFF_FFFF), "has size 0xffffffff"),
            (tag(10, 0, 0, 0), "relocatable header tag at 0x88 has 3 words, not 4"),
            (tag(2, 0), "address tag at 0x88 has 1 words, not 4"),
            (tag(3), "entry address tag at 0x88 has 0 words, not 1"),
        ],
    )
    def test_what_is_no_tag(self, wish: bytes, what: str) -> None:
        with pytest.raises(LoadError) as caught:
            load(kernel(header2(wish)))
        assert what in caught.value.message

    def test_no_end_tag(self) -> None:
        with pytest.raises(LoadError, match="tags reach 0x90, where it ends, without an end tag"):
            load(kernel(header2(tag(6), end=b"")))

    @pytest.mark.parametrize("length", [1, 8, 16, 0x7000])
    def test_a_length_that_is_not_its_own(self, length: int) -> None:
        file = kernel(header2(tag(6), end=b"" if length > 16 else END, length=length))
        with pytest.raises(LoadError):
            load(file)


class TestAddresses:
    def test_a_file_that_is_no_elf_is_loaded_by_them(self, memory: GuestMemory) -> None:
        wishes = tag(2, BASE + 8, BASE, BASE + 0x60, BASE + 0x2000), tag(3, BASE + 0x50)
        file = (bytes(8) + header2(*wishes)).ljust(0x80, HLT)
        image = load(file)
        (segment,) = image.segments
        assert (segment.address, len(segment.data), segment.size) == (BASE, 0x60, 0x2000)
        assert boot.place(image, memory).state.rip == BASE + 0x50

    def test_from_the_start_of_the_file(self) -> None:
        wishes = tag(2, BASE + 16, 0xFFFF_FFFF, 0, 0), tag(3, BASE + 0x60)
        image = load((bytes(16) + header2(*wishes)).ljust(0x80, HLT))
        assert [(one.address, one.size) for one in image.segments] == [(BASE, 0x80)]

    def test_from_the_start_of_a_file_that_begins_below_zero(self) -> None:
        wishes = tag(2, 8, 0xFFFF_FFFF, 0, 0), tag(3, 0)
        with pytest.raises(LoadError, match="header_addr 0x8 is less than the header's offset"):
            load(bytes(16) + header2(*wishes))

    def test_an_address_tag_needs_an_entry_tag(self) -> None:
        with pytest.raises(LoadError, match="has an address tag, but no entry address tag"):
            load(header2(tag(2, BASE, BASE, 0, 0)))

    def test_a_file_that_is_no_elf_needs_them(self) -> None:
        with pytest.raises(LoadError, match="header at 0x0 without an address tag, and is no ELF"):
            load(header2())

    def test_an_entry_alone_counts_instead_of_elfs(self) -> None:
        header = header2(tag(3, BASE + 50))
        assert load(kernel(header)).entry == BASE + 50
        with pytest.raises(LoadError, match=r"entry 0x5 \(entry_addr\) lies in no part"):
            load(kernel(header2(tag(3, 5))))


class TestRelocation:
    def placed(self, memory: GuestMemory, *words: int) -> tuple[int, int | None]:
        """Where the first segment went, and what the kernel is told of it."""
        header = header2(tag(10, *words))
        entry = boot.place(load(kernel(header)), memory)
        told = dict(tags2(memory, entry.state.rbx)).get(21)
        (where,) = (place for place in entry.layout if place.name == "segment 1")
        assert entry.state.rip == where.start + len(header)
        return where.start, struct.unpack("<I", told)[0] if told else None

    def test_without_preference_stays_where_it_is_linked(self, memory: GuestMemory) -> None:
        assert self.placed(memory, 0, 0xFFFF_FFFF, 0x1000, 0) == (BASE, BASE)

    def test_without_preference_moves_above_its_linked_address(self, memory: GuestMemory) -> None:
        where = 0x20_0000
        assert self.placed(memory, where, 0xFFFF_FFFF, 0x1000, 0) == (where, where)

    def test_without_preference_moves_below_its_linked_address(self, memory: GuestMemory) -> None:
        assert self.placed(memory, 0, 0x8_FFFF, 0x1000, 0) == (0x1000, 0x1000)

    def test_prefers_the_lowest_address(self, memory: GuestMemory) -> None:
        assert self.placed(memory, 0x20_0001, 0xFFFF_FFFF, 0x2000, 1)[0] == 0x20_2000

    def test_prefers_the_highest_address(self, memory: GuestMemory) -> None:
        assert self.placed(memory, 0, 0x2F_FFFF, 0x1000, 2)[0] == 0x2F_F000
        size = len(header2(tag(10, *[0] * 4))) + 16  # the HLTs that kernel() adds
        assert self.placed(memory, 0, 0x2F_FFFF, 0, 2)[0] == 0x30_0000 - size

    def test_no_room_within_the_bounds(self, memory: GuestMemory) -> None:
        with pytest.raises(LoadError, match="wants between 0x500000 and 0x600000 at a multiple of"):
            self.placed(memory, 0x50_0000, 0x60_0000, 0x1000, 0)
        with pytest.raises(LoadError, match="wants between 0x300000 and 0x200000"):
            self.placed(memory, 0x30_0000, 0x20_0000, 0, 0)

    def test_no_load_base_tag_without_relocation(self, memory: GuestMemory) -> None:
        entry = boot.place(load(kernel(header2())), memory)
        assert 21 not in dict(tags2(memory, entry.state.rbx))

    def test_symbols_move_along(self, memory: GuestMemory) -> None:
        header = header2(tag(10, 0x20_0000, 0xFFFF_FFFF, 0x1000, 0))
        file = kernel(header, symbols=(Sym("start", BASE + len(header), 4),))
        entry = boot.place(load(file), memory)
        assert entry.symbols["start"] == 0x20_0000 + len(header)


class TestInformation:
    def test_state(self, memory: GuestMemory) -> None:
        state = boot.place(load(kernel(header2())), memory).state
        assert state.mode is Mode.PROTECTED
        assert state.rax == 0x36D7_6289
        assert (state.cs.selector, state.cr0 >> 31, state.rflags) == (0x08, 0, 2)

    def test_tags(self, memory: GuestMemory) -> None:
        setup = Setup(
            append="quiet",
            initrd=Source("initrd", b"i" * 10),
            modules=(Module(Source("one", b"1"), "a b"),),
        )
        entry = boot.place(load(kernel(header2()), name="k.elf"), memory, setup)
        tags = tags2(memory, entry.state.rbx)
        assert [kind for kind, _ in tags] == [1, 2, 3, 3, 4, 6, 13]
        assert tags[0] == (1, b"k.elf quiet\0")
        assert tags[1] == (2, b"pykvm\0")
        modules = [(*struct.unpack_from("<II", data), data[8:]) for _, data in tags[2:4]]
        assert [words for *_, words in modules] == [b"initrd\0", b"one a b\0"]
        assert [memory.read(start, end - start) for start, end, _ in modules] == [
            b"i" * 10,
            b"1",
        ]
        assert all(start % 0x1000 == 0 for start, *_ in modules)
        assert tags[4] == (4, struct.pack("<II", 639, 3 * K))
        assert tags[5][1][:8] == struct.pack("<II", 24, 0)
        assert list(struct.iter_unpack("<QQII", tags[5][1][8:])) == [
            (0, 0x9_FC00, 1, 0),
            (0x9_FC00, 0x400, 2, 0),
            (0xE_0000, 0x2_0000, 2, 0),
            (0x10_0000, 3 * M, 1, 0),
            (0xFEFF_C000, 0x4000, 2, 0),
        ]

    def test_symbols(self, memory: GuestMemory) -> None:
        file = kernel(header2(), symbols=(Sym("start", BASE + 24),))
        tags = dict(tags2(memory, boot.place(load(file), memory).state.rbx))
        assert struct.unpack_from("<III", tags[9]) == (3, 40, 0)
        *_, strtab = struct.iter_unpack("<10I", tags[9][12:])
        assert memory.read(strtab[3], strtab[5]) == b"\0start\0"

    def test_smbios(self, memory: GuestMemory) -> None:
        entry = boot.place(load(kernel(header2())), memory)
        told = dict(tags2(memory, entry.state.rbx))[13]
        anchor = memory.find(b"_SM3_")
        assert anchor is not None
        size, address = memory.read_u32(anchor + 0x0C), memory.read_u64(anchor + 0x10)
        assert told[:8] == memory.read(anchor + 7, 2) + bytes(6)
        assert told[8:] == memory.read(address, size)

    @pytest.mark.parametrize(("revision", "kinds"), [(0, {14}), (2, {14, 15})])
    def test_acpis_root_pointer(
        self,
        memory: GuestMemory,
        monkeypatch: pytest.MonkeyPatch,
        revision: int,
        kinds: set[int],
    ) -> None:
        pointer = bytearray(b"RSD PTR ".ljust(36, b"x"))
        pointer[15] = revision
        pointer[20:24] = struct.pack("<I", 36)
        tables = Tables(
            (Piece("DSDT", 0xE_0000, b"DSDT"), Piece("RSDP", 0xF_0000, bytes(8) + pointer)),
            0xF_0008,
        )
        monkeypatch.setattr("pykvm.boot.plan.build", lambda _: tables)
        entry = boot.place(load(kernel(header2())), memory)
        tags = dict(tags2(memory, entry.state.rbx))
        assert {kind: tags[kind] for kind in kinds} == {
            kind: bytes(pointer[: {14: 20, 15: 36}[kind]]) for kind in kinds
        }
        assert 15 in kinds or 15 not in tags
        assert memory.read(0xF_0008, 36) == pointer
        assert memory.read(0xE_0000, 4) == b"DSDT"


def test_a_module_larger_than_ram(memory: GuestMemory) -> None:
    setup = Setup(modules=(Module(Source("big.img", bytes(5 * M))),))
    with pytest.raises(LoadError, match=r"no room for the module big.img \(5 MiB\)"):
        boot.place(load(kernel(header2())), memory, setup)
    assert memory.find(b"\xf4") is None
