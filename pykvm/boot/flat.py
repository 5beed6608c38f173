"""Flat images: raw machine code at an address, entered at its first byte.

Nothing in such a file says that it is one.  So it is taken for one only if the caller says so by
asking for a mode or an address, or by naming it as boot sectors and firmware are named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm.boot import bare
from pykvm.boot.image import Image, Segment
from pykvm.boot.symbols import Symbols
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
    if request.mode is not None or request.address is not None or request.boot == NAME:
        return None
    if source.name.lower().endswith(SUFFIXES):
        return None
    return "no mode or address is given, and the name ends in none of " + " ".join(SUFFIXES)


def load(source: Source, request: Request) -> Image:
    """Take the whole file as one segment at the address asked for, 0x7c00 by default.

    Raises LoadError if the mode, real by default, cannot start there.
    """
    mode = request.mode or Mode.REAL
    address = DEFAULT_ADDRESS if request.address is None else request.address
    bare.check_entry(source, mode, address)
    return Image(
        name=source.name,
        kind="flat",
        protocol=NAME,
        mode=mode,
        entry=address,
        segments=(Segment("image", address, source.data, len(source)),),
        symbols=Symbols(),
        word=8 if mode is Mode.LONG else 4,
    )


place = bare.place
