"""The Linux boot protocol, for a bzImage and for the vmlinux inside it.

pykvm unpacks a bzImage itself and enters the kernel proper at its 64-bit entry (startup_64), which
on hosts where ring 0 is slow saves most of the time to the first line.  Where that cannot be done
the kernel unpacks itself, as with `linux64` and `linux32`, and a remark says why.

Source: Linux, Documentation/arch/x86/boot.rst, "64-bit Boot Protocol".
"""

from __future__ import annotations

from pykvm.boot.elf import ELF64, ELFMAG, read_header
from pykvm.boot.linux_header import XLF_KERNEL_64, missing_header, read_setup_header
from pykvm.boot.notes import LINUX, XEN, XEN_ELFNOTE_PHYS32_ENTRY, read_notes
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.boot.image import Entry, Image, Setup
    from pykvm.boot.source import Request, Source
    from pykvm.memory import GuestMemory

__all__ = ["NAME", "PC", "UNPACKS_ITSELF", "load", "place", "recognise"]

NAME = "linux"
PC = True

#: In a remark on a bzImage that pykvm could not unpack.
UNPACKS_ITSELF = "the kernel unpacks itself, in the guest"


def recognise(source: Source, request: Request) -> str | None:
    """Return why this is no Linux kernel, None if it is one.

    An ELF file is one if it has a note of Linux's, or if the caller says so.
    """
    missing = missing_header(source)
    if missing is None:
        return None
    if bytes(source.part(0, len(ELFMAG))) != ELFMAG:
        return f"{missing}, and no ELF file"
    if request.protocol == NAME:
        return None
    notes = read_notes(source)
    if not any(note.owner == LINUX for note in notes):
        return "an ELF file without a note of Linux's"
    if read_header(source).elf_class is not ELF64 and any(
        note.owner == XEN and note.type == XEN_ELFNOTE_PHYS32_ENTRY for note in notes
    ):
        return "a 32-bit vmlinux, which has a PVH entry"
    return None


def load(source: Source, request: Request) -> Image:
    """Read a bzImage, unpacked where it can be, or a vmlinux.

    Raises LoadError for headers that make no sense, a damaged payload, or one that unpacks to more
    than there is room for.
    """
    from pykvm.boot.linux_image import read_bzimage, read_unpacked, read_vmlinux
    from pykvm.boot.payload import CannotUnpack
    from pykvm.x86.state import Mode

    if missing_header(source) is not None:
        return read_vmlinux(source, request, protocol=NAME)
    mode = Mode.LONG
    if not read_setup_header(source).xloadflags & XLF_KERNEL_64:
        mode, reason = Mode.PROTECTED, "it has no 64-bit entry (xloadflags)"
    else:
        try:
            return read_unpacked(source, request, protocol=NAME)
        except CannotUnpack as error:
            reason = str(error)
    remark = f"{source.name}: {UNPACKS_ITSELF}: {reason}"
    return read_bzimage(source, request, protocol=NAME, mode=mode, remarks=(remark,))


def place(image: Image, memory: GuestMemory, setup: Setup) -> Entry:
    """Put the kernel into memory with its zero page, command line and initrd (docs/boot.md).

    Raises LoadError, with the numbers, where something finds no room or the command line is longer
    than the kernel takes; ConfigError for one that cannot be a C string.
    """
    from pykvm.boot.linux_place import place_kernel

    return place_kernel(image, memory, setup)
