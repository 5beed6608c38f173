"""What a multiboot2 kernel is told: a list of tags.

The ELF symbols' tag has words where the specification's table shows half words: so have its own
header file multiboot2.h, GRUB, and the kernels that read it.

Source: Multiboot2 Specification 2.0, 3.6.
"""

from __future__ import annotations

from struct import Struct, pack

from pykvm.boot.multiboot_kernel import (
    LOADER_NAME,
    command_line,
    kernel_of,
    memory_kib,
    place_modules,
)
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pykvm.boot.image import Image, Setup
    from pykvm.boot.multiboot_sections import Sections
    from pykvm.boot.plan import Plan
    from pykvm.tables import E820Entry, Tables

__all__ = ["information"]

TAG_ALIGN = 8
END, CMDLINE, BOOT_LOADER_NAME, MODULE, BASIC_MEMINFO, MMAP, ELF_SECTIONS = 0, 1, 2, 3, 4, 6, 9
SMBIOS, ACPI_OLD, ACPI_NEW, LOAD_BASE_ADDR = 13, 14, 15, 21

_TAG = Struct("<II")
_MEMORY = Struct("<QQII")

# SMBIOS Reference Specification 3.6, 5.2.2: the 64-bit entry point's anchor and, from offset 7 on,
# the version (major, minor, docrev), its own revision, and the size and place of the structures.
SMBIOS_ANCHOR = b"_SM3_"
SMBIOS_ENTRY = Struct("<BBBBBIQ")
SMBIOS_ENTRY_OFFSET = 7

# ACPI Specification 6.5, 5.2.5.3: the RSDP of revision 0 and the place of the later ones' length.
RSDP_OLD_SIZE = 20
RSDP_REVISION = 15
RSDP_LENGTH = Struct("<I")


def information(
    plan: Plan,
    image: Image,
    setup: Setup,
    tables: Tables,
    load_base: int | None,
) -> bytes:
    """The information structure; what it points to is placed."""
    parts = [
        (CMDLINE, command_line(image, setup)),
        (BOOT_LOADER_NAME, LOADER_NAME),
        *_modules(plan, setup),
        *_memory(plan.memory_map),
        *_sections(plan, kernel_of(image).sections),
        *_smbios(tables),
        *_root_pointer(tables),
    ]
    if load_base is not None:
        parts.append((LOAD_BASE_ADDR, pack("<I", load_base)))
    parts.append((END, b""))
    tags = b"".join(_tag(kind, content) for kind, content in parts)
    return _TAG.pack(_TAG.size + len(tags), 0) + tags


def _tag(kind: int, content: bytes) -> bytes:
    size = _TAG.size + len(content)
    return _TAG.pack(kind, size) + content + bytes(-size % TAG_ALIGN)


def _modules(plan: Plan, setup: Setup) -> Iterator[tuple[int, bytes]]:
    for place, words in place_modules(plan, setup):
        yield MODULE, pack("<II", place.start, place.end) + words


def _memory(entries: Sequence[E820Entry]) -> Iterator[tuple[int, bytes]]:
    yield BASIC_MEMINFO, pack("<II", *memory_kib(entries))
    listed = b"".join(_MEMORY.pack(*entry, 0) for entry in entries)
    yield MMAP, pack("<II", _MEMORY.size, 0) + listed


def _sections(plan: Plan, sections: Sections | None) -> Iterator[tuple[int, bytes]]:
    if sections is not None and (table := sections.place(plan)) is not None:
        numbers = pack("<III", len(sections), sections.shape.size, sections.names)
        yield ELF_SECTIONS, numbers + table


def _smbios(tables: Tables) -> Iterator[tuple[int, bytes]]:
    """SMBIOS's version and structures."""
    for piece in tables.pieces:
        if piece.data.startswith(SMBIOS_ANCHOR):
            entry = SMBIOS_ENTRY.unpack_from(piece.data, SMBIOS_ENTRY_OFFSET)
            major, minor, *_, address = entry
            for structures in tables.pieces:
                if structures.address == address:
                    yield SMBIOS, pack("<BB6x", major, minor) + structures.data


def _root_pointer(tables: Tables) -> Iterator[tuple[int, bytes]]:
    """ACPI's, as it was in revision 0 and, if it is a later one, whole."""
    for piece in tables.pieces:
        if piece.address <= tables.rsdp < piece.address + len(piece.data):
            pointer = piece.data[tables.rsdp - piece.address :]
            yield ACPI_OLD, pointer[:RSDP_OLD_SIZE]
            if pointer[RSDP_REVISION] >= 2:
                (length,) = RSDP_LENGTH.unpack_from(pointer, RSDP_OLD_SIZE)
                yield ACPI_NEW, pointer[:length]
