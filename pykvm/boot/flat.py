"""Flat images: raw machine code at an address, entered at its first byte.

Nothing in such a file says that it is one.  So it is taken for one only if the caller says so by
asking for a mode, an address, an entry or a stack, or by naming it as boot sectors are named.  In
real mode it may be entered elsewhere, with segments and a stack of the caller's choice.
"""

from __future__ import annotations

from pykvm.boot import bare
from pykvm.boot.image import Image, Segment
from pykvm.boot.placement import check_reach
from pykvm.boot.real_start import RealStart
from pykvm.boot.symbols import Symbols
from pykvm.typed import TYPE_CHECKING
from pykvm.values.spelling import option
from pykvm.x86.state import Mode

if TYPE_CHECKING:
    from pykvm.boot.source import Request, Source

__all__ = ["NAME", "PC", "load", "place", "recognise"]

NAME = "flat"
PC = False
SUFFIXES = (".bin", ".img", ".com")
# Where the BIOS puts a boot sector, and where most 16-bit examples are linked.
DEFAULT_ADDRESS = 0x7C00


def recognise(source: Source, request: Request) -> str | None:
    """Return why the caller does not mean a flat image, None if they do."""
    asked = (request.mode, request.address, request.entry, request.stack)
    if request.protocol == NAME or any(one is not None for one in asked):
        return None
    if source.name.lower().endswith(SUFFIXES):
        return None
    return "no mode or address is given, and the name ends in none of " + " ".join(SUFFIXES)


def load(source: Source, request: Request) -> Image:
    """Take the whole file as one segment at the address asked for, 0x7c00 by default.

    Raises LoadError if the mode, real by default, cannot start there, or the entry lies elsewhere.
    """
    mode = request.mode or Mode.REAL
    address = DEFAULT_ADDRESS if request.address is None else request.address
    start = RealStart(request.entry, request.stack)
    if mode is not Mode.REAL and any(start):
        raise source.error(
            f"starts in {mode.value} mode: an entry or a stack as SEGMENT:OFFSET is for real mode",
            hint=f"leave them out, or choose {option('mode', 'real')}",
        )
    check_reach(source, mode, address)
    entry = address if start.entry is None else start.entry.linear
    if not address <= entry < address + len(source):
        raise source.error(
            f"entry {start.entry} is {entry:#x}, outside the image "
            f"({address:#x}-{address + len(source):#x})",
            hint=f"choose an entry inside, or put the image elsewhere ({option('load_address')})",
        )
    return Image(
        name=source.name,
        kind="flat",
        protocol=NAME,
        mode=mode,
        entry=entry,
        segments=(Segment("image", address, source.slice(0, len(source)), len(source)),),
        symbols=Symbols(),
        word=8 if mode is Mode.LONG else 4,
        details=start,
    )


place = bare.place
