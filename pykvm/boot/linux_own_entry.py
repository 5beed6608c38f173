"""A bzImage that unpacks itself, entered at one of its own entries.

LINUX32 enters it at its first byte in protected mode, LINUX64 512 bytes after that in 64-bit mode.
Only by name: `linux` takes the same files.

Source: Linux, Documentation/arch/x86/boot.rst, "32-bit Boot Protocol" and "64-bit Boot Protocol".
"""

from __future__ import annotations

from pykvm.boot import linux
from pykvm.boot.linux_header import missing_header
from pykvm.typed import TYPE_CHECKING
from pykvm.x86.state import Mode

if TYPE_CHECKING:
    from pykvm.boot.image import Image
    from pykvm.boot.source import Request, Source

__all__ = ["LINUX32", "LINUX64"]


class OwnEntry:
    """See `pykvm.boot.BootProtocol`."""

    PC = True
    place = staticmethod(linux.place)

    def __init__(self, name: str, mode: Mode) -> None:
        self.NAME = name
        self._mode = mode

    def recognise(self, source: Source, request: Request) -> str | None:
        """Return why this is no bzImage, None if it is one."""
        del request
        return missing_header(source)

    def load(self, source: Source, request: Request) -> Image:
        """Read a bzImage.  Raises LoadError for a header that makes no sense."""
        from pykvm.boot.linux_image import read_bzimage

        return read_bzimage(source, request, protocol=self.NAME, mode=self._mode)


LINUX32 = OwnEntry("linux32", Mode.PROTECTED)
LINUX64 = OwnEntry("linux64", Mode.LONG)
