"""Multiboot headers of any shape, sound or not, and what kernels find, read back."""

from __future__ import annotations

import struct
from typing import NamedTuple

from boot.elfs import HLT, Part, Sym, elf

from pykvm.memory import GuestMemory

MAGIC1, MAGIC2 = 0x1BADB002, 0xE85250D6
ADDRESSES = 1 << 16
BASE = 0x10_0000
PT_NULL = 0
END = struct.pack("<HHI", 0, 0, 8)


def header1(flags: int = 3, *addresses: int, magic: int = MAGIC1) -> bytes:
    """A multiboot 1 header; `addresses` are header, load, load_end, bss_end and entry."""
    words = (magic, flags, -(magic + flags) % (1 << 32), *addresses)
    return struct.pack(f"<{len(words)}I", *words)


def tag(kind: int, *words: int, flags: int = 0, size: int | None = None) -> bytes:
    """A multiboot2 tag, padded; `size` is what it says of itself."""
    length = 8 + 4 * len(words)
    said = length if size is None else size
    return struct.pack(f"<HHI{len(words)}I", kind, flags, said, *words) + bytes(-length % 8)


def header2(*tags: bytes, end: bytes = END, architecture: int = 0, length: int = 0) -> bytes:
    """A multiboot2 header with these tags."""
    content = b"".join(tags) + end
    length = length or 16 + len(content)
    checksum = -(MAGIC2 + architecture + length) % (1 << 32)
    return struct.pack("<4I", MAGIC2, architecture, length, checksum) + content


def kernel(
    header: bytes,
    *,
    bits: int = 32,
    offset: int = 0,
    symbols: tuple[Sym, ...] = (),
    code: bytes = HLT * 16,
) -> bytes:
    """An ELF kernel at 1 MiB whose header starts its only segment; it is entered after it.

    The segment is at `offset` of the file or, if the ELF headers reach further, after these.
    """
    first = {32: 52 + 2 * 32, 64: 64 + 2 * 56}[bits]
    between = bytes(max(offset - first, -first % 8))
    return elf(
        Part(between, type=PT_NULL),
        Part(header + code, BASE),
        bits=bits,
        entry=BASE + len(header),
        symbols=symbols,
    )


class Info(NamedTuple):
    """The multiboot 1 information, its first 17 words."""

    flags: int
    mem_lower: int
    mem_upper: int
    boot_device: int
    cmdline: int
    mods_count: int
    mods_addr: int
    syms_num: int
    syms_size: int
    syms_addr: int
    syms_shndx: int
    mmap_length: int
    mmap_addr: int
    drives_length: int
    drives_addr: int
    config_table: int
    boot_loader_name: int


def info1(memory: GuestMemory, address: int) -> Info:
    return Info(*struct.unpack("<17I", memory.read(address, 68)))


def modules1(memory: GuestMemory, info: Info) -> list[tuple[int, int, bytes]]:
    """(start, end, command line) of each."""
    listed = struct.iter_unpack("<4I", memory.read(info.mods_addr, 16 * info.mods_count))
    return [(start, end, memory.read_cstring(words)) for start, end, words, _ in listed]


def memory_map1(memory: GuestMemory, info: Info) -> list[tuple[int, int, int]]:
    """(address, length, type) of each, by the sizes that the entries say."""
    found = []
    at = info.mmap_addr
    while at < info.mmap_addr + info.mmap_length:
        (size,) = struct.unpack("<I", memory.read(at, 4))
        found.append(struct.unpack("<QQI", memory.read(at + 4, 20)))
        at += size + 4
    assert at == info.mmap_addr + info.mmap_length
    return found


def tags2(memory: GuestMemory, address: int) -> list[tuple[int, bytes]]:
    """(type, content) of each tag of the multiboot2 information."""
    assert address % 8 == 0
    total, reserved = struct.unpack("<II", memory.read(address, 8))
    found = []
    at = address + 8
    while at < address + total:
        kind, size = struct.unpack("<II", memory.read(at, 8))
        found.append((kind, memory.read(at + 8, size - 8)))
        at += -(-size // 8) * 8
    assert (at, reserved) == (address + total, 0)
    assert found.pop() == (0, b"")
    return found
