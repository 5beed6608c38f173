"""Linux kernels of any shape, sound or not, built field by field, and what is packed in them.

The offsets are those of Linux, Documentation/arch/x86/boot.rst.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import sys
from collections.abc import Callable

from boot.elfs import HLT, Part, R, elf
from lz4 import block as lz4_block

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

K, M = 1 << 10, 1 << 20
PT_NOTE = 4

# Where each lies, and its size.
FIELDS = {
    "setup_sects": (0x1F1, 1),
    "syssize": (0x1F4, 4),
    "vid_mode": (0x1FA, 2),
    "boot_flag": (0x1FE, 2),
    "jump": (0x200, 2),
    "header": (0x202, 4),
    "version": (0x206, 2),
    "kernel_version": (0x20E, 2),
    "type_of_loader": (0x210, 1),
    "loadflags": (0x211, 1),
    "code32_start": (0x214, 4),
    "ramdisk_image": (0x218, 4),
    "ramdisk_size": (0x21C, 4),
    "cmd_line_ptr": (0x228, 4),
    "initrd_addr_max": (0x22C, 4),
    "kernel_alignment": (0x230, 4),
    "relocatable_kernel": (0x234, 1),
    "xloadflags": (0x236, 2),
    "cmdline_size": (0x238, 4),
    "hardware_subarch": (0x23C, 4),
    "payload_offset": (0x248, 4),
    "payload_length": (0x24C, 4),
    "setup_data": (0x250, 8),
    "pref_address": (0x258, 8),
    "init_size": (0x260, 4),
    "kernel_info_offset": (0x268, 4),
}

CODE = HLT * (4 * K)
# What a kernel says of itself, and where in the file.
VERSION, VERSION_OFFSET = b"6.1.0-37-amd64 (me@here) #1 SMP Debian 6.1.140-1\0", 0x300


def field(data: bytes | bytearray, name: str) -> int:
    """A field of the setup header in a bzImage or a zero page."""
    offset, size = FIELDS[name]
    return int.from_bytes(data[offset : offset + size], "little")


def versioned(image: bytes, version: bytes) -> bytes:
    """The bzImage with another version of the kernel."""
    text = (version + b"\0").ljust(len(VERSION), b"\0")
    return image[:VERSION_OFFSET] + text + image[VERSION_OFFSET + len(text) :]


def bzimage(code: bytes = CODE, /, **fields: int) -> bytes:
    """A bzImage of version 2.15 that cannot be moved and wants to be at 1 MiB."""
    values = {
        "setup_sects": 1,
        "syssize": -(-len(code) // 16),
        "boot_flag": 0xAA55,
        "jump": 0x6AEB,
        "header": int.from_bytes(b"HdrS", "little"),
        "version": 0x20F,
        "loadflags": 1,
        "code32_start": M,
        "initrd_addr_max": 0x7FFF_FFFF,
        "kernel_alignment": 2 * M,
        "xloadflags": 1,
        "cmdline_size": 2047,
        "pref_address": M,
        "init_size": 64 * K,
        "kernel_version": VERSION_OFFSET - 0x200,
    }
    assert fields.keys() <= FIELDS.keys()
    values.update(fields)
    image = bytearray(((values["setup_sects"] or 4) + 1) * 512)
    image[VERSION_OFFSET : VERSION_OFFSET + len(VERSION)] = VERSION
    for name, value in values.items():
        offset, size = FIELDS[name]
        image[offset : offset + size] = value.to_bytes(size, "little")
    return bytes(image) + code


def packed(
    kernel: bytes, payload: bytes | None = None, pack: str = "gzip", /, **fields: int
) -> bytes:
    """A bzImage with `kernel` packed in it, or `payload` as it is."""
    content = PACKERS[pack](kernel) if payload is None else payload
    return bzimage(
        CODE + content.ljust(-(-len(content) // 16) * 16, b"\0"),
        **{"payload_offset": len(CODE), "payload_length": len(content), **fields},
    )


def _sized(pack: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """As the kernel's build does, the size of the content after it."""
    return lambda content: pack(content) + len(content).to_bytes(4, "little")


def lz4_legacy(content: bytes, block: int = 8 * M) -> bytes:
    packed = b"\x02\x21\x4c\x18"
    for start in range(0, len(content), block):
        part = lz4_block.compress(content[start : start + block], store_size=False)
        packed += len(part).to_bytes(4, "little") + part
    return packed


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda content: gzip.compress(content, mtime=0),
    "bzip2": _sized(bz2.compress),
    "lzma": _sized(lambda content: lzma.compress(content, lzma.FORMAT_ALONE)),
    "xz": _sized(lzma.compress),
    "lz4": _sized(lz4_legacy),
    "zstd": _sized(zstd.compress),
    "not compressed": bytes,
}


def note(owner: str = "Linux", kind: int = 0x101, desc: bytes = bytes(4), align: int = 4) -> Part:
    """A note, to stand among an ELF file's parts."""
    name = owner.encode() + b"\0"
    data = struct.pack("<III", len(name), len(desc), kind) + name
    data = data.ljust(-(-len(data) // align) * align, b"\0") + desc
    data = data.ljust(-(-len(data) // align) * align, b"\0")
    return Part(data, 0, R, type=PT_NOTE, align=align)


def vmlinux(*parts: Part, paddr: int = 16 * M) -> bytes:
    """An uncompressed kernel: linked in the upper 2 GiB, entered at its physical address."""
    text = Part(HLT * 64, 0xFFFF_FFFF_8000_0000 + paddr, paddr=paddr, memsz=64 * K)
    return elf(text, note(), *parts, entry=paddr)
