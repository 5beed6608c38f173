"""<linux/kvm.h> as the compiler of this machine sees it: macros, values, structs.

The values come from a C program that is compiled and run, the members of structs from the debug
information of an object file, so that nothing here parses C.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from elftools.elf.elffile import ELFFile

INCLUDE = "#include <stddef.h>\n#include <linux/kvm.h>\n#define PAGE_SIZE 4096\n"
FILES = ("linux/kvm.h", "asm/kvm.h")


class Place(NamedTuple):
    """Where a member lies in its struct, in bits; a flexible array has width 0."""

    offset: int
    width: int


class Header:
    """The kernel header, compiled in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.macros = dict(self._macros())
        self.structs = dict(self._structs())

    def _gcc(self, source: str, *options: str) -> str:
        path = self.folder / "header.c"
        path.write_text(INCLUDE + source)
        command = ["gcc", "-w", *options, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _macros(self) -> Iterator[tuple[str, str]]:
        """Name every macro without parameters that the header defines, and its text."""
        file = ""
        for line in self._gcc("", "-E", "-dD").splitlines():
            marker = re.match(r'# \d+ "([^"]+)"', line)
            macro = re.match(r"#define (\w+)(?: (.*))?$", line)
            if marker:
                file = marker[1]
            elif macro and file.endswith(FILES):
                yield macro[1], macro[2] or ""

    def evaluate(self, expressions: Sequence[str]) -> list[int]:
        """Return the values of integer constant expressions, as unsigned 64-bit integers."""
        rows = ",\n".join(f"(unsigned long long)({text})" for text in expressions)
        program = self.folder / "values"
        self._gcc(
            "#include <stdio.h>\n"
            f"static const unsigned long long values[] = {{{rows}}};\n"
            "int main(void) { for (int i = 0; i < sizeof values / sizeof *values; i++)"
            ' printf("%llu\\n", values[i]); }\n',
            "-o",
            str(program),
        )
        output = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
        return [int(line) for line in output.split()]

    def _structs(self) -> Iterator[tuple[str, dict[str, Place]]]:
        """Name every struct kvm_..., with the places of its members by path."""
        target = self.folder / "header.o"
        self._gcc("", "-c", "-g", "-fno-eliminate-unused-debug-types", "-o", str(target))
        with target.open("rb") as file:
            dwarf = ELFFile(file).get_dwarf_info()
            for unit in dwarf.iter_CUs():
                for die in unit.get_top_DIE().iter_children():
                    name = _name(die)
                    is_struct = die.tag == "DW_TAG_structure_type" and die.has_children
                    if is_struct and name.startswith("kvm_"):
                        yield name, dict(_members(die, "", 0))


def _name(die: Any) -> str:
    attribute = die.attributes.get("DW_AT_name")
    return "" if attribute is None else attribute.value.decode()


def _value(die: Any, attribute: str, default: int = 0) -> int:
    found = die.attributes.get(attribute)
    return default if found is None else int(found.value)


def _type(die: Any) -> Any:
    """Return what a member or an array is made of, seen through typedefs."""
    inner = die.get_DIE_from_attribute("DW_AT_type")
    while inner.tag in ("DW_TAG_typedef", "DW_TAG_const_type"):
        inner = inner.get_DIE_from_attribute("DW_AT_type")
    return inner


def _is_aggregate(die: Any) -> bool:
    return die.tag in ("DW_TAG_structure_type", "DW_TAG_union_type")


def _length(array: Any) -> int:
    length = 1
    for child in array.iter_children():
        if child.tag == "DW_TAG_subrange_type":
            length *= _value(child, "DW_AT_count", _value(child, "DW_AT_upper_bound", -1) + 1)
    return length


def _size(die: Any) -> int:
    if die.tag == "DW_TAG_array_type":
        return _length(die) * _size(_type(die))
    return _value(die, "DW_AT_byte_size")


def _members(die: Any, prefix: str, base: int) -> Iterator[tuple[str, Place]]:
    for child in die.iter_children():
        if child.tag != "DW_TAG_member" or _name(child).startswith("__empty_"):
            continue
        type_ = _type(child)
        path = prefix + _name(child)
        offset = base + 8 * _value(child, "DW_AT_data_member_location")
        if "DW_AT_bit_size" in child.attributes:
            place = base + _value(child, "DW_AT_data_bit_offset")
            yield path, Place(place, _value(child, "DW_AT_bit_size"))
        elif _is_aggregate(type_):
            yield from _members(type_, f"{path}." if _name(child) else prefix, offset)
        else:
            yield path, Place(offset, 8 * _size(type_))
            if type_.tag == "DW_TAG_array_type" and _is_aggregate(_type(type_)) and _length(type_):
                yield from _members(_type(type_), f"{path}[0].", offset)


def without(members: Mapping[str, Place], prefixes: Sequence[str]) -> dict[str, Place]:
    """Return `members` but for those whose path starts with one of `prefixes`."""
    return {path: place for path, place in members.items() if not path.startswith(tuple(prefixes))}
