"""ELF notes: what a file says about itself to those who load it.

A note is three words of 4 bytes (the sizes of name and description, and a type), the owner's name,
and a description.  Name and description are padded, to 4 bytes or, where p_align says so, to 8.
Linkers put notes of both kinds into one segment, and QEMU rounds the sizes where others round
offsets, so a note of an owner that matters is taken in any of these forms.

Sources: gABI 4.1 chapter 5, "Note Section"; Linux, fs/binfmt_elf.c (parse_elf_property); QEMU,
include/hw/elf_ops.h; Xen, common/libelf/libelf-dominfo.c, which looks at sections too.
"""

from __future__ import annotations

from struct import Struct

from pykvm.boot.elf import ELFMAG, read_header, read_program_headers
from pykvm.errors import LoadError
from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import TypeAlias

    from pykvm.boot.elf import ElfHeader
    from pykvm.boot.source import Source

    #: Where a description starts, and where it ends with its padding: from where the header ends
    #: and the two sizes.
    Place: TypeAlias = Callable[[int, int, int], tuple[int, int]]

__all__ = [
    "LINUX",
    "XEN",
    "XEN_ELFNOTE_PHYS32_ENTRY",
    "Note",
    "has_note",
    "named_protocol",
    "read_notes",
    "unreadable_entry_note",
]

PT_NOTE = 4
SHT_NOTE = 7

# The owners, and what their notes say: a Linux kernel has some of its own from 2.6.22 on; Xen's
# number 18 is PVH's entry (Xen's public/elfnote.h); pykvm's number 1 names a boot protocol.
LINUX, XEN, PYKVM = "Linux", "Xen", "pykvm"
XEN_ELFNOTE_PHYS32_ENTRY = 18
PYKVM_PROTOCOL = 1
_KNOWN = (LINUX, XEN, PYKVM)

_HEADER = Struct("<III")
# All notes of a kernel take some hundred bytes; a hostile file may have a million.  To look for one
# that is unreadable is faster than to read them.
_MOST_BYTES = 64 << 10
_MOST_SEARCHED = 16 << 20
_MOST_SECTIONS = 4096
# The type and the owner of a PVH note, wherever they stand.
_ENTRY_NOTE = XEN_ELFNOTE_PHYS32_ENTRY.to_bytes(4, "little") + b"Xen"


class Note(NamedTuple):
    """One note: whose it is, its number among the owner's, and what it says."""

    owner: str
    type: int
    desc: bytes


class _Area(NamedTuple):
    """A segment or a section of notes, and the alignment that it declares."""

    offset: int
    size: int
    alignment: int


def read_notes(source: Source) -> Sequence[Note]:
    """The notes of an x86 ELF file, from its segments and then its sections; none of another file.

    A note that can be read in two ways comes twice, first as the alignment of its segment has it.

    Never raises: loading the file says what is wrong with it.  What is damaged ends an area.
    """
    return source.once(_notes_of)


def _notes_of(source: Source) -> Sequence[Note]:
    return [
        note
        for area, content in _contents(source, _MOST_BYTES)
        for note in _notes(content, 8 if area.alignment == 8 else 4)
    ]


def has_note(source: Source, owner: str, type: int | None = None) -> bool:
    """Whether the file has a note of that owner and, if it is given, of that type."""
    return any(note.owner == owner and type in (None, note.type) for note in read_notes(source))


def named_protocol(source: Source) -> str | None:
    """The boot protocol that the file asks pykvm for by name, if it does."""
    for note in read_notes(source):
        if note.owner == PYKVM and note.type == PYKVM_PROTOCOL:
            return note.desc.rstrip(b"\0").decode("ascii", "backslashreplace")
    return None


def unreadable_entry_note(source: Source) -> int | None:
    """Where in the file something stands that looks like a PVH note but cannot be read as one.

    For a file of whose notes `read_notes` gives no XEN_ELFNOTE_PHYS32_ENTRY.
    """
    for area, content in _contents(source, _MOST_SEARCHED):
        at = content.find(_ENTRY_NOTE)
        if at >= 0:
            return area.offset + at
    return None


def _contents(source: Source, budget: int) -> Iterator[tuple[_Area, bytes]]:
    """The areas of notes with their bytes, `budget` of them at most."""
    if bytes(source.part(0, len(ELFMAG))) != ELFMAG:
        return
    try:
        header = read_header(source)
        segments = list(_segments(source, header))
        for area in (*segments, *_sections(source, header, segments)):
            size = min(area.size, budget)
            budget -= size
            if size:
                yield area, bytes(source.part(area.offset, size))
    except LoadError:
        return


def _segments(source: Source, header: ElfHeader) -> Iterator[_Area]:
    for one in read_program_headers(source, header):
        if one.p_type == PT_NOTE:
            yield _Area(one.p_offset, one.p_filesz, one.p_align)


def _sections(source: Source, header: ElfHeader, segments: Iterable[_Area]) -> Iterator[_Area]:
    """The sections of notes that are in no segment of notes."""
    shape = header.elf_class.section_header
    count = min(header.e_shnum, _MOST_SECTIONS)
    if not header.e_shoff or header.e_shentsize != shape.size:
        return
    seen = [(one.offset, one.offset + one.size) for one in segments]
    table = source.part(header.e_shoff, count * shape.size)
    for fields in shape.iter_unpack(table[: len(table) // shape.size * shape.size]):
        _, sh_type, _, _, sh_offset, sh_size, _, _, sh_addralign, _ = fields
        if sh_type == SHT_NOTE and not any(
            start <= sh_offset and sh_offset + sh_size <= end for start, end in seen
        ):
            yield _Area(sh_offset, sh_size, sh_addralign)


def _notes(content: bytes, declared: int) -> Iterator[Note]:
    """The notes in `content` as it is declared, then those of known owners as others pad them."""
    seen = set()
    others = (_by_offset(4), _by_size(8)) if declared == 8 else (_by_offset(8),)
    for number, place in enumerate((_by_offset(declared), *others)):
        for position, note in _split(content, place):
            key = position, note.desc
            if number == 0 or (note.owner in _KNOWN and key not in seen):
                seen.add(key)
                yield note


def _by_offset(alignment: int) -> Place:
    def place(name: int, namesz: int, descsz: int) -> tuple[int, int]:
        desc = _up(name + namesz, alignment)
        return desc, _up(desc + descsz, alignment)

    return place


def _by_size(alignment: int) -> Place:
    def place(name: int, namesz: int, descsz: int) -> tuple[int, int]:
        desc = name + _up(namesz, alignment)
        return desc, desc + _up(descsz, alignment)

    return place


def _up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


def _split(content: bytes, place: Place) -> Iterator[tuple[int, Note]]:
    """Each note with its position."""
    position = 0
    while position + _HEADER.size <= len(content):
        namesz, descsz, kind = _HEADER.unpack_from(content, position)
        name = position + _HEADER.size
        desc, end = place(name, namesz, descsz)
        if desc + descsz > len(content):
            return
        owner = content[name : name + namesz].rstrip(b"\0").decode("ascii", "backslashreplace")
        yield position, Note(owner, kind, content[desc : desc + descsz])
        position = end
