"""The bare protocol: a guest that starts as a C function does, with nothing under it.

What it finds depends on the CPU mode at entry:

long
    Identity paging over all RAM and at least 4 GiB (supervisor, writable, 2 MiB pages), a flat GDT,
    a TSS, interrupts off.  RDI = argc, RSI = argv, and RSP as after a call from address 0, so that
    ``void _start(int argc, char **argv)`` is all the start-up code a C program needs.
protected
    Flat 32-bit segments, paging off, interrupts off; argc and argv on the stack, above a return
    address of 0 (cdecl).
real
    CS:IP at the entry, CS being the 64 KiB that it lies in, DS and ES equal to CS, a stack below
    the image (or, where there is no room, above), interrupts off.  No arguments.  The caller may
    have chosen CS:IP and SS:SP.

The structures lie in RAM that no segment claims, first fit from 0x1000 on.  The stack comes first:
it overflows into the first page, not into the page tables.
"""

from __future__ import annotations

from functools import lru_cache

from pykvm.boot.c_strings import c_string
from pykvm.boot.image import Entry, Range, Setup
from pykvm.boot.placement import ENTRY_LIMIT, FreeMemory, check_segments, ram_ranges, write_segment
from pykvm.errors import LoadError
from pykvm.layout import FOUR_GIB
from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple
from pykvm.values.spelling import option
from pykvm.x86.descriptors import flat_gdt
from pykvm.x86.entry import long_mode, protected_mode, real_mode
from pykvm.x86.paging import identity
from pykvm.x86.state import CpuState, Mode
from pykvm.x86.tss import tss64

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pykvm.boot.image import Image
    from pykvm.boot.real_start import RealAddress
    from pykvm.memory import GuestMemory
    from pykvm.x86.paging import IdentityTables

__all__ = ["place"]

STACK_SIZE = 64 << 10
# A TSS (0x68 bytes) that starts at a multiple of this does not cross a page.
DESCRIPTOR_ALIGNMENT = 128

# Real mode: below 0x500 lie the interrupt table and the BIOS data area.
REAL_STACK_FLOOR = 0x500
REAL_STACK_LEAST = 0x400
REAL_STACK_SIZE = 4 << 10
REAL_SEGMENT_SIZE = 64 << 10


class _BarePlan(NamedTuple):
    """What the guest finds beside its image, before anything is written.

    `writes` are (address, bytes).
    """

    state: CpuState
    layout: list[Range]
    writes: list[tuple[int, bytes]]


def place(image: Image, memory: GuestMemory, setup: Setup) -> Entry:
    """Put `image` and what it finds at entry into `memory`, and say how a vCPU starts it.

    The guest's argv is the image's name, the words of `setup.append` and `setup.args`.  Nothing is
    written unless all of it fits.

    Raises LoadError if a segment lies outside RAM, the structures find no room, arguments are given
    to a real-mode guest, or an initrd or modules to any; ConfigError for an argument that cannot be
    a C string.
    """
    for what, given in (("an initrd is", setup.initrd), ("modules are", setup.modules)):
        if given:
            raise LoadError(
                f"{image.name}: {what} given, but {image.protocol} images receive none",
                hint="leave it out, or boot a kernel that takes it",
            )
    check_segments(image, memory)
    segments = [segment.range for segment in image.segments]
    limit = min(ENTRY_LIMIT[image.mode], 1 << image.word * 8)
    free = FreeMemory(image.name, ram_ranges(memory), segments, limit=limit)
    plan = _PLANNERS[image.mode](image, free, [image.name, *setup.append.split(), *setup.args])
    for segment in image.segments:
        write_segment(memory, segment)
    for address, content in plan.writes:
        memory.write(address, content)
    layout = sorted(segments + plan.layout, key=lambda one: one.start)
    return Entry(plan.state, tuple(layout), image.symbols)


def _identity(length: int, base: int) -> IdentityTables:
    """The page tables; those of the usual size are remembered, 24 KiB each."""
    return _usual_identity(base) if length == FOUR_GIB else identity(length, base=base)


@lru_cache(maxsize=8)
def _usual_identity(base: int) -> IdentityTables:
    return identity(FOUR_GIB, base=base)


@lru_cache(maxsize=8)
def _usual_gdt(tss_base: int) -> bytes:
    return flat_gdt(tss_base).image


@lru_cache(maxsize=1)
def _empty_tss() -> bytes:
    return tss64()


def _plan_long(image: Image, free: FreeMemory, argv: Sequence[str]) -> _BarePlan:
    stack = free.take("stack", STACK_SIZE)
    gdt, tss, descriptors = _descriptors(free)
    length = min(max(FOUR_GIB, free.end), ENTRY_LIMIT[Mode.LONG])
    page_tables = free.take("page tables", _identity(length, 0).size)
    tables = _identity(length, page_tables.start)
    arguments, strings = _arguments(image, free, argv)
    # 16-byte aligned before the call that pushed the return address (psABI x86-64, 3.2.2).
    rsp = stack.end - 8
    state = long_mode(
        rip=image.entry, rsp=rsp, cr3=tables.root, gdt_base=gdt.start, tss_base=tss.start
    )
    state.rdi, state.rsi = len(argv), arguments.start
    return _BarePlan(
        state,
        [stack, gdt, tss, page_tables, arguments],
        [
            (rsp, _words(8, 0)),
            *descriptors,
            (page_tables.start, tables.image),
            (arguments.start, strings),
        ],
    )


