"""The segments of an ELF file: which of them are loaded, and where in guest memory they go."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from pykvm.boot import elf
from pykvm.boot.image import Segment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.boot.elf import ProgramHeader
    from pykvm.boot.source import Source

__all__ = ["loadable", "physical", "segments_at"]


def loadable(source: Source, program_headers: Sequence[ProgramHeader]) -> list[ProgramHeader]:
    """The program headers of what is to be in memory.

    Raises LoadError if there is none, or if the file needs a dynamic linker.
    """
    _refuse_interpreter(source, program_headers)
    loaded = [one for one in program_headers if one.p_type == elf.PT_LOAD and one.p_memsz]
    if not loaded:
        raise source.error(
            f"has no loadable segment (none of {len(program_headers)} program headers is PT_LOAD "
            "with p_memsz > 0)"
        )
    return loaded


def physical(loaded: Sequence[ProgramHeader]) -> list[int]:
    """Where each goes: at its p_paddr or, where the linker set none at all, at its p_vaddr."""
    if any(one.p_paddr for one in loaded):
        return [one.p_paddr for one in loaded]
    return [one.p_vaddr for one in loaded]


def segments_at(
    source: Source, loaded: Sequence[ProgramHeader], addresses: Sequence[int]
) -> tuple[Segment, ...]:
    """Each of `loaded` at its address.  Raises LoadError where two of them overlap."""
    segments = tuple(
        Segment(
            name=f"segment {one.number}",
            address=address,
            data=source.data[one.p_offset : one.p_offset + one.p_filesz],
            size=one.p_memsz,
            executable=bool(one.p_flags & elf.PF_X),
            writable=bool(one.p_flags & elf.PF_W),
        )
        for one, address in zip(loaded, addresses, strict=True)
    )
    _refuse_overlap(source, segments)
    return segments


def _refuse_interpreter(source: Source, program_headers: Sequence[ProgramHeader]) -> None:
    for one in program_headers:
        if one.p_type == elf.PT_INTERP:
            path = bytes(source.data[one.p_offset : one.p_offset + min(one.p_filesz, 256)])
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
