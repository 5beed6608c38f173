"""Reading a PVH kernel and putting it into a machine, with its start info.

The kernel starts in protected mode, flat and without paging.  EBX points to the start info, which
leads to the memory map, the modules (an initrd is the first), the command line and ACPI's root.

Source: Xen, public/arch-x86/hvm/start_info.h, and docs/misc/pvh.pandoc for the state of the CPU.
"""

from __future__ import annotations

from struct import Struct

from pykvm.boot import elf
from pykvm.boot.c_strings import c_string, command_line
from pykvm.boot.elf_segments import (
    check_entry,
    extents,
    loaded_headers,
    physical_addresses,
    place_segments,
)
from pykvm.boot.image import Entry, Image, Module
from pykvm.boot.notes import (
    LINUX,
    XEN,
    XEN_ELFNOTE_PHYS32_ENTRY,
    has_note,
    read_notes,
    unreadable_entry_note,
)
from pykvm.boot.placement import check_reach
from pykvm.boot.plan import Plan
from pykvm.boot.symbols import Symbols, read_symbols
from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple
from pykvm.values.spelling import option
from pykvm.x86.descriptors import flat_gdt
from pykvm.x86.entry import protected_mode
from pykvm.x86.registers import CR0
from pykvm.x86.state import Mode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.boot.image import Segment, Setup
    from pykvm.boot.source import Request, Source
    from pykvm.memory import GuestMemory

__all__ = ["place_kernel", "read_kernel"]

XEN_HVM_START_MAGIC_VALUE = 0x336EC578
START_INFO_VERSION = 1

# hvm_start_info, hvm_modlist_entry and hvm_memmap_table_entry.
_START_INFO = Struct("<IIIIQQQQII")
_MODULE = Struct("<QQQQ")
_MEMORY = Struct("<QQII")

# A Linux kernel cuts what is longer (COMMAND_LINE_SIZE); PVH itself has no limit.
_LINUX_LONGEST = 2047


class PvhKernel(NamedTuple):
    """What a PVH kernel says beside its segments: the longest command line, if there is one."""

    longest_line: int | None


def read_kernel(source: Source, request: Request, *, protocol: str) -> Image:
    """Read an ELF kernel by its note.

    Raises LoadError for a note of the wrong size, and for an ELF file that cannot be loaded.
    """
    _check_request(source, request)
    header = elf.read_header(source)
    loaded = loaded_headers(source, elf.read_program_headers(source, header))
    segments = place_segments(source, loaded, physical_addresses(loaded))
    entry = _entry(source, segments)
    check_entry(source, entry, segments, loaded, field="XEN_ELFNOTE_PHYS32_ENTRY")
    check_reach(source, Mode.PROTECTED, entry)
    linux = has_note(source, LINUX)
    return Image(
        name=source.name,
        kind="linux" if linux else header.elf_class.name,
        protocol=protocol,
        mode=Mode.PROTECTED,
        entry=entry,
        segments=segments,
        symbols=Symbols(lambda: read_symbols(source, header), extents=extents(loaded)),
        word=header.elf_class.word,
        details=PvhKernel(_LINUX_LONGEST if linux else None),
    )


def place_kernel(image: Image, memory: GuestMemory, setup: Setup) -> Entry:
    """Put the kernel and all that it finds at its entry into `memory`.

    Raises LoadError where something finds no room or the command line is longer than the kernel
    takes, ConfigError for a command line that cannot be a C string.
    """
    kernel = image.details
    assert isinstance(kernel, PvhKernel)
    line = command_line(image.name, setup.words, kernel.longest_line)
    plan = Plan(image, memory)
    tables = plan.add_tables(setup.hardware)
    first = () if setup.initrd is None else (Module(setup.initrd),)
    modules = _add_modules(plan, (*first, *setup.modules))
    memory_map = plan.add(
        "memory map",
        b"".join(_MEMORY.pack(one.address, one.size, one.type, 0) for one in plan.memory_map),
    )
    start_info = plan.add(
        "start info",
        _START_INFO.pack(
            XEN_HVM_START_MAGIC_VALUE,
            START_INFO_VERSION,
            0,
            len(modules),
            plan.add("module list", b"".join(modules)).start if modules else 0,
            plan.add("command line", line).start,
            tables.rsdp,
            memory_map.start,
            len(plan.memory_map),
            0,
        ),
    )
    gdt = plan.add("GDT", flat_gdt().image)
    state = protected_mode(eip=image.entry, esp=0, gdt_base=gdt.start)
    # ET cannot be cleared; of the others PVH wants this one alone.
    state.cr0 = CR0.PE | CR0.ET
    state.rbx = start_info.start
    plan.write()
    return Entry(state, plan.layout, image.symbols)


def _add_modules(plan: Plan, modules: Sequence[Module]) -> list[bytes]:
    """Put the modules and their command lines into memory; returns their entries in the list."""
    entries = []
    for number, module in enumerate(modules):
        name = module.source.name
        place = plan.highest(f"module {name}", len(module.source))
        plan.fill(place.start, module.source.slice(0, len(module.source)))
        line = 0
        if module.command_line:
            content = c_string(module.command_line, f"command line of module {name}")
            line = plan.add(f"command line of module {number}", content).start
        entries.append(_MODULE.pack(place.start, len(module.source), line, 0))
    return entries


def _entry(source: Source, segments: Sequence[Segment]) -> int:
    """The address in the note; of several, the first that lies in the kernel.

    Raises LoadError if there is none, or none of 4 or 8 bytes.
    """
    entries = []
    for note in read_notes(source):
        if note.owner == XEN and note.type == XEN_ELFNOTE_PHYS32_ENTRY:
            if len(note.desc) not in (4, 8):
                raise source.error(
                    f"PVH note (XEN_ELFNOTE_PHYS32_ENTRY) has {len(note.desc)} bytes; an address "
                    "has 4 or 8",
                    hint="the file is damaged, or built wrongly: see .note sections in its source",
                )
            entries.append(int.from_bytes(note.desc, "little"))
    for entry in entries:
        if any(one.address <= entry < one.address + len(one.data) for one in segments):
            return entry
    if entries:
        return entries[0]
    place = unreadable_entry_note(source)
    if place is None:
        raise source.error("has no PVH note (XEN_ELFNOTE_PHYS32_ENTRY)")
    raise source.error(
        f"has a PVH note (XEN_ELFNOTE_PHYS32_ENTRY, owner Xen) that cannot be read: its type and "
        f"owner stand at {place:#x}, with sizes or padding that make no note of it",
        hint="pad name and description to 4 bytes each (.align 4); "
        f"{option('boot', 'elf')} starts it without",
    )


def _check_request(source: Source, request: Request) -> None:
    if request.mode not in (None, Mode.PROTECTED):
        raise source.error(
            f"is a PVH kernel, entered in protected mode, not in {request.mode.value} mode",
            hint="leave the mode out",
        )
    if request.address is not None:
        raise source.error(
            f"cannot be placed at {request.address:#x}: a PVH kernel runs where it is linked",
            hint="leave the address out",
        )
