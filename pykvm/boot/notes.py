"""ELF notes: what a file says about itself to those who load it.

Source: gABI 4.1 chapter 5 "Note Section"; words of 4 bytes in both classes.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from pykvm.boot.elf import ELFMAG, read_header, read_program_headers
from pykvm.errors import LoadError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pykvm.boot.source import Source

__all__ = ["LINUX", "XEN", "XEN_ELFNOTE_PHYS32_ENTRY", "Note", "named_protocol", "read_notes"]

PT_NOTE = 4

# The owners, and what their notes say: a Linux kernel has some of its own from 2.6.22 on; Xen's
# number 18 is PVH's entry (Xen's public/elfnote.h); pykvm's number 1 names a boot protocol.
LINUX, XEN, PYKVM = "Linux", "Xen", "pykvm"
XEN_ELFNOTE_PHYS32_ENTRY = 18
PYKVM_PROTOCOL = 1

_HEADER = Struct("<III")
# All notes of a kernel take some hundred bytes; a hostile file may have a million.
_MOST_BYTES = 64 << 10


class Note(NamedTuple):
    """One note: whose it is, its number among the owner's, and what it says."""

    owner: str
    type: int
    desc: bytes


def read_notes(source: Source) -> Iterator[Note]:
    """The notes of an x86 ELF file, by its program headers; none of any other file.

    Never raises: whoever loads the file says what is wrong with it.  What is damaged ends them.
    """
    if bytes(source.part(0, len(ELFMAG))) != ELFMAG:
        return
    try:
        program_headers = read_program_headers(source, read_header(source))
    except LoadError:
        return
    budget = _MOST_BYTES
    for one in program_headers:
        if one.p_type == PT_NOTE and budget > 0:
            size = min(one.p_filesz, budget)
            budget -= size
            content = bytes(source.part(one.p_offset, size))
            yield from _split(content, 8 if one.p_align == 8 else 4)


def named_protocol(source: Source) -> str | None:
    """The boot protocol that the file asks pykvm for by name, if it does."""
    for note in read_notes(source):
        if note.owner == PYKVM and note.type == PYKVM_PROTOCOL:
            return note.desc.rstrip(b"\0").decode("ascii", "backslashreplace")
    return None


def _split(content: bytes, alignment: int) -> Iterator[Note]:
    position = 0
    while position + _HEADER.size <= len(content):
        namesz, descsz, kind = _HEADER.unpack_from(content, position)
        name = position + _HEADER.size
        desc = -(-(name + namesz) // alignment) * alignment
        if desc + descsz > len(content):
            return
        owner = content[name : name + namesz].rstrip(b"\0").decode("ascii", "backslashreplace")
        yield Note(owner, kind, content[desc : desc + descsz])
        position = -(-(desc + descsz) // alignment) * alignment
