"""Multiboot 1: kernels that GRUB, and QEMU's -kernel, start in 32-bit protected mode.

A header within the first 8 KiB of the file makes it a multiboot kernel.  It finds, by the address
in EBX: memory sizes and map, its command line, its modules, its ELF section headers, and the boot
loader's name.  No boot device, drives, APM or video mode: there are none.  A kernel that asks for a
video mode starts without, as under QEMU, and a remark says so.

Where the specification leaves room this does as QEMU: the command lines start with the file's name,
the information lies low in memory, modules always start a page, and follow the kernel.

Source: Multiboot Specification 0.6.96.
"""

from __future__ import annotations

from struct import Struct

from pykvm.boot.multiboot_search import find_words
from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple
from pykvm.values.spelling import option

if TYPE_CHECKING:
    from pykvm.boot.image import Entry, Image, Setup
    from pykvm.boot.multiboot_kernel import MultibootKernel
    from pykvm.boot.plan import Plan
    from pykvm.boot.source import Request, Source
    from pykvm.memory import GuestMemory

__all__ = ["NAME", "PC", "Header", "find_header", "load", "place", "recognise"]

NAME = "multiboot"
PC = True

MULTIBOOT_HEADER_MAGIC = 0x1BADB002
MULTIBOOT_BOOTLOADER_MAGIC = 0x2BADB002
MULTIBOOT_SEARCH = 8192
HEADER_WORDS = 3

# What the header's flags ask for.  Bits 0 to 15 must be understood; this is all of them.
MULTIBOOT_PAGE_ALIGN = 1 << 0
MULTIBOOT_MEMORY_INFO = 1 << 1
MULTIBOOT_VIDEO_MODE = 1 << 2
MULTIBOOT_AOUT_KLUDGE = 1 << 16
REQUIRED = 0xFFFF

# What the information has: its flags.
MULTIBOOT_INFO_MEMORY = 1 << 0
MULTIBOOT_INFO_CMDLINE = 1 << 2
MULTIBOOT_INFO_MODS = 1 << 3
MULTIBOOT_INFO_ELF_SHDR = 1 << 5
MULTIBOOT_INFO_MEM_MAP = 1 << 6
MULTIBOOT_INFO_BOOT_LOADER_NAME = 1 << 9

_ADDRESSES = Struct("<5I")
# Words up to the boot loader's name; APM, VBE and the frame buffer after it stay zero.
_INFO = Struct("<17I48x")
_MODULE = Struct("<4I")
_MEMORY = Struct("<IQQI")


class Header(NamedTuple):
    """A multiboot header at `offset` of the file."""

    offset: int
    flags: int

    @property
    def end(self) -> int:
        """Where its first three words end, and the address fields start."""
        return self.offset + 4 * HEADER_WORDS

    @property
    def is_in_reach(self) -> bool:
        """Whether it lies where boot loaders look for it."""
        return self.end <= MULTIBOOT_SEARCH

    @property
    def misplaced(self) -> str:
        """What is wrong with one that is not in reach."""
        return (
            f"has a multiboot header at {self.offset:#x}, past the first {MULTIBOOT_SEARCH} bytes"
        )


def recognise(source: Source, request: Request) -> str | None:
    """Return why this is no multiboot kernel, None if it is one.

    An ELF file whose header is too far from the start is one, too: a faulty one, which would come
    to grief as a bare program.
    """
    header = find_header(source)
    if header is None:
        return f"no header in the first {MULTIBOOT_SEARCH} bytes"
    from pykvm.boot.multiboot_kernel import is_elf, unlike

    if not header.is_in_reach and not is_elf(source):
        return f"it {header.misplaced}"
    return unlike(request)


def find_header(source: Source) -> Header | None:
    """The first multiboot header, in reach or not, or None.

    >>> from pykvm.boot.source import Source
    >>> find_header(Source("kernel", bytes(8) + bytes.fromhex("02b0ad1b 03000000 fb4f52e4")))
    Header(offset=8, flags=3)
    """
    found = find_words(source, MULTIBOOT_HEADER_MAGIC, count=HEADER_WORDS, align=4)
    return None if found is None else Header(found[0], found[1][1])


def load(source: Source, request: Request) -> Image:
    """Read the kernel.

    Raises LoadError for a header that is misplaced or requires what no specification knows, and for
    a file that contradicts itself.
    """
    from pykvm.boot.multiboot_kernel import elf_kernel, image_of, is_elf

    header = find_header(source)
    assert header is not None
    if not header.is_in_reach:
        raise source.error(
            header.misplaced,
            hint="put its section first in the linker script; "
            f"{option('boot', 'elf')} starts it without",
        )
    remarks = _unmet(source, header, insisted=request.protocol == NAME)
    if header.flags & MULTIBOOT_AOUT_KLUDGE:
        kernel = _flat_kernel(source, header)
    elif is_elf(source):
        kernel = elf_kernel(source)
    else:
        raise source.error(
            f"has a multiboot header at {header.offset:#x} that says no addresses (flag bit 16 is "
            "clear), and is no ELF file that would",
            hint="set the bit and the address fields after it, or boot the ELF file",
        )
    return image_of(source, NAME, kernel._replace(remarks=remarks))


