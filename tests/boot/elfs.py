"""ELF files of any shape, sound or not, built field by field."""

from __future__ import annotations

import struct
from typing import NamedTuple

PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3
ET_REL, ET_EXEC, ET_DYN, ET_CORE = 1, 2, 3, 4
EM_386, EM_X86_64 = 3, 62
R, W, X = 4, 2, 1

STB_LOCAL, STB_GLOBAL, STB_WEAK = 0, 1, 2
STT_NOTYPE, STT_OBJECT, STT_FUNC, STT_SECTION, STT_FILE = 0, 1, 2, 3, 4
SHN_ABS = 0xFFF1

HLT = b"\xf4"


class Part(NamedTuple):
    """A program header and the bytes it points to; None is filled in from the others."""

    data: bytes = HLT
    vaddr: int = 0x10_0000
    flags: int = R | X
    type: int = PT_LOAD
    paddr: int | None = None
    memsz: int | None = None
    filesz: int | None = None
    offset: int | None = None
    align: int = 0x1000


class Sym(NamedTuple):
    """One entry of the symbol table."""

    name: str
    value: int
    size: int = 0
    type: int = STT_FUNC
    binding: int = STB_GLOBAL
    section: int = 1


def elf(
    *parts: Part,
    bits: int = 64,
    machine: int | None = None,
    entry: int | None = None,
    type: int = ET_EXEC,
    symbols: tuple[Sym, ...] = (),
    **fields: int,
) -> bytes:
    """An ELF file of `parts`; `fields` replace fields of its header by name (e_phnum=0)."""
    parts = parts or (Part(),)
    wide = bits == 64
    header_size, entry_size = (64, 56) if wide else (52, 32)
    offset = header_size + entry_size * len(parts)
    headers, body = b"", b""
    for part in parts:
        filesz = len(part.data) if part.filesz is None else part.filesz
        memsz = max(filesz, len(part.data)) if part.memsz is None else part.memsz
        where = offset + len(body) if part.offset is None else part.offset
        paddr = part.vaddr if part.paddr is None else part.paddr
        if wide:
            headers += struct.pack(
                "<IIQQQQQQ",
                *(part.type, part.flags, where, part.vaddr, paddr, filesz, memsz, part.align),
            )
        else:
            headers += struct.pack(
                "<IIIIIIII",
                *(part.type, where, part.vaddr, paddr, filesz, memsz, part.flags, part.align),
            )
        body += part.data
    values = {
        "ei_magic": 0x464C457F,
        "ei_class": 2 if wide else 1,
        "ei_data": 1,
        "ei_version": 1,
        "e_type": type,
        "e_machine": machine or (EM_X86_64 if wide else EM_386),
        "e_version": 1,
        "e_entry": parts[0].vaddr if entry is None else entry,
        "e_phoff": header_size,
        "e_shoff": 0,
        "e_flags": 0,
        "e_ehsize": header_size,
        "e_phentsize": entry_size,
        "e_phnum": len(parts),
        "e_shentsize": 64 if wide else 40,
        "e_shnum": 0,
        "e_shstrndx": 0,
    }
    sections = b""
    if symbols:
        values["e_shoff"] = offset + len(body)
        values["e_shnum"] = 3
        sections = _sections(wide, values["e_shoff"], symbols)
    assert fields.keys() <= values.keys()
    values.update(fields)
    address = "Q" if wide else "I"
    header = struct.pack(f"<IBBB9xHHI3{address}IHHHHHH", *values.values())
    return header + headers + body + sections


def sectioned(
    content: bytes, *, type: int = 7, align: int = 4, bits: int = 64, code: bytes = HLT
) -> bytes:
    """An ELF file with `content` in a section, of notes by default, that is in no segment."""
    shape = "<IIQQQQIIQQ" if bits == 64 else "<10I"
    part = Part(code)
    offset = len(elf(part, bits=bits))
    section = struct.pack(shape, 0, type, 0, 0, offset, len(content), 0, 0, align, 0)
    file = elf(part, bits=bits, e_shoff=offset + len(content), e_shnum=2)
    return file + content + bytes(len(section)) + section


def _sections(wide: bool, start: int, symbols: tuple[Sym, ...]) -> bytes:
    """The section headers (null, .symtab, .strtab) and then the two tables."""
    shape, symbol_size = ("<IIQQQQIIQQ", 24) if wide else ("<IIIIIIIIII", 16)
    names = b"\0"
    table = bytes(symbol_size)
    for symbol in symbols:
        name = names.find(symbol.name.encode() + b"\0")
        if name <= 0:
            name = len(names)
            names += symbol.name.encode() + b"\0"
        info = symbol.binding << 4 | symbol.type
        if wide:
            table += struct.pack("<IBBHQQ", name, info, 0, symbol.section, *symbol[1:3])
        else:
            table += struct.pack("<IIIBBH", name, *symbol[1:3], info, 0, symbol.section)
    first = start + 3 * struct.calcsize(shape)
    return (
        bytes(struct.calcsize(shape))
        + struct.pack(shape, 0, 2, 0, 0, first, len(table), 2, 1, 8, symbol_size)
        + struct.pack(shape, 0, 3, 0, 0, first + len(table), len(names), 0, 0, 1, 0)
        + table
        + names
    )


def dynamic(*entries: tuple[int, int], bits: int = 64) -> bytes:
    """A dynamic section of (d_tag, d_val) and the DT_NULL that ends it."""
    shape = "<qQ" if bits == 64 else "<iI"
    return b"".join(struct.pack(shape, *entry) for entry in (*entries, (0, 0)))
