"""A Linux kernel as fw_cfg hands it to firmware: set-up code, kernel, command line and initrd.

The set-up code's header is filled in here; `pykvm.boot.boot_rom` copies the parts and enters it.

Source: Linux, Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
"""

from __future__ import annotations

import struct

from pykvm.boot.c_strings import command_line
from pykvm.boot.image import Range
from pykvm.boot.linux_header import missing_header, read_setup_header
from pykvm.devices.fw_cfg import Key
from pykvm.errors import LoadError
from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple
from pykvm.values.sizes import format_size
from pykvm.values.spelling import option

if TYPE_CHECKING:
    from pykvm.boot.source import Source

    Bytes = bytes | bytearray | memoryview

__all__ = ["kernel_items"]

HEADER_END = 0x268

# Offsets in the file of the fields to fill in.
TYPE_OF_LOADER = 0x210
LOADFLAGS = 0x211
RAMDISK_IMAGE = 0x218
HEAP_END_PTR = 0x224
CMD_LINE_PTR = 0x228

# Protocol versions from which there are fields.
HAS_CMD_LINE_PTR = 0x202
HAS_INITRD_ADDR_MAX = 0x203
HAS_CMDLINE_SIZE = 0x206

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
    kernel: Source, words: str, initrd: Source | None, ram_end: int
) -> dict[int, Bytes]:
    """The items, by key, of a bzImage that is to run in RAM from 0 to `ram_end`.

    `words` are its command line.  Raises LoadError for a file that is none, a line that is too
    long, or what does not fit in memory, with the numbers; ConfigError for one that is no C string.
    """
    header = _read_header(kernel)
    line = command_line(kernel.name, words, min(header.cmdline_size, CMDLINE_ROOM - 1))
    setup = bytearray(kernel.data[: header.setup_size])
    code = kernel.data[header.setup_size :]
    if header.needed.end > ram_end:
        raise kernel.error(
            f"{header.needed} lies outside guest memory (RAM ends at {ram_end:#x})",
            hint=f"give the guest more memory ({option('memory')})",
        )
    disk: Bytes = b"" if initrd is None else initrd.data
    disk_address = 0 if initrd is None else _initrd_address(initrd, header, ram_end)
    setup[TYPE_OF_LOADER] = UNDEFINED_LOADER
    setup[LOADFLAGS] |= CAN_USE_HEAP
    struct.pack_into("<II", setup, RAMDISK_IMAGE, disk_address, len(disk))
    struct.pack_into("<H", setup, HEAP_END_PTR, SETUP_ROOM - STACK_ROOM)
    struct.pack_into("<I", setup, CMD_LINE_PTR, CMDLINE_ADDRESS)
    parts: dict[tuple[int, int, int], tuple[int, Bytes]] = {
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
    missing = missing_header(kernel)
    if missing is not None:
        raise kernel.error(
            f"is no bzImage ({missing}), and firmware boots no other kernel",
            hint="a kernel of another kind starts without firmware: name it as the guest",
        )
    header = read_setup_header(kernel, oldest=HAS_CMD_LINE_PTR)
    size = header.setup_size
    if not HEADER_END <= size < min(len(kernel), SETUP_ROOM - STACK_ROOM):
        raise kernel.error(
            f"has {size:#x} bytes of set-up code (setup_sects {header.setup_sects}) "
            f"in a file of {len(kernel):#x}"
        )
    loaded_end = KERNEL_ADDRESS + len(kernel) - size
    used_end = max(header.pref_address, KERNEL_ADDRESS) + header.init_size
    return _Header(
        size,
        header.initrd_addr_max if header.version >= HAS_INITRD_ADDR_MAX else OLD_INITRD_ADDR_MAX,
        header.cmdline_size if header.version >= HAS_CMDLINE_SIZE else OLD_CMDLINE_SIZE,
        Range("kernel", KERNEL_ADDRESS, max(loaded_end, used_end)),
    )


def _initrd_address(initrd: Source, header: _Header, ram_end: int) -> int:
    """As high as the kernel lets it lie, below what firmware keeps for itself."""
    end = min(ram_end - FIRMWARE_ROOM, header.initrd_addr_max + 1)
    start = (end - len(initrd)) // PAGE * PAGE
    if start < header.needed.end:
        raise LoadError(
            f"{initrd.name}: no room for an initrd of {format_size(len(initrd))} between the "
            f"{header.needed} and {end:#x}",
            hint=f"give the guest more memory ({option('memory')})",
        )
    return start
