"""Multiboot 2: kernels that GRUB's multiboot2 command starts in 32-bit protected mode.

A header within the first 32 KiB of the file makes it one.  Its tags say what the kernel wants.
What the specification knows and a machine here has not (video, APM, network, EFI) the kernel starts
without, and a remark says so unless the tag is marked optional.  What the specification does not
know is refused.  EBX leads to the answer: command line, boot loader's name, modules, memory sizes
and map, ELF section headers, ACPI's root pointer, and where a relocatable kernel was put.

Source: Multiboot2 Specification 2.0.
"""

from __future__ import annotations

from pykvm.boot.multiboot_search import find_words
from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple
from pykvm.values.spelling import option

if TYPE_CHECKING:
    from pykvm.boot.image import Entry, Image, Setup
    from pykvm.boot.source import Request, Source
    from pykvm.memory import GuestMemory

__all__ = ["NAME", "PC", "Header", "find_header", "load", "place", "recognise"]

NAME = "multiboot2"
PC = True

MULTIBOOT2_HEADER_MAGIC = 0xE85250D6
MULTIBOOT2_BOOTLOADER_MAGIC = 0x36D76289
MULTIBOOT_SEARCH = 32768
MULTIBOOT_ARCHITECTURE_I386 = 0
HEADER_WORDS = 4


class Header(NamedTuple):
    """A multiboot2 header at `offset` of the file, `length` bytes with its tags."""

    offset: int
    architecture: int
    length: int

    @property
    def tags(self) -> tuple[int, int]:
        """Where in the file its tags start and end."""
        return self.offset + 4 * HEADER_WORDS, self.offset + self.length

    @property
    def is_in_reach(self) -> bool:
        """Whether it lies where boot loaders look for it."""
        return self.offset + self.length <= MULTIBOOT_SEARCH

    @property
    def misplaced(self) -> str:
        """What is wrong with one that is not in reach."""
        return (
            f"has a multiboot2 header at {self.offset:#x}, {self.length:#x} bytes long, not all of "
            f"it in the first {MULTIBOOT_SEARCH} bytes"
        )


def recognise(source: Source, request: Request) -> str | None:
    """Return why this is no multiboot2 kernel, None if it is one.

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
    """The first multiboot2 header, in reach or not, or None."""
    found = find_words(source, MULTIBOOT2_HEADER_MAGIC, count=HEADER_WORDS, align=8)
    return None if found is None else Header(found[0], *found[1][1:3])


def load(source: Source, request: Request) -> Image:
    """Read the kernel.

    Raises LoadError for a header that is misplaced or requires what no specification knows, and for
    a file that contradicts itself.
    """
    from pykvm.boot.multiboot2_header import read_kernel, read_wishes
    from pykvm.boot.multiboot_kernel import image_of

    header = find_header(source)
    assert header is not None
    if not header.is_in_reach:
        raise source.error(
            header.misplaced,
            hint="put its section first in the linker script; "
            f"{option('boot', 'elf')} starts it without",
        )
    if header.architecture != MULTIBOOT_ARCHITECTURE_I386:
        raise source.error(
            f"its multiboot2 header is for architecture {header.architecture}: pykvm runs i386 (0)"
        )
    wishes = read_wishes(source, *header.tags, insisted=request.protocol == NAME)
    return image_of(source, NAME, read_kernel(source, header.offset, wishes))


def place(image: Image, memory: GuestMemory, setup: Setup) -> Entry:
    """Put the kernel, its modules and its information into `memory`; nothing unless all fits.

    Raises LoadError where something lies outside RAM or finds no room, ConfigError for command
    lines that are no C strings.
    """
    from pykvm.boot.image import Entry
    from pykvm.boot.multiboot2_header import relocated
    from pykvm.boot.multiboot2_information import information
    from pykvm.boot.multiboot_kernel import LOW, enter, kernel_of
    from pykvm.boot.plan import Plan
    from pykvm.tables import Hardware

    image, load_base = relocated(image, memory)
    plan = Plan(image, memory, low=LOW)
    tables = plan.add_tables(setup.hardware or Hardware())
    tags = information(plan, image, setup, tables, load_base)
    place = plan.add("multiboot information", tags)
    state = enter(plan, image.entry, MULTIBOOT2_BOOTLOADER_MAGIC, place.start)
    plan.write()
    return Entry(state, plan.layout, image.symbols, kernel_of(image).remarks)
