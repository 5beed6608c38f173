"""ELF headers: read with `struct`, every field checked before it is used.

pyelftools reads well-formed files; a hypervisor is handed the others too, and must say what is
wrong with them.  Importing it also takes longer than running a small guest.  So the two headers
that say how to load a file are read here, and pyelftools is asked for what only it knows: the names
of the machines and relocations that pykvm refuses.

Source: System V ABI, generic part (gABI 4.1), chapters 4 and 5; psABI supplements for i386, x86-64.
"""

from __future__ import annotations

from struct import Struct

from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.boot.source import Source
    from pykvm.errors import LoadError

__all__ = [
    "ELF32",
    "ELF64",
    "ELFMAG",
    "ElfClass",
    "ElfHeader",
    "ProgramHeader",
    "machine_name",
    "read_header",
    "read_program_headers",
    "relocation_name",
]

ELFMAG = b"\x7fELF"
EI_CLASS, EI_DATA, EI_VERSION, EI_NIDENT = 4, 5, 6, 16
ELFCLASS32, ELFCLASS64 = 1, 2
ELFDATA2LSB, ELFDATA2MSB = 1, 2
EV_CURRENT = 1
ET_REL, ET_EXEC, ET_DYN, ET_CORE = 1, 2, 3, 4
EM_386, EM_X86_64 = 3, 62
PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3
PF_X, PF_W, PF_R = 1, 2, 4
PN_XNUM = 0xFFFF

_E_TYPE_OFFSET, _E_MACHINE_OFFSET = 16, 18


class ElfClass(NamedTuple):
    """How the structures of one ELF class (32 or 64 bits) lie in a file."""

    bits: int
    header: Struct
    program_header: Struct
    section_header: Struct
    symbol: Struct
    dynamic: Struct
    rel: Struct
    rela: Struct
    relocation_type_mask: int

    @property
    def name(self) -> str:
        """What an image of this class is called, "elf32" or "elf64"."""
        return f"elf{self.bits}"

    @property
    def word(self) -> int:
        """The size of an address in bytes."""
        return self.bits // 8


ELF32 = ElfClass(
    bits=32,
    header=Struct("<16sHHIIIIIHHHHHH"),
    program_header=Struct("<8I"),
    section_header=Struct("<10I"),
    symbol=Struct("<IIIBBH"),
    dynamic=Struct("<iI"),
    rel=Struct("<II"),
    rela=Struct("<IIi"),
    relocation_type_mask=0xFF,
)
ELF64 = ElfClass(
    bits=64,
    header=Struct("<16sHHIQQQIHHHHHH"),
    program_header=Struct("<IIQQQQQQ"),
    section_header=Struct("<IIQQQQIIQQ"),
    symbol=Struct("<IBBHQQ"),
    dynamic=Struct("<qQ"),
    rel=Struct("<QQ"),
    rela=Struct("<QQq"),
    relocation_type_mask=0xFFFFFFFF,
)
_CLASSES = {ELFCLASS32: ELF32, ELFCLASS64: ELF64}


class ElfHeader(NamedTuple):
    """The fields of Elf32_Ehdr and Elf64_Ehdr, in their order, after the class they came in."""

    elf_class: ElfClass
    e_ident: bytes
    e_type: int
    e_machine: int
    e_version: int
    e_entry: int
    e_phoff: int
    e_shoff: int
    e_flags: int
    e_ehsize: int
    e_phentsize: int
    e_phnum: int
    e_shentsize: int
    e_shnum: int
    e_shstrndx: int


class ProgramHeader(NamedTuple):
    """The fields of Elf64_Phdr (Elf32_Phdr has the same in another order), after its number."""

    number: int
    p_type: int
    p_flags: int
    p_offset: int
    p_vaddr: int
    p_paddr: int
    p_filesz: int
    p_memsz: int
    p_align: int


def read_header(source: Source) -> ElfHeader:
    """Read and check the ELF header of an x86 executable.

    Raises LoadError for everything else that starts with the ELF magic: a truncated header, another
    machine or byte order, an object file, a core dump, a table of program headers that cannot be.
    """
    return source.once(_header_of)


def _header_of(source: Source) -> ElfHeader:
    ident = bytes(source.part(0, EI_NIDENT))
    if len(source) < _E_MACHINE_OFFSET + 2:
        raise _truncated(source, "ELF header", _E_MACHINE_OFFSET + 2)
    _check_machine(source, ident)
    elf_class = _CLASSES.get(ident[EI_CLASS])
    if elf_class is None:
        raise source.error(
            f"ELF class (EI_CLASS) is {ident[EI_CLASS]}: neither 1 (32 bits) nor 2 (64 bits)"
        )
    if ident[EI_VERSION] != EV_CURRENT:
        raise source.error(f"ELF version (EI_VERSION) is {ident[EI_VERSION]}: only 1 exists")
    if len(source) < elf_class.header.size:
        raise _truncated(source, "ELF header", elf_class.header.size)
    header = ElfHeader(elf_class, *elf_class.header.unpack(source.part(0, elf_class.header.size)))
    if header.e_machine == EM_386 and elf_class is ELF64:
        raise source.error("is an ELF64 file for the Intel 80386 (e_machine 3): there is no such")
    _check_type(source, header)
    _check_program_header_table(source, header)
    return header


