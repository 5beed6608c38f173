"""Firmware: a BIOS image, mapped under 4 GiB and entered at the reset vector as after power-on.

The image is read-only memory that ends at 4 GiB.  Its last 128 KiB, or all of a smaller one, lie in
the RAM below 1 MiB too, as a PC's chipset shows them there; firmware works in that copy, its
shadow.  The first instruction is the one at FFFFFFF0, in real mode with F000:FFF0 in CS:IP.

A file is taken for firmware by its size and by what stands 16 bytes before its end, where the
processor starts: code that jumps into the shadow (`pykvm.boot.reset_vector`).  A multiple of 64 KiB
up to 16 MiB is a size that any firmware has.  UEFI's, known by its volume header or the table at
its end, may be any multiple of 4 KiB.  An image for which a mode or an address is given is flat.

What else firmware needs to know it asks fw_cfg; see `pykvm.boot.fw_cfg_items`.

Sources: SDM 3A 10.1.4 "First Instruction Executed"; Intel 82441FX data sheet (290549), 4.1; UEFI
Platform Initialization 1.7 volume 3, 3.2.1; EDK II, OvmfPkg/ResetVector (the table of GUIDs).
"""

from __future__ import annotations

from pykvm.boot.elf import ELFMAG
from pykvm.boot.image import Entry, Image, Range, Segment
from pykvm.boot.linux_header import missing_header
from pykvm.boot.placement import FreeMemory, describe, ram_ranges
from pykvm.boot.reset_vector import VECTOR_SIZE, escape
from pykvm.boot.symbols import Symbols
from pykvm.errors import ConfigError, LoadError
from pykvm.layout import FOUR_GIB
from pykvm.typed import TYPE_CHECKING
from pykvm.values.sizes import format_size
from pykvm.values.spelling import option
from pykvm.x86.entry import reset
from pykvm.x86.state import Mode

if TYPE_CHECKING:
    from pykvm.boot.image import Setup
    from pykvm.boot.source import Request, Source
    from pykvm.memory import GuestMemory

__all__ = ["NAME", "PC", "load", "place", "recognise"]

NAME = "firmware"
PC = True

BLOCK = 64 << 10
PAGE = 4 << 10
LARGEST = 16 << 20
SHADOW_LARGEST = 128 << 10
SHADOW_END = 1 << 20
RESET_VECTOR = FOUR_GIB - VECTOR_SIZE

# EFI_FIRMWARE_VOLUME_HEADER: the signature after the zero vector, the GUID and the length.
_FVH, _FVH_OFFSET = b"_FVH", 0x28
# 96b582de-1fb2-45f7-baea-a366c55a082d ends OVMF's table, 32 bytes before the image does.
_TABLE_END = bytes.fromhex("de82b596b21ff745baeaa366c55a082d")
_TABLE_END_OFFSET = 48

# What fills images where nothing is.
_FILLERS = (bytes(4), b"\xff" * 4)


def recognise(source: Source, request: Request) -> str | None:
    """Return why this cannot be firmware, None if it can."""
    if request.protocol == NAME:
        return None
    if request.mode is not None or request.address is not None:
        return "a mode or an address is given"
    if bytes(source.part(0, len(ELFMAG))) == ELFMAG or missing_header(source) is None:
        return "its start makes it a kernel"
    size = len(source)
    if not size or size > LARGEST or size % (PAGE if _is_uefi(source) else BLOCK):
        return f"{size:#x} bytes are not a multiple of 64 KiB up to 16 MiB"
    vector = bytes(source.part(size - VECTOR_SIZE, VECTOR_SIZE))
    target = escape(vector, min(size, SHADOW_LARGEST))
    if target is None:
        start = vector[:5].hex(" ")
        return f"no jump stands at the reset vector, 16 bytes before its end, but {start}"
    if _is_multiboot(source) and bytes(source.part(size + target, 4)) in _FILLERS:
        return "its header makes it a multiboot kernel"
    return None


def _is_uefi(source: Source) -> bool:
    table = source.part(len(source) - _TABLE_END_OFFSET, len(_TABLE_END))
    return source.part(_FVH_OFFSET, len(_FVH)) == _FVH or table == _TABLE_END


def _is_multiboot(source: Source) -> bool:
    """Whether a multiboot kernel starts the file; U-Boot's ROM is one, too."""
    from pykvm.boot import multiboot, multiboot2

    headers = (multiboot.find_header(source), multiboot2.find_header(source))
    return any(header is not None and header.is_in_reach for header in headers)


def load(source: Source, request: Request) -> Image:
    """Take the whole file as an image that ends at 4 GiB.

    Raises LoadError for a size that no firmware has, or a mode or an address beside `boot`.
    """
    size = len(source)
    if size % PAGE:
        raise source.error(
            f"is no firmware image: {size} ({size:#x}) bytes are not a multiple of 4 KiB",
            hint=f"pad it in front to {-(-size // BLOCK) * BLOCK} bytes",
        )
    if size > LARGEST:
        raise source.error(
            f"is no firmware image: {format_size(size)}, and there is room for "
            f"{format_size(LARGEST)} below 4 GiB"
        )
    if request.mode is not None or request.address is not None:
        raise source.error(
            "firmware ends at 4 GiB and starts in real mode: no mode or address can be given"
        )
    return Image(
        name=source.name,
        kind="firmware",
        protocol=NAME,
        mode=Mode.REAL,
        entry=RESET_VECTOR,
        segments=(Segment("firmware", FOUR_GIB - size, source.data, size, writable=False),),
        symbols=Symbols(),
        word=4,
    )


def place(image: Image, memory: GuestMemory, setup: Setup) -> Entry:
    """Map the image and copy its shadow; the registers are as after RESET.

    Raises LoadError where there is no RAM for the shadow, or something else for the image; or if
    `setup` has what only fw_cfg's kernel could receive, and there is none.
    """
    _check_setup(image, setup)
    (rom,) = image.segments
    shadow_size = min(rom.size, SHADOW_LARGEST)
    shadow = Range("shadow", SHADOW_END - shadow_size, SHADOW_END)
    if not FreeMemory(image.name, ram_ranges(memory)).is_ram(shadow):
        raise LoadError(
            f"{image.name}: {shadow} lies outside guest memory ({describe(memory)})",
            hint="give the guest its whole first MiB",
        )
    content = bytes(rom.data)
    try:
        memory.add_rom(rom.address, content, name=rom.name)
    except ConfigError as error:
        raise LoadError(f"{image.name}: there is no room for it: {error}") from error
    memory.write(shadow.start, content[-shadow_size:])
    return Entry(reset(), (shadow, rom.range), image.symbols)


def _check_setup(image: Image, setup: Setup) -> None:
    if setup.modules or setup.args:
        what = "modules are" if setup.modules else "arguments are"
        raise LoadError(
            f"{image.name}: {what} given, but firmware has no way to receive them",
            hint="leave them out, or boot a kernel that takes them without firmware",
        )
    if setup.kernel is None and (setup.append or setup.initrd is not None):
        what = "a command line" if setup.append else "an initrd"
        raise LoadError(
            f"{image.name}: {what} is given, but no kernel that firmware is to boot",
            hint=f"name the kernel with {option('kernel')}",
        )
