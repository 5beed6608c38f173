"""PVH: an ELF kernel with a note that names a 32-bit entry point, as Xen defined it.

Source: Xen, public/elfnote.h (XEN_ELFNOTE_PHYS32_ENTRY).
"""

from __future__ import annotations

from pykvm.boot.notes import (
    XEN,
    XEN_ELFNOTE_PHYS32_ENTRY,
    has_note,
    unreadable_entry_note,
)
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.boot.image import Entry, Image, Setup
    from pykvm.boot.source import Request, Source
    from pykvm.memory import GuestMemory

__all__ = ["NAME", "PC", "load", "place", "recognise"]

NAME = "pvh"
PC = True


def recognise(source: Source, request: Request) -> str | None:
    """Return why this has no PVH entry, None if it has one.

    A file whose PVH note is damaged is one, too: it would come to grief as a bare program.
    """
    del request
    if has_note(source, XEN, XEN_ELFNOTE_PHYS32_ENTRY):
        return None
    if unreadable_entry_note(source) is not None:
        return None
    return "no ELF note of Xen's with a 32-bit entry"


def load(source: Source, request: Request) -> Image:
    """Read an ELF kernel by its note.

    Raises LoadError for a note of the wrong size, and for an ELF file that cannot be loaded.
    """
    from pykvm.boot.pvh_kernel import read_kernel

    return read_kernel(source, request, protocol=NAME)


def place(image: Image, memory: GuestMemory, setup: Setup) -> Entry:
    """Put the kernel into memory with its start info, modules and command line (docs/boot.md).

    Raises LoadError where something finds no room, ConfigError for a command line that cannot be a
    C string.
    """
    from pykvm.boot.pvh_kernel import place_kernel

    return place_kernel(image, memory, setup)