def _plan_protected(image: Image, free: FreeMemory, argv: Sequence[str]) -> _BarePlan:
    stack = free.take("stack", STACK_SIZE)
    gdt, tss, descriptors = _descriptors(free)
    arguments, strings = _arguments(image, free, argv)
    # The arguments are 16-byte aligned, the return address lies below them (psABI i386, 2.2.2).
    esp = stack.end - 16 - 4
    state = protected_mode(eip=image.entry, esp=esp, gdt_base=gdt.start, tss_base=tss.start)
    return _BarePlan(
        state,
        [stack, gdt, tss, arguments],
        [
            (esp, _words(4, 0, len(argv), arguments.start)),
            *descriptors,
            (arguments.start, strings),
        ],
    )


def _plan_real(image: Image, free: FreeMemory, argv: Sequence[str]) -> _BarePlan:
    from pykvm.boot.real_start import RealStart

    if len(argv) > 1:
        raise LoadError(
            f"{image.name}: arguments are given, but a real-mode guest has no way to receive them",
            hint="leave them out, or write them to its memory",
        )
    start = image.details if isinstance(image.details, RealStart) else RealStart()
    base = image.entry & -REAL_SEGMENT_SIZE
    cs, ip = start.entry or (base >> 4, image.entry - base)
    if start.stack is not None:
        _check_real_stack(image, free, start.stack)
        ss, sp = start.stack
        layout = []
    else:
        stack = _real_stack(image, free)
        stack_base = max(stack.end - REAL_SEGMENT_SIZE, 0)
        # 64 KiB above its base is SP = 0: the first push wraps to the top.
        ss, sp = stack_base >> 4, (stack.end - stack_base) % REAL_SEGMENT_SIZE
        layout = [stack]
    state = real_mode(cs=cs, ip=ip, ss=ss, sp=sp)
    for register in (state.ds, state.es):
        register.selector, register.base = state.cs.selector, state.cs.base
    return _BarePlan(state, layout, [])


_PLANNERS: dict[Mode, Callable[[Image, FreeMemory, Sequence[str]], _BarePlan]] = {
    Mode.LONG: _plan_long,
    Mode.PROTECTED: _plan_protected,
    Mode.REAL: _plan_real,
}


def _real_stack(image: Image, free: FreeMemory) -> Range:
    """Choose the stack right below the image if there is room, else wherever there is."""
    top = min(segment.address for segment in image.segments) & -16
    below = Range("stack", max(top - REAL_SEGMENT_SIZE, REAL_STACK_FLOOR), top)
    if below.end - below.start >= REAL_STACK_LEAST and free.is_ram(below):
        return below
    return free.take("stack", REAL_STACK_SIZE)


def _check_real_stack(image: Image, free: FreeMemory, stack: RealAddress) -> None:
    """Raise LoadError unless the first word that is pushed there goes to RAM."""
    first = stack._replace(offset=(stack.offset - 2) % REAL_SEGMENT_SIZE)
    if not free.is_ram(Range("stack", first.linear, first.linear + 2)):
        raise LoadError(
            f"{image.name}: the first word on a stack at {stack} goes to {first.linear:#x}, where "
            "no RAM is",
            hint=f"choose another place ({option('stack')}), or give the guest more memory "
            f"({option('memory')})",
        )


def _descriptors(free: FreeMemory) -> tuple[Range, Range, list[tuple[int, bytes]]]:
    """Place the GDT and the TSS that it points to; returns both and what to write."""
    tss_image = _empty_tss()
    tss = free.take("TSS", len(tss_image), align=DESCRIPTOR_ALIGNMENT)
    gdt_image = _usual_gdt(tss.start)
    gdt = free.take("GDT", len(gdt_image), align=DESCRIPTOR_ALIGNMENT)
    return gdt, tss, [(gdt.start, gdt_image), (tss.start, tss_image)]


def _arguments(image: Image, free: FreeMemory, argv: Sequence[str]) -> tuple[Range, bytes]:
    """Place argv: pointers, a null pointer, then the strings; returns the place and its bytes."""
    strings = [c_string(argument, "argument") for argument in argv]
    vector_size = image.word * (len(strings) + 1)
    place = free.take("arguments", vector_size + sum(map(len, strings)), align=16)
    pointers = []
    address = place.start + vector_size
    for string in strings:
        pointers.append(address)
        address += len(string)
    return place, _words(image.word, *pointers, 0) + b"".join(strings)


def _words(size: int, *values: int) -> bytes:
    return b"".join(value.to_bytes(size, "little") for value in values)
