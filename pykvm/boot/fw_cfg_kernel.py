"""A Linux kernel as fw_cfg hands it to firmware: set-up code, kernel, command line and initrd.

The set-up code's header is filled in here; `pykvm.boot.boot_rom` copies the parts and enters it.

Source: Linux, Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from pykvm.boot.image import Range
from pykvm.devices.fw_cfg import Key
from pykvm.errors import LoadError
from pykvm.sizes import format_size

if TYPE_CHECKING:
    from pykvm.boot.source import Source

    Bytes = bytes | bytearray | memoryview

__all__ = ["kernel_items"]

SECTOR = 512
MAGIC = b"HdrS"
HEADER_END = 0x268

# Offsets of the header's fields in the file.
SETUP_SECTS = 0x1F1
HEADER = 0x202
VERSION = 0x206
TYPE_OF_LOADER = 0x210
LOADFLAGS = 0x211
RAMDISK_IMAGE = 0x218
HEAP_END_PTR = 0x224
CMD_LINE_PTR = 0x228
INITRD_ADDR_MAX = 0x22C
CMDLINE_SIZE = 0x238
PREF_ADDRESS = 0x258
INIT_SIZE = 0x260

# Protocol versions from which there are fields.
HAS_CMD_LINE_PTR = 0x202
HAS_INITRD_ADDR_MAX = 0x203
HAS_CMDLINE_SIZE = 0x206
HAS_INIT_SIZE = 0x20A

LOADED_HIGH = 0x01
CAN_USE_HEAP = 0x80
UNDEFINED_LOADER = 0xFF

# What a header leaves out (boot.rst, "initrd_addr_max", "cmdline_size").
OLD_INITRD_ADDR_MAX = 0x37FF_FFFF
OLD_CMDLINE_SIZE = 255

# The set-up code has 64 KiB with its heap and stack; the command line goes on from there.
SETUP_ADDRESS = 0x10000
SETUP_ROOM = 0x10000
STACK_ROOM = 0x200
CMDLINE_ADDRESS = SETUP_ADDRESS + SETUP_ROOM
CMDLINE_ROOM = 0x10000
KERNEL_ADDRESS = 0x100000
PAGE = 0x1000

#: What firmware keeps for itself at the end of the RAM below 4 GiB, and more: SeaBIOS has 256 KiB.
FIRMWARE_ROOM = 1 << 20


class _Header(NamedTuple):
    """The fields that matter here, as they stand or as the protocol's version implies them."""

    setup_size: int
    initrd_addr_max: int
    cmdline_size: int
    needed: Range


def kernel_items(
    kernel: Source, command_line: str, initrd: Source | None, ram_end: int
) -> dict[int, Bytes]:
    """The items, by key, of a bzImage that is to run in RAM from 0 to `ram_end`.

    Raises LoadError for a file that is none, a command line that is too long, or what does not fit
    in memory, with the numbers.
    """
    header = _read_header(kernel)
    line = _command_line(kernel, command_line, header.cmdline_size)
    setup = bytearray(kernel.data[: header.setup_size])
    code = kernel.data[header.setup_size :]
    if header.needed.end > ram_end:
        raise kernel.error(
            f"{header.needed} lies outside guest memory (RAM ends at {ram_end:#x})",
            hint="give the guest more memory (--memory)",
        )
    disk: Bytes = b"" if initrd is None else initrd.data
    disk_address = 0 if initrd is None else _initrd_address(initrd, header, ram_end)
    setup[TYPE_OF_LOADER] = UNDEFINED_LOADER
    setup[LOADFLAGS] |= CAN_USE_HEAP
    struct.pack_into("<II", setup, RAMDISK_IMAGE, disk_address, len(disk))
    struct.pack_into("<H", setup, HEAP_END_PTR, SETUP_ROOM - STACK_ROOM)
    struct.pack_into("<I", setup, CMD_LINE_PTR, CMDLINE_ADDRESS)
    parts: dict[tuple[Key, Key, Key], tuple[int, Bytes]] = {
        (Key.SETUP_ADDR, Key.SETUP_SIZE, Key.SETUP_DATA): (SETUP_ADDRESS, setup),
        (Key.CMDLINE_ADDR, Key.CMDLINE_SIZE, Key.CMDLINE_DATA): (CMDLINE_ADDRESS, line),
        (Key.KERNEL_ADDR, Key.KERNEL_SIZE, Key.KERNEL_DATA): (KERNEL_ADDRESS, code),
        (Key.INITRD_ADDR, Key.INITRD_SIZE, Key.INITRD_DATA): (disk_address, disk),
    }
    items: dict[int, Bytes] = {}
    for keys, (address, data) in parts.items():
        numbers = address.to_bytes(4, "little"), len(data).to_bytes(4, "little")
        items |= zip(keys, (*numbers, data), strict=True)
    return items