def read_program_headers(source: Source, header: ElfHeader) -> Sequence[ProgramHeader]:
    """Read every program header; the segments of type PT_LOAD are checked against the file.

    Raises LoadError where p_filesz exceeds p_memsz, a segment's bytes lie past the end of the file,
    or its memory past the end of the address space.
    """
    shape = header.elf_class.program_header
    table = source.part(header.e_phoff, header.e_phnum * shape.size)
    headers = []
    for number, fields in enumerate(shape.iter_unpack(table)):
        if header.elf_class is ELF32:
            p_type, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_flags, p_align = fields
            fields = (p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align)
        headers.append(ProgramHeader(number, *fields))
    for program_header in headers:
        if program_header.p_type == PT_LOAD:
            _check_segment(source, header, program_header)
    return headers


def machine_name(e_machine: int) -> str:
    """Name a machine as `readelf -h` does.

    >>> machine_name(183)
    'AArch64'
    """
    from elftools.elf.descriptions import describe_e_machine
    from elftools.elf.enums import ENUM_E_MACHINE

    name = next((name for name, number in ENUM_E_MACHINE.items() if number == e_machine), None)
    if name is None:
        return "an unknown machine"
    described: str = describe_e_machine(name)
    return name.removeprefix("EM_") if described == "<unknown>" else described


def relocation_name(e_machine: int, kind: int) -> str:
    """Name a relocation of the i386 or x86-64 psABI.

    >>> relocation_name(EM_X86_64, 37)
    'R_X86_64_IRELATIVE'
    """
    from elftools.elf.enums import ENUM_RELOC_TYPE_i386, ENUM_RELOC_TYPE_x64

    names = ENUM_RELOC_TYPE_x64 if e_machine == EM_X86_64 else ENUM_RELOC_TYPE_i386
    return next((name for name, number in names.items() if number == kind), f"type {kind}")


def _truncated(source: Source, what: str, size: int) -> LoadError:
    return source.error(
        f"{what} is truncated: the file has {len(source)} bytes, {size} are needed",
        hint="copy or build the file again",
    )


def _check_machine(source: Source, ident: bytes) -> None:
    """Refuse another machine before anything else: then nothing else about the file matters."""
    orders = {ELFDATA2LSB: "little", ELFDATA2MSB: "big"}
    order = orders.get(ident[EI_DATA])
    if order is None:
        raise source.error(f"byte order (EI_DATA) is {ident[EI_DATA]}: neither 1 nor 2")
    field = source.part(_E_MACHINE_OFFSET, 2)
    e_machine = int.from_bytes(field, "big" if order == "big" else "little")
    if e_machine not in (EM_386, EM_X86_64):
        raise source.error(
            f"built for {machine_name(e_machine)} (e_machine {e_machine})",
            hint="pykvm runs x86 guests: build it for x86-64 or i386",
        )
    if order == "big":
        raise source.error("is big-endian (EI_DATA 2); x86 is little-endian")


def _check_type(source: Source, header: ElfHeader) -> None:
    if header.e_type in (ET_EXEC, ET_DYN):
        return
    message, hint = _TYPES.get(header.e_type, ("of an unknown type", ""))
    raise source.error(f"is {message} (e_type {header.e_type})", hint=hint)


_TYPES = {
    0: ("an ELF file of no type", ""),
    ET_REL: ("an object file: link it first", "ld -o guest.elf FILE.o"),
    ET_CORE: ("a core dump, not a program", ""),
}


def _check_program_header_table(source: Source, header: ElfHeader) -> None:
    entry_size = header.elf_class.program_header.size
    if header.e_phnum == 0:
        raise source.error(
            "has no program headers (e_phnum 0): nothing says what to load",
            hint="link it with ld, and do not strip its program headers",
        )
    if header.e_phnum == PN_XNUM:
        raise source.error("has 65535 or more program headers (e_phnum PN_XNUM)")
    if header.e_phentsize != entry_size:
        raise source.error(
            f"program header size (e_phentsize) is {header.e_phentsize}, "
            f"in ELF{header.elf_class.bits} it is {entry_size}"
        )
    end = header.e_phoff + header.e_phnum * entry_size
    if end > len(source):
        raise source.error(
            f"{header.e_phnum} program headers (e_phnum) at {header.e_phoff:#x} (e_phoff) "
            f"end at {end:#x}, past the end of the file ({len(source):#x})",
            hint="the file is truncated or damaged: copy or build it again",
        )


def _check_segment(source: Source, header: ElfHeader, segment: ProgramHeader) -> None:
    name = f"segment {segment.number}"
    if segment.p_filesz > segment.p_memsz:
        raise source.error(
            f"{name} has more bytes in the file than in memory "
            f"(p_filesz {segment.p_filesz:#x} > p_memsz {segment.p_memsz:#x})"
        )
    end = segment.p_offset + segment.p_filesz
    if segment.p_filesz and end > len(source):
        raise source.error(
            f"{name} ends at file offset {end:#x} (p_offset {segment.p_offset:#x} + "
            f"p_filesz {segment.p_filesz:#x}), past the end of the file ({len(source):#x})",
            hint="the file is truncated or damaged: copy or build it again",
        )
    bits = header.elf_class.bits
    for field in ("p_vaddr", "p_paddr"):
        address = getattr(segment, field)
        if address + segment.p_memsz > 1 << bits:
            raise source.error(
                f"{name} ends past the {bits}-bit address space "
                f"({field} {address:#x} + p_memsz {segment.p_memsz:#x})"
            )
