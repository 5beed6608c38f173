"""Firmware: a BIOS image, mapped under 4 GiB and entered at the reset vector as after power-on.

The image is read-only memory that ends at 4 GiB.  Its last 128 KiB, or all of a smaller one, lie in
the RAM below 1 MiB too, as a PC's chipset shows them there; firmware works in that copy, its
shadow.  The first instruction is the one at FFFFFFF0, in real mode with F000:FFF0 in CS:IP.

Nothing in such a file says that it is one.  It is taken for firmware if its size is a multiple of
64 KiB, at most 16 MiB, and a jump stands at the reset vector, 16 bytes before its end; an image for
which a mode or an address is given is flat.

What else firmware needs to know it asks fw_cfg; see `pykvm.boot.fw_cfg_items`.

Sources: SDM 3A 10.1.4 "First Instruction Executed"; Intel 82441FX data sheet (290549), 4.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm.boot.image import Entry, Image, Range, Segment
from pykvm.boot.placement import FreeMemory, describe, ram_ranges
from pykvm.boot.symbols import Symbols
from pykvm.errors import ConfigError, LoadError
from pykvm.sizes import format_size
from pykvm.x86.state import Mode, reset

if TYPE_CHECKING:
    from pykvm.boot.image import Setup
    from pykvm.boot.source import Request, Source
    from pykvm.memory import GuestMemory

__all__ = ["NAME", "PC", "load", "place", "recognise"]

NAME = "firmware"
PC = True

BLOCK = 64 << 10
LARGEST = 16 << 20
SHADOW_LARGEST = 128 << 10
SHADOW_END = 1 << 20
FOUR_GIB = 1 << 32
RESET_VECTOR = FOUR_GIB - 16

# JMP ptr16:16, JMP rel16, JMP rel8 (SDM 2A, "JMP"); some images have a NOP or two before it.
_JUMPS = b"\xea\xe9\xeb"
_NOP = b"\x90"


def recognise(source: Source, request: Request) -> str | None:
    """Return why this cannot be firmware, None if it can."""
    if request.boot == NAME:
        return None
    if request.mode is not None or request.address is not None:
        return "a mode or an address is given"
    size = len(source)
    if not size or size % BLOCK or size > LARGEST:
        return f"{size:#x} bytes are not a multiple of 64 KiB up to 16 MiB"
    end = bytes(source.part(size - 16, 16))
    code = end.lstrip(_NOP)
    if code[:1] not in _JUMPS or not code:
        start = end[:5].hex(" ")
        return f"no jump stands at the reset vector, 16 bytes before its end, but {start}"
    return None


def load(source: Source, request: Request) -> Image:
    """Take the whole file as an image that ends at 4 GiB.

    Raises LoadError for a size that no firmware has, or a mode or an address beside `boot`.
    """
    size = len(source)
    if size % BLOCK:
        raise source.error(
            f"is no firmware image: {size} ({size:#x}) bytes are not a multiple of 64 KiB",
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
            hint="name the kernel with --kernel FILE",
        )
