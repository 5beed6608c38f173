"""ELF executables: loaded by their program headers, entered by the bare protocol.

A segment goes where its p_paddr says.  There is no other memory map than the identity at entry, so
that is where it runs as well: a kernel linked high must have its entry in a part that is linked at
its physical address, and map the rest itself.  If p_paddr is 0 in every segment the linker did not
care for it, and p_vaddr counts.

A static PIE (ET_DYN without PT_INTERP) is placed at 1 MiB, unless the caller names an address or it
is linked at 1 MiB or above already, and its relative relocations are applied.
"""

from __future__ import annotations

from pykvm.boot import bare, elf
from pykvm.boot.elf_segments import (
    check_entry,
    extents,
    loaded_headers,
    physical_addresses,
    place_segments,
)
from pykvm.boot.image import Image
from pykvm.boot.placement import check_reach
from pykvm.boot.symbols import Symbols, read_symbols
from pykvm.typed import TYPE_CHECKING
from pykvm.values.sizes import format_size
from pykvm.values.spelling import option
from pykvm.x86.state import Mode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.boot.elf import ElfHeader, ProgramHeader
    from pykvm.boot.image import Segment
    from pykvm.boot.source import Request, Source

__all__ = ["NAME", "PC", "load", "place", "recognise"]

NAME = "elf"
PC = False
PIE_ADDRESS = 1 << 20
_LARGEST_ALIGNMENT = 1 << 30

_MODES = {elf.EM_386: Mode.PROTECTED, elf.EM_X86_64: Mode.LONG}


def recognise(source: Source, request: Request) -> str | None:
    """Return why this is no ELF file, None if it is one."""
    del request
    start = bytes(source.part(0, len(elf.ELFMAG)))
    if start == elf.ELFMAG:
        return None
    return f"starts with {start.hex(' ')}, not with {elf.ELFMAG.hex(' ')}"


def load(source: Source, request: Request) -> Image:
    """Read an executable that needs no dynamic linker.

    Raises LoadError for anything else, and for headers that make no sense: each says which field
    has which value.
    """
    header = elf.read_header(source)
    program_headers = elf.read_program_headers(source, header)
    loaded = loaded_headers(source, program_headers)
    if header.e_type == elf.ET_DYN:
        _check_size(source, loaded, request)
        segments, bias = _place_pie(source, header, program_headers, loaded, request.address)
    else:
        segments, bias = _place_fixed(source, loaded, request.address), 0
    mode = request.mode or _MODES[header.e_machine]
    entry = header.e_entry + bias
    check_entry(source, entry, segments, loaded)
    check_reach(source, mode, entry)
    return Image(
        name=source.name,
        kind=header.elf_class.name,
        protocol=NAME,
        mode=mode,
        entry=entry,
        segments=segments,
        symbols=Symbols(
            lambda: read_symbols(source, header, bias=bias),
            extents=extents(loaded, bias),
        ),
        word=header.elf_class.word if mode is Mode.LONG else 4,
    )


place = bare.place


def _place_fixed(
    source: Source, loaded: Sequence[ProgramHeader], address: int | None
) -> tuple[Segment, ...]:
    """Return the segments where the linker put them."""
    if address is not None:
        raise source.error(
            f"cannot be placed at {address:#x}: it is linked at a fixed address (e_type ET_EXEC)",
            hint="leave the address out, link it there (ld -Ttext), or link it with -static-pie",
        )
    return place_segments(source, loaded, physical_addresses(loaded))


def _place_pie(
    source: Source,
    header: ElfHeader,
    program_headers: Sequence[ProgramHeader],
    loaded: Sequence[ProgramHeader],
    address: int | None,
) -> tuple[tuple[Segment, ...], int]:
    """Return the segments, placed and relocated, and the bias that was added to each address."""
    from pykvm.boot.relocate import DT_NEEDED, read_dynamic, relocate

    dynamic = read_dynamic(source, header, program_headers)
    if DT_NEEDED in dynamic:
        raise source.error(
            "is dynamically linked: it needs shared libraries (DT_NEEDED)",
            hint="link it with -static-pie, or -static -no-pie",
        )
    bias = _bias(source, loaded, address)
    segments = place_segments(source, loaded, [one.p_vaddr + bias for one in loaded])
    return relocate(source, header, dynamic, segments, bias), bias


def _check_size(source: Source, loaded: Sequence[ProgramHeader], request: Request) -> None:
    """Raise LoadError if the segments, of which relocation needs a copy, are larger than allowed.

    That is the guest's memory or, if its size is not known, twice the file's size.
    """
    size = sum(one.p_filesz for one in loaded)
    room = 2 * len(source) if request.room is None else request.room
    if size > room:
        where = "the file" if request.room is None else f"guest memory ({format_size(room)})"
        raise source.error(
            f"its {len(loaded)} segments have {size:#x} bytes in the file, more than {where} has",
            hint=f"give the guest more memory ({option('memory')}), or build the file again",
        )


def _bias(source: Source, loaded: Sequence[ProgramHeader], address: int | None) -> int:
    """Return what is added to every address of a PIE, a multiple of its alignment."""
    alignment = 1
    for one in loaded:
        if one.p_align & (one.p_align - 1) or one.p_align > _LARGEST_ALIGNMENT:
            raise source.error(
                f"segment {one.number} has alignment (p_align) {one.p_align:#x}: "
                f"neither 0 nor a power of two up to {_LARGEST_ALIGNMENT:#x}"
            )
        alignment = max(alignment, one.p_align)
    lowest = min(one.p_vaddr for one in loaded) // alignment * alignment
    if address is None:
        if lowest >= PIE_ADDRESS:
            return 0
        address = -(-PIE_ADDRESS // alignment) * alignment
    if address % alignment:
        raise source.error(
            f"cannot be placed at {address:#x}: its segments are aligned to {alignment:#x} "
            "(p_align)",
            hint=f"choose a multiple of {alignment:#x}, or link it with -z max-page-size=0x1000",
        )
    return address - lowest