def _read_header(kernel: Source) -> _Header:
    data = kernel.data
    if len(data) < HEADER_END or data[HEADER : HEADER + 4] != MAGIC:
        raise kernel.error(
            "is no bzImage (no HdrS at 0x202), and firmware boots no other kernel",
            hint="a kernel of another kind starts without firmware: name it as the guest",
        )
    (version,) = struct.unpack_from("<H", data, VERSION)
    if version < HAS_CMD_LINE_PTR:
        raise kernel.error(f"has boot protocol {version >> 8}.{version & 0xFF:02}, before 2.02")
    if not data[LOADFLAGS] & LOADED_HIGH:
        raise kernel.error("is a zImage (LOADED_HIGH is 0 in loadflags), to be loaded below 1 MiB")
    setup_size = ((data[SETUP_SECTS] or 4) + 1) * SECTOR
    if not HEADER_END <= setup_size < min(len(data), SETUP_ROOM - STACK_ROOM):
        raise kernel.error(
            f"has {setup_size:#x} bytes of set-up code (setup_sects {data[SETUP_SECTS]}) "
            f"in a file of {len(data):#x}"
        )
    needed = Range("kernel", KERNEL_ADDRESS, KERNEL_ADDRESS + len(data) - setup_size)
    if version >= HAS_INIT_SIZE:
        preferred, init_size = struct.unpack_from("<QI", data, PREF_ADDRESS)
        end = max(needed.end, max(preferred, KERNEL_ADDRESS) + init_size)
        needed = needed._replace(end=end)
    (highest,) = struct.unpack_from("<I", data, INITRD_ADDR_MAX)
    (longest,) = struct.unpack_from("<I", data, CMDLINE_SIZE)
    return _Header(
        setup_size,
        highest if version >= HAS_INITRD_ADDR_MAX else OLD_INITRD_ADDR_MAX,
        longest if version >= HAS_CMDLINE_SIZE else OLD_CMDLINE_SIZE,
        needed,
    )


def _command_line(kernel: Source, text: str, longest: int) -> bytes:
    """`text` as a C string.  Raises LoadError if the kernel would cut it."""
    line = text.encode("utf-8", "surrogateescape")
    if b"\0" in line:
        raise kernel.error("its command line contains a NUL, which would end it")
    longest = min(longest, CMDLINE_ROOM - 1)
    if len(line) > longest:
        raise kernel.error(
            f"its command line has {len(line)} bytes, and it reads {longest} (cmdline_size)"
        )
    return line + b"\0"


def _initrd_address(initrd: Source, header: _Header, ram_end: int) -> int:
    """As high as the kernel lets it lie, below what firmware keeps for itself."""
    end = min(ram_end - FIRMWARE_ROOM, header.initrd_addr_max + 1)
    start = (end - len(initrd)) // PAGE * PAGE
    if start < header.needed.end:
        raise LoadError(
            f"{initrd.name}: no room for an initrd of {format_size(len(initrd))} between the "
            f"{header.needed} and {end:#x}",
            hint="give the guest more memory (--memory)",
        )
    return start
