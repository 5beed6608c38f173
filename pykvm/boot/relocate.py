"""Placing a position-independent executable: what `rcrt1.o` would do, done by the loader.

A static PIE is linked at zero and lists the words that hold addresses.  Adding the load address to
each is all it takes, if relative relocations are all it has; every other kind needs a symbol looked
up or a resolver run, which is a dynamic linker's work and refused by name.

Source: gABI 4.1 chapter 5 "Dynamic Section" (with DT_RELR of 2022); psABI i386 and x86-64, 4.4.
"""

from __future__ import annotations

from bisect import bisect_right
from operator import itemgetter

from pykvm.boot.elf import EM_X86_64, PT_DYNAMIC, relocation_name
from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pykvm.boot.elf import ElfHeader, ProgramHeader
    from pykvm.boot.image import Segment
    from pykvm.boot.source import Source

__all__ = ["DT_NEEDED", "read_dynamic", "relocate"]

DT_NULL, DT_NEEDED = 0, 1
DT_RELA, DT_RELASZ, DT_RELAENT = 7, 8, 9
DT_REL, DT_RELSZ, DT_RELENT = 17, 18, 19
DT_RELRSZ, DT_RELR, DT_RELRENT = 35, 36, 37
DT_PLTRELSZ, DT_PLTREL, DT_JMPREL = 2, 20, 23

# Dynamic sections have some 30 entries, large programs a few hundred thousand relocations.
_MOST_DYNAMIC = 4096
_MOST_RELOCATIONS = 1 << 20

R_NONE = 0
# R_386_RELATIVE and R_X86_64_RELATIVE: one number for both.
R_RELATIVE = 8
R_X86_64_RELATIVE64 = 38


