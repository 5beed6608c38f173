"""The section headers of an ELF kernel, which multiboot loaders hand over for its symbols.

All sections are to be in memory.  Those that are part of no segment (symbols, names, debugging
information) are put somewhere, and their headers say where: sh_addr.

Source: Multiboot Specification 0.6.96, 3.3 (syms); Multiboot2 Specification 2.0, 3.6.7.
"""

from __future__ import annotations

from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple

if TYPE_CHECKING:
    from struct import Struct

    from pykvm.boot.elf import ElfHeader
    from pykvm.boot.plan import Plan
    from pykvm.boot.source import Source

__all__ = ["Sections", "read_sections"]

SHT_NULL, SHT_NOBITS = 0, 8
SHF_ALLOC = 2
PAGE_SIZE = 0x1000


class Sections:
    """The section header table of `source`, in entries of `shape`, as in the file.

    `names` is the number of the section with their names (e_shstrndx).
    """

    def __init__(self, source: Source, shape: Struct, table: bytes, names: int) -> None:
        self._source = source
        self._table = table
        self.shape = shape
        self.names = names

    def __len__(self) -> int:
        return len(self._table) // self.shape.size

    def place(self, plan: Plan) -> bytes | None:
        """Find places for the sections that are in none yet; returns the table that describes them.

        None where they find no room: a kernel is worth running without its symbols.
        """
        headers = [SectionHeader(*fields) for fields in self.shape.iter_unpack(self._table)]
        offsets: dict[int, int] = {}
        size = 0
        for number, header in enumerate(headers):
            if header.is_elsewhere:
                if header.sh_offset + header.sh_size > len(self._source):
                    return None
                alignment = min(max(header.sh_addralign, 1), PAGE_SIZE)
                offsets[number] = -(-size // alignment) * alignment
                size = offsets[number] + header.sh_size
        if not plan.has_room_after(size):
            return None
        block = plan.after("sections", size)
        for number, offset in offsets.items():
            header = headers[number]._replace(sh_addr=block.start + offset)
            headers[number] = header
            data = self._source.part(header.sh_offset, header.sh_size)
            plan.fill(header.sh_addr, data)
        return b"".join(self.shape.pack(*header) for header in headers)


class SectionHeader(NamedTuple):
    """The fields of Elf32_Shdr and Elf64_Shdr, in their order."""

    sh_name: int
    sh_type: int
    sh_flags: int
    sh_addr: int
    sh_offset: int
    sh_size: int
    sh_link: int
    sh_info: int
    sh_addralign: int
    sh_entsize: int

    @property
    def is_elsewhere(self) -> bool:
        """Whether it has bytes in the file that are part of no segment."""
        in_memory = self.sh_flags & SHF_ALLOC or self.sh_addr
        return bool(self.sh_size and not in_memory and self.sh_type not in (SHT_NULL, SHT_NOBITS))


def read_sections(source: Source, header: ElfHeader) -> Sections | None:
    """The table, or None if there is none that makes sense."""
    shape = header.elf_class.section_header
    end = header.e_shoff + header.e_shnum * shape.size
    if header.e_shentsize != shape.size or not header.e_shnum or end > len(source):
        return None
    return Sections(
        source, shape, bytes(source.part(header.e_shoff, end - header.e_shoff)), header.e_shstrndx
    )
