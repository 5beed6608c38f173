"""The segments of an ELF executable, for every protocol that enters one.

Which program headers take memory, where they go, and whether code lies at the entry.
"""

from __future__ import annotations

from itertools import pairwise

from pykvm.boot import elf
from pykvm.boot.image import Segment
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.boot.elf import ProgramHeader
    from pykvm.boot.source import Source

__all__ = ["check_entry", "extents", "loaded_headers", "physical_addresses", "place_segments"]


def loaded_headers(
    source: Source, program_headers: Sequence[ProgramHeader]
) -> Sequence[ProgramHeader]:
    """Return the program headers that take memory.

    Raises LoadError where there are none, and for a program that wants a dynamic linker.
    """
    _refuse_interpreter(source, program_headers)
    loaded = [one for one in program_headers if one.p_type == elf.PT_LOAD and one.p_memsz]
    if not loaded:
        raise source.error(
            f"has no loadable segment (none of {len(program_headers)} program headers is PT_LOAD "
            "with p_memsz > 0)"
        )
    return loaded


def place_segments(
    source: Source, loaded: Sequence[ProgramHeader], addresses: Sequence[int]
) -> tuple[Segment, ...]:
    """Return a segment for each program header, at the address given for it.

    Raises LoadError where two overlap.
    """
    segments = tuple(
        Segment(
            name=f"segment {one.number}",
            address=address,
            data=source.slice(one.p_offset, one.p_filesz),
            size=one.p_memsz,
            executable=bool(one.p_flags & elf.PF_X),
            writable=bool(one.p_flags & elf.PF_W),
        )
        for one, address in zip(loaded, addresses, strict=True)
    )
    _refuse_overlap(source, segments)
    return segments


def physical_addresses(loaded: Sequence[ProgramHeader]) -> list[int]:
    """Return where the linker wants each segment: p_paddr, or p_vaddr where it set none."""
    if any(one.p_paddr for one in loaded):
        return [one.p_paddr for one in loaded]
    return [one.p_vaddr for one in loaded]


def extents(loaded: Sequence[ProgramHeader], bias: int = 0) -> list[tuple[int, int]]:
    """Return the (start, end) in linked addresses, plus `bias`, that symbols can lie in."""
    return [(one.p_vaddr + bias, one.p_vaddr + bias + one.p_memsz) for one in loaded]


def check_entry(
    source: Source,
    entry: int,
    segments: Sequence[Segment],
    loaded: Sequence[ProgramHeader],
    *,
    field: str = "e_entry",
) -> None:
    """Raise LoadError unless `entry`, which `field` of the file names, is code that it brings."""
    for segment in segments:
        if not segment.address <= entry < segment.end:
            continue
        if not segment.executable:
            raise source.error(
                f"entry {entry:#x} ({field}) lies in {segment.range}, which is not executable",
                hint="name the function to start with: ld -e _start",
            )
        if entry >= segment.address + len(segment.data):
            raise source.error(
                f"entry {entry:#x} ({field}) lies in the zero-filled part of {segment.range}"
            )
        return
    for segment, one in zip(segments, loaded, strict=True):
        if one.p_vaddr <= entry < one.p_vaddr + one.p_memsz:
            raise source.error(
                f"entry {entry:#x} ({field}) is a virtual address: {segment.name} is loaded at "
                f"{segment.address:#x} (p_paddr), and nothing maps it higher yet",
                hint="link the entry at its physical address, or link the segment where it loads",
            )
    hint = "name the function to start with: ld -e _start"
    raise source.error(f"entry {entry:#x} ({field}) lies in no segment", hint=hint)


def _refuse_interpreter(source: Source, program_headers: Sequence[ProgramHeader]) -> None:
    for one in program_headers:
        if one.p_type == elf.PT_INTERP:
            path = bytes(source.part(one.p_offset, min(one.p_filesz, 256)))
            name = path.partition(b"\0")[0].decode("ascii", "backslashreplace")
            raise source.error(
                f"is dynamically linked (PT_INTERP {name})",
                hint="link it with -static (a guest without an operating system: also -nostdlib)",
            )


def _refuse_overlap(source: Source, segments: Sequence[Segment]) -> None:
    ordered = sorted((segment.range for segment in segments), key=lambda one: one.start)
    for first, second in pairwise(ordered):
        if first.overlaps(second):
            raise source.error(
                f"{first} and {second} overlap",
                hint="two segments want the same memory: check the linker script's addresses",
            )
