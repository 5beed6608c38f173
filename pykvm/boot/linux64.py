"""A bzImage that unpacks itself: entered at its own 64-bit entry.

That is 512 bytes after its start, in 64-bit mode.  Only by name: `linux` takes the same files.

Source: Linux, Documentation/arch/x86/boot.rst, "64-bit Boot Protocol".
"""

from __future__ import annotations

from pykvm.boot import linux
from pykvm.boot.linux_header import missing_header
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.boot.image import Image
    from pykvm.boot.source import Request, Source

__all__ = ["NAME", "PC", "load", "place", "recognise"]

NAME = "linux64"
PC = True


def recognise(source: Source, request: Request) -> str | None:
    """Return why this is no bzImage, None if it is one."""
    del request
    return missing_header(source)


def load(source: Source, request: Request) -> Image:
    """Read a bzImage.  Raises LoadError for a header that makes no sense."""
    from pykvm.boot.linux_image import read_bzimage
    from pykvm.x86.state import Mode

    return read_bzimage(source, request, protocol=NAME, mode=Mode.LONG)


place = linux.place