def read_dynamic(
    source: Source, header: ElfHeader, program_headers: Sequence[ProgramHeader]
) -> dict[int, int]:
    """Read the dynamic section as {d_tag: d_val}, empty where there is none.

    What stands beyond the first 4,096 entries is ignored.  Raises LoadError if it reaches past the
    end of the file.
    """
    dynamic = next((one for one in program_headers if one.p_type == PT_DYNAMIC), None)
    if dynamic is None:
        return {}
    end = dynamic.p_offset + dynamic.p_filesz
    if end > len(source):
        raise source.error(
            f"dynamic section (program header {dynamic.number}) ends at file offset {end:#x}, "
            f"past the end of the file ({len(source):#x})"
        )
    shape = header.elf_class.dynamic
    size = min(dynamic.p_filesz // shape.size, _MOST_DYNAMIC) * shape.size
    found: dict[int, int] = {}
    for tag, value in shape.iter_unpack(source.part(dynamic.p_offset, size)):
        if tag == DT_NULL:
            break
        found[tag] = value
    return found


def relocate(
    source: Source,
    header: ElfHeader,
    dynamic: Mapping[int, int],
    segments: Iterable[Segment],
    bias: int,
) -> tuple[Segment, ...]:
    """Return `segments`, which already lie `bias` higher than linked, with their words relocated.

    A guest may do the same again at its start, as a static PIE usually does: relocations that add
    to what is there are taken out of their tables once applied.

    Raises LoadError for a relocation that is not relative, or whose word lies outside the file's
    bytes in every segment, for a table of relocations that does, and for more than a million.
    """
    segments = list(segments)
    images = [bytearray(bytes(segment.data)) for segment in segments]
    words = _Words(source, segments, images, bias)
    left = _MOST_RELOCATIONS
    for table in _tables(source, header, dynamic, words):
        for offset, kind, addend in table.unpack(table.content):
            left -= 1
            if left < 0:
                raise source.error(
                    f"has more than {_MOST_RELOCATIONS} relocations",
                    hint="link it at a fixed address: -static -no-pie",
                )
            width = _width(source, header, offset, kind)
            if width:
                word = words.at(offset, width, "word to relocate")
                value = int.from_bytes(word, "little") if addend is None else addend
                word[:] = ((value + bias) % (1 << width * 8)).to_bytes(width, "little")
        if table.spent:
            table.content[:] = table.spent * (len(table.content) // len(table.spent))
    return tuple(
        segment._replace(data=image) for segment, image in zip(segments, images, strict=True)
    )


def _width(source: Source, header: ElfHeader, offset: int, kind: int) -> int:
    """Return how many bytes a relocation of this kind sets."""
    if kind == R_NONE:
        return 0
    if kind == R_RELATIVE:
        return header.elf_class.word
    if (header.e_machine, kind) == (EM_X86_64, R_X86_64_RELATIVE64):
        return 8
    raise source.error(
        f"needs the relocation {relocation_name(header.e_machine, kind)} at {offset:#x}: "
        "only a dynamic linker can apply it",
        hint="link it with -static -no-pie, or without undefined symbols and ifuncs",
    )


class _Words:
    """The file's bytes in the segments, by the address they were linked at."""

    def __init__(
        self,
        source: Source,
        segments: Sequence[Segment],
        images: Sequence[bytearray],
        bias: int,
    ) -> None:
        self._source = source
        parts = sorted(
            (
                (one.address - bias, memoryview(image))
                for one, image in zip(segments, images, strict=True)
            ),
            key=itemgetter(0),
        )
        # They do not overlap.
        self._starts = [start for start, _ in parts]
        self._images = [image for _, image in parts]

    def at(self, address: int, size: int, what: str) -> memoryview:
        number = bisect_right(self._starts, address) - 1
        if number >= 0:
            start = address - self._starts[number]
            found = self._images[number][start : start + size]
            if len(found) == size:
                return found
        raise self._source.error(
            f"{what} at {address:#x} ({size:#x} bytes) lies in no segment's part of the file",
            hint="the file is damaged: build it again",
        )


class _Table(NamedTuple):
    """A table of relocations in the segments.

    `unpack` yields (offset, kind, addend); the addend is None where it stands in the word itself.
    `spent` is an entry that does nothing, for tables that must not be applied a second time.
    """

    content: memoryview
    unpack: Callable[[memoryview], Iterator[tuple[int, int, int | None]]]
    spent: bytes = b""


def _tables(
    source: Source, header: ElfHeader, dynamic: Mapping[int, int], words: _Words
) -> Iterator[_Table]:
    shapes = header.elf_class
    mask = shapes.relocation_type_mask

    def find(name: str, tags: tuple[int, int, int | None], entry_size: int) -> memoryview:
        address, size = dynamic.get(tags[0]), dynamic.get(tags[1])
        if address is None or not size:
            return memoryview(bytearray())
        told = entry_size if tags[2] is None else dynamic.get(tags[2])
        if told != entry_size or size % entry_size:
            raise source.error(
                f"relocation table ({name}) has {size:#x} bytes in entries of {told}, "
                f"but an entry has {entry_size}"
            )
        return words.at(address, size, f"relocation table ({name})")

    def unpack_rel(table: memoryview) -> Iterator[tuple[int, int, None]]:
        for offset, info in shapes.rel.iter_unpack(table):
            yield offset, info & mask, None

    def unpack_rela(table: memoryview) -> Iterator[tuple[int, int, int]]:
        for offset, info, addend in shapes.rela.iter_unpack(table):
            yield offset, info & mask, addend

    rel = find("DT_REL", (DT_REL, DT_RELSZ, DT_RELENT), shapes.rel.size)
    rela = find("DT_RELA", (DT_RELA, DT_RELASZ, DT_RELAENT), shapes.rela.size)
    # The PLT's are listed apart, in the format that DT_PLTREL names.
    plt_shape = shapes.rela if dynamic.get(DT_PLTREL) == DT_RELA else shapes.rel
    plt = find("DT_JMPREL", (DT_JMPREL, DT_PLTRELSZ, None), plt_shape.size)
    relr = find("DT_RELR", (DT_RELR, DT_RELRSZ, DT_RELRENT), shapes.word)
    yield _Table(rel, unpack_rel, spent=bytes(shapes.rel.size))
    yield _Table(rela, unpack_rela)
    if plt_shape is shapes.rela:
        yield _Table(plt, unpack_rela)
    else:
        yield _Table(plt, unpack_rel, spent=bytes(shapes.rel.size))
    # A bitmap without a bit: it stands for the next words, none of which is meant.
    yield _Table(relr, unpack_relr(shapes.word), spent=(1).to_bytes(shapes.word, "little"))


def unpack_relr(word: int) -> Callable[[memoryview], Iterator[tuple[int, int, None]]]:
    """Return what unpacks DT_RELR tables of `word`-byte entries to (offset, R_RELATIVE, None).

    An even entry is the address of a word to relocate, an odd one a bitmap of the words after it.

    >>> table = memoryview(bytes.fromhex("0010000000000000 0500000000000000"))
    >>> [hex(offset) for offset, _, _ in unpack_relr(8)(table)]
    ['0x1000', '0x1010']
    """

    def unpack(table: memoryview) -> Iterator[tuple[int, int, None]]:
        following = 0
        for position in range(0, len(table), word):
            entry = int.from_bytes(table[position : position + word], "little")
            if entry & 1 == 0:
                yield entry, R_RELATIVE, None
                following = entry + word
            else:
                for bit in range(1, word * 8):
                    if entry >> bit & 1:
                        yield following + (bit - 1) * word, R_RELATIVE, None
                following += (word * 8 - 1) * word

    return unpack
