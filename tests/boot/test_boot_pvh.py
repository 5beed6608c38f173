"""PVH: the note, and what the kernel finds at its entry, byte for byte."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from boot.elfs import HLT, Part, elf
from boot.kernels import M, note, vmlinux

from pykvm import boot
from pykvm.boot.image import Module, Setup
from pykvm.boot.source import Source
from pykvm.errors import ConfigError, LoadError
from pykvm.memory import GuestMemory
from pykvm.tables import Hardware, Piece, Tables, memory_map
from pykvm.x86.state import Mode
from support.boot import load

FIELDS = (
    *("magic", "version", "flags", "nr_modules", "modlist_paddr", "cmdline_paddr", "rsdp_paddr"),
    *("memmap_paddr", "memmap_entries", "reserved"),
)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(overcommit=True) as memory:
        memory.add_ram(0, 8 * M)
        yield memory


def kernel(desc: bytes = M.to_bytes(4, "little"), bits: int = 64) -> bytes:
    return elf(Part(HLT * 64), note("Xen", 18, desc), bits=bits)


def start_info(memory: GuestMemory, entry: boot.Entry) -> dict[str, int]:
    raw = memory.read(entry.state.rbx, 56)
    return dict(zip(FIELDS, struct.unpack("<IIIIQQQQII", raw), strict=True))


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("size", [4, 8])
def test_recognised_by_its_note(bits: int, size: int) -> None:
    image = load(kernel((M + 5).to_bytes(size, "little"), bits))
    assert (image.protocol, image.mode, image.entry) == ("pvh", Mode.PROTECTED, M + 5)
    assert image.kind == f"elf{bits}"


def test_of_several_the_first_that_lies_in_the_kernel() -> None:
    far, near = (
        note("Xen", 18, (9 * M).to_bytes(4, "little")),
        note("Xen", 18, M.to_bytes(4, "little")),
    )
    assert load(elf(Part(HLT * 64), far, near)).entry == M
    with pytest.raises(LoadError, match="entry 0x900000 .* lies in no segment"):
        load(elf(Part(HLT * 64), far))


def test_a_note_in_a_segment_padded_otherwise_than_declared() -> None:
    before = note("GNU", 5, bytes(12)).data
    both = Part(before + note("Xen", 18, M.to_bytes(8, "little")).data, 0, type=4, align=8)
    image = load(elf(Part(HLT * 64), both))
    assert (image.protocol, image.entry) == ("pvh", M)


def test_one_that_cannot_be_read_is_never_a_bare_program() -> None:
    damaged = note("Xen", 18, M.to_bytes(4, "little")).data[:-1]
    file = elf(Part(HLT * 64), Part(damaged, 0, type=4))
    with pytest.raises(LoadError) as caught:
        load(file, name="k")
    assert str(caught.value) == (
        "k: has a PVH note (XEN_ELFNOTE_PHYS32_ENTRY, owner Xen) that cannot be read: its type and "
        f"owner stand at {file.index(damaged) + 8:#x}, with sizes or padding that make no note of "
        "it\npad name and description to 4 bytes each (.align 4); boot='elf' starts it without"
    )
    assert load(file, protocol="elf").protocol == "elf"


def test_linux_comes_first_unless_it_is_32_bits_wide() -> None:
    xen = note("Xen", 18, (16 * M).to_bytes(8, "little"))
    assert load(vmlinux(xen)).protocol == "linux"
    assert load(vmlinux(xen), protocol="pvh").protocol == "pvh"
    narrow = elf(Part(HLT * 64), note(), note("Xen", 18, M.to_bytes(4, "little")), bits=32)
    assert load(narrow).protocol == "pvh"


@pytest.mark.parametrize("size", [0, 2, 5, 9, 16])
def test_a_note_of_the_wrong_size(size: int) -> None:
    with pytest.raises(LoadError, match=rf"PVH note \(XEN_ELFNOTE_PHYS32_ENTRY\) has {size} bytes"):
        load(kernel(bytes(size)))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (2 * M, r"entry 0x200000 \(XEN_ELFNOTE_PHYS32_ENTRY\) lies in no segment"),
        (1 << 40, r"entry 0x10000000000 \(XEN_ELFNOTE_PHYS32_ENTRY\) lies in no segment"),
    ],
)
def test_an_entry_elsewhere(entry: int, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        load(kernel(entry.to_bytes(8, "little")))


def test_an_entry_above_4_gib() -> None:
    high = elf(Part(HLT, 1 << 33), note("Xen", 18, (1 << 33).to_bytes(8, "little")))
    with pytest.raises(LoadError, match="out of reach in protected mode"):
        load(high)


def test_what_cannot_be_asked_of_it() -> None:
    with pytest.raises(LoadError, match="entered in protected mode, not in long mode"):
        load(kernel(), mode=Mode.LONG)
    with pytest.raises(LoadError, match="cannot be placed at 0x200000"):
        load(kernel(), address=2 * M)
    assert load(kernel(), mode=Mode.PROTECTED).protocol == "pvh"
    with pytest.raises(LoadError, match=r"no pvh image: no ELF note of Xen's"):
        load(elf(), protocol="pvh")


def test_start_info(memory: GuestMemory) -> None:
    entry = boot.place(load(kernel(), name="k"), memory, Setup("a b", ("c",)))
    assert [str(one) for one in entry.layout] == [
        "memory map (0x1000-0x1078)",
        "command line (0x1080-0x1086)",
        "start info (0x1090-0x10c8)",
        "GDT (0x10d0-0x1128)",
        "segment 0 (0x100000-0x100040)",
    ]
    info = start_info(memory, entry)
    assert info == {
        "magic": 0x336EC578, "version": 1, "flags": 0, "nr_modules": 0, "modlist_paddr": 0,
        "cmdline_paddr": 0x1080, "rsdp_paddr": 0, "memmap_paddr": 0x1000, "memmap_entries": 5,
        "reserved": 0,
    }  # fmt: skip
    assert memory.read_cstring(info["cmdline_paddr"]) == b"a b c"
    table = struct.iter_unpack("<QQII", memory.read(info["memmap_paddr"], 5 * 24))
    assert list(table) == [(*one, 0) for one in memory_map([(0, 8 * M)])]


def test_state_at_the_entry(memory: GuestMemory) -> None:
    state = boot.place(load(kernel()), memory).state
    assert (state.mode, state.rip, state.cr0, state.cr4) == (Mode.PROTECTED, M, 0x11, 0)
    assert (state.rflags, state.efer) == (2, 0)
    for segment in (state.cs, state.ds, state.es, state.ss):
        assert (segment.base, segment.limit, segment.db) == (0, 0xFFFF_FFFF, 1)
    assert (state.tr.base, state.tr.limit, state.tr.type) == (0, 0x67, 0xB)


def test_the_initrd_is_the_first_module(memory: GuestMemory) -> None:
    setup = Setup(
        initrd=Source("rd", b"initrd"),
        modules=(Module(Source("m", b"module" * 1000), "x=1 y"), Module(Source("n", b"n"))),
    )
    entry = boot.place(load(kernel()), memory, setup)
    info = start_info(memory, entry)
    entries = list(struct.iter_unpack("<QQQQ", memory.read(info["modlist_paddr"], 3 * 32)))
    assert info["nr_modules"] == 3
    assert [memory.read(one[0], one[1]) for one in entries] == [b"initrd", b"module" * 1000, b"n"]
    assert [one[0] % 0x1000 for one in entries] == [0, 0, 0]
    assert (entries[0][2], memory.read_cstring(entries[1][2]), entries[2][2]) == (0, b"x=1 y", 0)
    assert "module rd (0x7ff000-0x7ff006)" in [str(one) for one in entry.layout]


def test_tables_are_written(memory: GuestMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = Tables((Piece("RSDP", 0xE0000, b"RSD PTR "),), 0xE0000)
    monkeypatch.setattr("pykvm.boot.plan.build", lambda hardware: tables)
    entry = boot.place(load(kernel()), memory, Setup(hardware=Hardware()))
    assert start_info(memory, entry)["rsdp_paddr"] == 0xE0000
    assert memory.read(0xE0000, 8) == b"RSD PTR "


def test_only_linux_has_a_limit_for_the_command_line(memory: GuestMemory) -> None:
    boot.place(load(kernel()), memory, Setup("x" * 5000))
    xen = note("Xen", 18, M.to_bytes(8, "little"))
    linux = load(vmlinux(xen, paddr=M), protocol="pvh")
    boot.place(linux, memory, Setup("x" * 2047))
    with pytest.raises(LoadError, match="has 2048 bytes, and the kernel takes 2047"):
        boot.place(linux, memory, Setup("x" * 2048))


def test_what_finds_no_room(memory: GuestMemory) -> None:
    image = load(kernel(), name="k")
    with pytest.raises(LoadError, match=r"^k: no room for the module rd \(8 MiB\)"):
        boot.place(image, memory, Setup(initrd=Source("rd", bytes(8 * M))))
    with pytest.raises(LoadError, match="lies outside guest memory"):
        boot.place(load(elf(Part(vaddr=16 * M), note("Xen", 18, bytes(3) + b"\1"))), memory)
    low = elf(Part(HLT, 0x9F000, memsz=0x2000), note("Xen", 18, b"\0\xf0\x09\0"))
    with pytest.raises(LoadError, match=r"reaches into what a PC keeps to itself: 0x9fc00-"):
        boot.place(load(low), memory)
    for text in ("a\0b", "\ud800"):
        with pytest.raises(ConfigError, match="command line"):
            boot.place(image, memory, Setup(text))
        with pytest.raises(ConfigError, match="command line of module m"):
            boot.place(image, memory, Setup(modules=(Module(Source("m", b"m"), text),)))
    assert memory.read(0, 8 * M) == bytes(8 * M)