def _flat_kernel(source: Source, header: Header) -> MultibootKernel:
    from pykvm.boot.multiboot_kernel import AddressFields, flat_kernel

    start = header.end
    if start + _ADDRESSES.size > min(len(source), MULTIBOOT_SEARCH):
        raise source.error(
            f"has a multiboot header at {header.offset:#x} without its address fields: they would "
            f"end past the file, or past its first {MULTIBOOT_SEARCH} bytes"
        )
    *fields, entry = _ADDRESSES.unpack(source.part(start, _ADDRESSES.size))
    return flat_kernel(source, AddressFields(*fields), header.offset, entry)


def _unmet(source: Source, header: Header, *, insisted: bool) -> tuple[str, ...]:
    """What the flags require and the kernel starts without.

    Raises LoadError for flags that the specification does not know, unless `insisted`.
    """
    remarks = []
    if header.flags & MULTIBOOT_VIDEO_MODE:
        remarks.append(
            "its multiboot header asks for a video mode (flag bit 2); there is no video, and it "
            "starts without"
        )
    known = MULTIBOOT_PAGE_ALIGN | MULTIBOOT_MEMORY_INFO | MULTIBOOT_VIDEO_MODE
    unknown = header.flags & REQUIRED & ~known
    if unknown:
        bits = ", ".join(str(bit) for bit in range(16) if unknown >> bit & 1)
        what = f"requires what the specification does not know: flag bit {bits}"
        if not insisted:
            raise source.error(
                f"its multiboot header {what}",
                hint="bits 0 to 2 are all there are below bit 16; "
                f"{option('boot', NAME)} starts it anyway",
            )
        remarks.append(f"its multiboot header {what}; it starts without")
    return tuple(f"{source.name}: {remark}" for remark in remarks)


def place(image: Image, memory: GuestMemory, setup: Setup) -> Entry:
    """Put the kernel, its modules and its information into `memory`; nothing unless all fits.

    Raises LoadError where something lies outside RAM or finds no room, ConfigError for command
    lines that are no C strings.
    """
    from pykvm.boot.image import Entry
    from pykvm.boot.multiboot_kernel import LOW, enter, kernel_of
    from pykvm.boot.plan import Plan
    from pykvm.tables import Hardware

    plan = Plan(image, memory, low=LOW)
    plan.add_tables(setup.hardware or Hardware())
    information = _information(plan, image, setup)
    place = plan.add("multiboot information", information)
    state = enter(plan, image.entry, MULTIBOOT_BOOTLOADER_MAGIC, place.start)
    plan.write()
    return Entry(state, plan.layout, image.symbols, kernel_of(image).remarks)


def _information(plan: Plan, image: Image, setup: Setup) -> bytes:
    """The information structure; what it points to is placed."""
    from pykvm.boot.multiboot_kernel import (
        LOADER_NAME,
        command_line,
        kernel_of,
        memory_kib,
        place_modules,
    )

    flags = (
        MULTIBOOT_INFO_MEMORY
        | MULTIBOOT_INFO_CMDLINE
        | MULTIBOOT_INFO_MODS
        | MULTIBOOT_INFO_MEM_MAP
        | MULTIBOOT_INFO_BOOT_LOADER_NAME
    )
    words = plan.add("command line", command_line(image, setup))
    modules = place_modules(plan, setup)
    listed = b"".join(
        _MODULE.pack(
            module.place.start,
            module.place.end,
            plan.add("module's command line", module.words).start,
            0,
        )
        for module in modules
    )
    module_list = plan.add("module list", listed)
    sections = kernel_of(image).sections
    syms = (0, 0, 0, 0)
    if sections is not None and (table := sections.place(plan)) is not None:
        flags |= MULTIBOOT_INFO_ELF_SHDR
        headers = plan.add("section headers", table)
        syms = (len(sections), sections.shape.size, headers.start, sections.names)
    # The size of an entry does not count itself.
    entries = b"".join(_MEMORY.pack(_MEMORY.size - 4, *entry) for entry in plan.memory_map)
    memory_list = plan.add("memory map", entries)
    name = plan.add("boot loader's name", LOADER_NAME)
    return _INFO.pack(
        *(flags, *memory_kib(plan.memory_map), 0, words.start),
        *(len(modules), module_list.start),
        *syms,
        *(len(entries), memory_list.start),
        *(0, 0, 0, name.start),
    )
