"""Boot sectors: the first 512 bytes of a disk, started as a BIOS would, without one.

The sector is at 0000:7c00 in real mode, DL says that it came from the first hard disk.  As under a
BIOS, the sectors after it are not loaded; and as there is no BIOS, nothing answers the INT 13h that
would load them, nor INT 10h: the interrupt table is all zeros.  Ports and memory are all it has.
(A disk image with its boot loader wants a firmware under it.)

Source: BIOS Boot Specification 1.01, 6.5.1; the disk's signature is older than any of them.
"""

from __future__ import annotations

from pykvm.boot import bare, flat
from pykvm.boot.source import Source
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.boot.image import Entry, Image, Setup
    from pykvm.boot.source import Request
    from pykvm.memory import GuestMemory

__all__ = ["NAME", "PC", "load", "place", "recognise"]

NAME = "bootsector"
PC = False

SECTOR_SIZE = 512
SIGNATURE = b"\x55\xaa"
SIGNATURE_OFFSET = 510
FIRST_HARD_DISK = 0x80
# A Linux kernel has the signature too: its first sector was a boot sector once.
LINUX_MAGIC, LINUX_MAGIC_OFFSET = b"HdrS", 0x202


def recognise(source: Source, request: Request) -> str | None:
    """Return why this is no disk with a boot sector, None if it is one."""
    if request.protocol != NAME and (request.mode is not None or request.address is not None):
        return "a mode or an address is given, which makes it a flat image"
    if not len(source) or len(source) % SECTOR_SIZE:
        return f"has {len(source)} bytes, not whole sectors of {SECTOR_SIZE}"
    found = bytes(source.part(SIGNATURE_OFFSET, len(SIGNATURE)))
    if found != SIGNATURE:
        return f"has {found.hex(' ')} at {SIGNATURE_OFFSET}, not {SIGNATURE.hex(' ')}"
    if bytes(source.part(LINUX_MAGIC_OFFSET, len(LINUX_MAGIC))) == LINUX_MAGIC:
        return "is a Linux kernel (HdrS at 0x202)"
    return None


def load(source: Source, request: Request) -> Image:
    """Take the first sector.  Raises LoadError for an entry outside it, or another mode."""
    sector = Source(source.name, source.part(0, SECTOR_SIZE))
    return flat.load(sector, request)._replace(kind=NAME, protocol=NAME)


def place(image: Image, memory: GuestMemory, setup: Setup) -> Entry:
    """Put the sector into `memory`, with a stack below.  Raises as the bare protocol does."""
    entry = bare.place(image, memory, setup)
    entry.state.rdx = FIRST_HARD_DISK
    return entry
