"""From addresses to lines of source, by the DWARF information of an ELF file."""

from __future__ import annotations

import os
from bisect import bisect_right
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["SourceLines"]

# Line programs are unpacked in Python: those of a whole kernel would take minutes.
_MOST = 4 << 20


class SourceLines:
    """The lines of one file, read at the first question.

    A file that is no ELF file, has no line information or more than 4 MiB of it knows none.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._rows: list[tuple[int, str]] | None = None

    def at(self, address: int) -> str:
        """The line that an instruction is of, as "main.c:41", or the empty string."""
        if self._rows is None:
            self._rows = sorted(self._read(), key=lambda row: row[0])
        found = bisect_right(self._rows, address, key=lambda row: row[0]) - 1
        return self._rows[found][1] if found >= 0 else ""

    def _read(self) -> list[tuple[int, str]]:
        from elftools.common.exceptions import DWARFError, ELFError
        from elftools.elf.elffile import ELFFile

        try:
            with open(self._path, "rb") as file:
                elf = ELFFile(file)
                section = elf.get_section_by_name(".debug_line")
                if section is None or section.data_size > _MOST:
                    return []
                return list(_rows(elf.get_dwarf_info()))
        # What a hostile file makes of a parser: any of these.
        except (OSError, ELFError, DWARFError, ValueError, KeyError, IndexError, TypeError):
            return []
        except (AttributeError, AssertionError, RecursionError, OverflowError):
            return []


def _rows(dwarf: Any) -> Iterator[tuple[int, str]]:
    """(address, line) wherever a line begins; an empty line where a sequence ends."""
    for unit in dwarf.iter_CUs():
        program = dwarf.line_program_for_CU(unit)
        if program is None:
            continue
        files = program["file_entry"]
        # Files are numbered from 0 since DWARF 5, from 1 before.
        first = 0 if program["version"] >= 5 else 1
        for entry in program.get_entries():
            state = entry.state
            if state is None:
                continue
            at = state.file - first
            if state.end_sequence or not 0 <= at < len(files):
                yield state.address, ""
            else:
                name = os.path.basename(files[at].name.decode(errors="replace"))
                yield state.address, f"{name}:{state.line}"
