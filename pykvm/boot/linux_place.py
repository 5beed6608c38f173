"""Putting a Linux kernel into a machine, with what it finds there.

The kernel goes where it prefers to be, or, if it can be moved and there is no RAM, to the lowest
place above 1 MiB that has room.  The initrd goes as high as it may, everything else into the lowest
free RAM: all of it below 4 GiB, which the page tables at entry map to itself.

Source: Linux, Documentation/arch/x86/boot.rst.
"""

from __future__ import annotations

import os

from pykvm.boot.c_strings import command_line
from pykvm.boot.image import Entry, Range
from pykvm.boot.linux_image import LOAD_HIGH, OTHER_KIND, LinuxKernel, moved
from pykvm.boot.plan import Plan, free_memory
from pykvm.boot.zero_page import (
    E820_MAX_ENTRIES_ZEROPAGE,
    SETUP_E820_EXT,
    SETUP_RNG_SEED,
    ZERO_PAGE_SIZE,
    SetupData,
    pack_setup_data,
    zero_page,
)
from pykvm.errors import LoadError
from pykvm.layout import FOUR_GIB
from pykvm.typed import TYPE_CHECKING
from pykvm.values.sizes import format_size
from pykvm.values.spelling import option
from pykvm.x86.descriptors import CODE64, DATA, code, data, decode_segment, flat_gdt, gdt
from pykvm.x86.entry import long_mode, protected_mode
from pykvm.x86.paging import identity
from pykvm.x86.state import CpuState, Mode, SegmentRegister, TableRegister

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.boot.image import Image, Setup
    from pykvm.boot.linux_header import SetupHeader
    from pykvm.memory import GuestMemory

__all__ = ["place_kernel"]

PAGE_SIZE = 0x1000

# Selectors that the protocol wants, whatever the mode; 64-bit code has its own from flat_gdt().
BOOT_CS, BOOT_DS = CODE64, DATA

UNDEFINED_LOADER = 0xFF
VID_MODE_NORMAL = 0xFFFF
SEED_SIZE = 32
# The first version of the protocol to know setup data.
SETUP_DATA_VERSION = 0x209


def place_kernel(image: Image, memory: GuestMemory, setup: Setup) -> Entry:
    """Put the kernel and all that it finds at its entry into `memory`.

    Raises LoadError where something finds no room, for a command line longer than the kernel takes,
    and for modules; ConfigError for a command line that cannot be a C string.
    """
    if setup.modules:
        raise LoadError(
            f"{image.name}: modules are given, but a Linux kernel receives none",
            hint=f"give it an initrd ({option('initrd')}), or boot a kernel that takes modules",
        )
    image = _fitted(image, memory)
    kernel = image.details
    assert isinstance(kernel, LinuxKernel)
    line = command_line(image.name, setup.words, kernel.header.cmdline_size)
    plan = Plan(image, memory, [kernel.needs])
    tables = plan.add_tables(setup.hardware)
    initrd = (0, 0)
    if setup.initrd is not None:
        highest = kernel.header.initrd_addr_max + 1
        place = plan.highest("initrd", len(setup.initrd), limit=highest)
        plan.fill(place.start, setup.initrd.slice(0, len(setup.initrd)))
        initrd = place.start, len(setup.initrd)
    page_place = plan.lowest("zero page", ZERO_PAGE_SIZE, align=PAGE_SIZE)
    line_place = plan.add("command line", line)
    header = _filled(image, kernel.header, _add_setup_data(plan, kernel.header))
    page = zero_page(
        header,
        plan.memory_map,
        later=kernel.later,
        rsdp=tables.rsdp,
        initrd=initrd,
        command_line=line_place.start,
    )
    plan.fill(page_place.start, page)
    state = _STATES[image.mode](image, plan)
    state.rsi = page_place.start
    plan.write()
    return Entry(state, plan.layout, image.symbols, kernel.remarks, _suspicions(image))


def _suspicions(image: Image) -> tuple[str, ...]:
    """What a kernel that is not Linux may miss: its set-up code, which did not run, and a BIOS."""
    if image.kind != OTHER_KIND:
        return ()
    entry = "64-bit" if image.mode is Mode.LONG else "32-bit"
    return (
        f"{image.name}: was started at its {entry} entry, which not every bzImage has that is not "
        f"Linux; its 16-bit set-up code is started by firmware ({option('kernel')})",
    )


def _fitted(image: Image, memory: GuestMemory) -> Image:
    """The image where there is RAM for all that the kernel needs at its start.

    Raises LoadError, with the numbers.
    """
    kernel = image.details
    assert isinstance(kernel, LinuxKernel)
    free = free_memory(image.name, memory, [Range("", 0, LOAD_HIGH)])
    if free.is_ram(kernel.needs):
        return image
    size = kernel.needs.end - kernel.needs.start
    if kernel.alignment:
        place = free.take(kernel.needs.name, size, align=max(kernel.alignment, PAGE_SIZE))
        return moved(image, place.start - kernel.needs.start)
    raise LoadError(
        f"{image.name}: the kernel needs {format_size(size)} of RAM at {kernel.needs.start:#x} and "
        f"cannot be moved; the guest has {format_size(free.size)}",
        hint=f"give the guest more memory ({option('memory')}), or boot a kernel with "
        "CONFIG_RELOCATABLE",
    )


def _filled(image: Image, header: SetupHeader, setup_data: int) -> SetupHeader:
    """The header with what a loader has to say in it.

    heap_end_ptr and CAN_USE_HEAP stay as they are: they are for the 16-bit setup code, which is not
    run.
    """
    return header._replace(
        type_of_loader=UNDEFINED_LOADER,
        vid_mode=VID_MODE_NORMAL,
        code32_start=min(segment.address for segment in image.segments),
        setup_data=setup_data,
    )


def _add_setup_data(plan: Plan, header: SetupHeader) -> int:
    """Put the setup data that this kernel can read; returns its address, 0 if there is none.

    A kernel takes its first randomness from a seed, which it then erases, and the part of the
    memory map that the zero page has no room for.
    """
    if header.version < SETUP_DATA_VERSION:
        return 0
    items = [SetupData(SETUP_RNG_SEED, os.urandom(SEED_SIZE))]
    rest = plan.memory_map[E820_MAX_ENTRIES_ZEROPAGE:]
    if rest:
        items.append(SetupData(SETUP_E820_EXT, b"".join(entry.pack() for entry in rest)))
    place = plan.lowest("setup data", len(pack_setup_data(items, 0)))
    plan.fill(place.start, pack_setup_data(items, place.start))
    return place.start


def _long_state(image: Image, plan: Plan) -> CpuState:
    table = plan.add("GDT", flat_gdt().image)
    size = identity(FOUR_GIB, base=0).size
    page_tables = plan.lowest("page tables", size, align=PAGE_SIZE)
    tables = identity(FOUR_GIB, base=page_tables.start)
    plan.fill(page_tables.start, tables.image)
    return long_mode(rip=image.entry, rsp=0, cr3=tables.root, gdt_base=table.start, tss_base=0)


def _protected_state(image: Image, plan: Plan) -> CpuState:
    """Protected mode with 32-bit code where flat_gdt() has the 64-bit one."""
    descriptors = gdt([None, None, code(32), data(32)])
    table = plan.add("GDT", descriptors)
    state = protected_mode(eip=image.entry, esp=0, gdt_base=table.start)
    state.cs = SegmentRegister.load(decode_segment(descriptors, BOOT_CS), BOOT_CS)
    for name in ("ds", "es", "fs", "gs", "ss"):
        register = SegmentRegister.load(decode_segment(descriptors, BOOT_DS), BOOT_DS)
        setattr(state, name, register)
    state.gdt = TableRegister(table.start, len(descriptors) - 1)
    return state


_STATES: dict[Mode, Callable[[Image, Plan], CpuState]] = {
    Mode.LONG: _long_state,
    Mode.PROTECTED: _protected_state,
}
