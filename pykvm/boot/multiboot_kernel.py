"""What the two multiboot protocols share: how a kernel is read, and the machine it is entered in.

Both take an ELF file, or any file whose header says by addresses what goes where.  An ELF64 kernel
is loaded by its physical addresses and entered in 32-bit code like any other, as GRUB does it;
QEMU loads ELF32 alone.

Sources: Multiboot Specification 0.6.96, 3.1.3 and 3.2; Multiboot2 Specification 2.0, 3.1.5, 3.3.
"""

from __future__ import annotations

from pykvm.boot import elf
from pykvm.boot.c_strings import c_string
from pykvm.boot.elf_segments import loaded_headers, physical_addresses, place_segments
from pykvm.boot.image import Image, Segment
from pykvm.boot.multiboot_sections import Sections, read_sections
from pykvm.boot.symbols import Symbols, read_symbols
from pykvm.layout import FOUR_GIB
from pykvm.tables import E820Type
from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple
from pykvm.x86 import descriptors
from pykvm.x86.entry import protected_mode
from pykvm.x86.state import Mode, SegmentRegister, TableRegister

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pykvm.boot.elf import ProgramHeader
    from pykvm.boot.image import Range, Setup
    from pykvm.boot.plan import Plan
    from pykvm.boot.source import Request, Source
    from pykvm.tables import E820Entry
    from pykvm.x86.state import CpuState

__all__ = [
    "LOADER_NAME",
    "LOW",
    "AddressFields",
    "LoadedModule",
    "MultibootKernel",
    "Relocation",
    "command_line",
    "elf_kernel",
    "enter",
    "flat_kernel",
    "image_of",
    "is_elf",
    "kernel_of",
    "memory_kib",
    "place_modules",
    "unlike",
]

LOADER_NAME = b"pykvm\0"

MIB = 1 << 20
STACK_SIZE = 0x1000
# Where small things go.  Below, kernels put the start-up code of their other processors; QEMU's
# multiboot information is at this address, too.
LOW = 0x9000

# The selectors of QEMU's multiboot loader, for kernels that reload them before they have a GDT.
CODE, DATA = 0x08, 0x10
_GDT = descriptors.gdt([None, descriptors.code(32), descriptors.data(32)])


class Relocation(NamedTuple):
    """Where a relocatable kernel may lie: all of it from `low` to `high`, a multiple of `align`.

    `preference` is 0 for none, 1 for low, 2 for high.
    """

    low: int
    high: int
    align: int
    preference: int


class MultibootKernel(NamedTuple):
    """A kernel file, read: its parts, where it starts and what else is known of it.

    `symbols` gives those of an ELF file that was moved by so many bytes.  `remarks` say what its
    header asks for and does not get.
    """

    segments: tuple[Segment, ...]
    entry: int
    sections: Sections | None = None
    symbols: Callable[[int], Symbols] = lambda bias: Symbols()
    relocation: Relocation | None = None
    remarks: tuple[str, ...] = ()


class AddressFields(NamedTuple):
    """What a header says of a file that it does not leave to ELF, each a physical address.

    `load_addr` is None for the file from its beginning on; `load_end_addr` and `bss_end_addr` are 0
    for the file's end and for no zeros after it.
    """

    header_addr: int
    load_addr: int | None
    load_end_addr: int
    bss_end_addr: int


class LoadedModule(NamedTuple):
    """A module in guest memory, and its words as a C string."""

    place: Range
    words: bytes


def unlike(request: Request) -> str | None:
    """Why a caller who asks for this does not want a multiboot kernel, None if they may."""
    if request.mode not in (None, Mode.PROTECTED):
        return f"it would start in protected mode, and {request.mode.value} mode is asked for"
    if request.address is not None:
        return f"its file says where it goes, and {request.address:#x} is asked for"
    return None


def is_elf(source: Source) -> bool:
    """Whether the file is an ELF file."""
    return bytes(source.part(0, len(elf.ELFMAG))) == elf.ELFMAG


def elf_kernel(source: Source, entry: int | None = None) -> MultibootKernel:
    """Read an ELF kernel, which starts at `entry`, a physical address, or else at its e_entry.

    That may be a virtual address, which the kernel will map: it stands for where its code is now.

    Raises LoadError for files that are no x86 executables, and for parts beyond 4 GiB.
    """
    header = elf.read_header(source)
    loaded = loaded_headers(source, elf.read_program_headers(source, header))
    addresses = physical_addresses(loaded)
    segments = place_segments(source, loaded, addresses)
    for segment in segments:
        if segment.end > FOUR_GIB:
            raise source.error(
                f"{segment.range} ends above 4 GiB, and a multiboot kernel starts in 32-bit code",
                hint="set the physical addresses (AT in the linker script) below 4 GiB",
            )
    if entry is not None:
        _check_entry(source, "entry_addr", entry, segments)
    else:
        entry = _loaded_at(header.e_entry, loaded, addresses)
        _check_entry(source, "e_entry", entry, segments)
    extents = [(one.p_vaddr, one.p_vaddr + one.p_memsz) for one in loaded]

    def symbols(bias: int) -> Symbols:
        return Symbols(
            lambda: read_symbols(source, header, bias=bias),
            extents=[(start + bias, end + bias) for start, end in extents],
        )

    return MultibootKernel(segments, entry, read_sections(source, header), symbols)


def _loaded_at(address: int, loaded: Sequence[ProgramHeader], addresses: Sequence[int]) -> int:
    """Where a virtual address is loaded, or itself if it is in no segment."""
    for one, start in zip(loaded, addresses, strict=True):
        if one.p_vaddr <= address < one.p_vaddr + one.p_memsz:
            return address - one.p_vaddr + start
    return address


def flat_kernel(source: Source, fields: AddressFields, offset: int, entry: int) -> MultibootKernel:
    """Read a kernel by the addresses in its header, which was found at `offset` of the file.

    Raises LoadError for addresses that contradict each other or the file's size.
    """
    header_addr, load_addr, load_end_addr, bss_end_addr = fields
    if load_addr is None:
        load_addr = header_addr - offset
    start = offset - (header_addr - load_addr)
    end = start + load_end_addr - load_addr if load_end_addr else len(source)
    loaded_end = load_addr + end - start
    size = max(end - start, bss_end_addr - load_addr)
    faults = (
        (load_addr < 0, f"header_addr {header_addr:#x} is less than the header's offset"),
        (load_addr > header_addr, f"load_addr {load_addr:#x} > header_addr {header_addr:#x}"),
        (start < 0, f"load_addr {load_addr:#x} belongs to {-start:#x} bytes before the file"),
        (end < start, f"load_end_addr {load_end_addr:#x} < load_addr {load_addr:#x}"),
        (end > len(source), f"load_end_addr {load_end_addr:#x} lies past the file's end"),
        (0 < bss_end_addr < loaded_end, f"bss_end_addr {bss_end_addr:#x} < {loaded_end:#x}"),
        (load_addr + size > FOUR_GIB, f"load_addr {load_addr:#x} + {size:#x} is above 4 GiB"),
    )
    for wrong, what in faults:
        if wrong:
            raise source.error(
                f"the addresses in its multiboot header make no sense: {what}",
                hint="check the symbols that the header takes them from",
            )
    segment = Segment("image", load_addr, source.slice(start, end - start), size)
    _check_entry(source, "entry_addr", entry, (segment,))
    return MultibootKernel((segment,), entry)


def _check_entry(source: Source, field: str, entry: int, segments: Sequence[Segment]) -> None:
    if not any(one.address <= entry < one.address + len(one.data) for one in segments):
        raise source.error(
            f"entry {entry:#x} ({field}) lies in no part that is loaded from the file",
            hint="name the function to start with: ld -e, or the header's entry address",
        )


def image_of(source: Source, protocol: str, kernel: MultibootKernel) -> Image:
    """The image that `kernel` is; `kernel_of` leads back."""
    return Image(
        name=source.name,
        kind=protocol,
        protocol=protocol,
        mode=Mode.PROTECTED,
        entry=kernel.entry,
        segments=kernel.segments,
        symbols=kernel.symbols(0),
        word=4,
        details=kernel,
    )


def kernel_of(image: Image) -> MultibootKernel:
    """The kernel that an image of these protocols was made from."""
    assert isinstance(image.details, MultibootKernel)
    return image.details


def command_line(image: Image, setup: Setup) -> bytes:
    """The kernel's command line: its file's name first, as QEMU has it."""
    return c_string(" ".join(filter(None, (image.name, setup.words))), "command line")


def place_modules(plan: Plan, setup: Setup) -> list[LoadedModule]:
    """Find pages for the modules, of which an initrd is the first: their names, then their words.

    Raises LoadError where there is no room, ConfigError for words that are no C string.
    """
    given = [(setup.initrd, "")] if setup.initrd is not None else []
    given += [(module.source, module.command_line) for module in setup.modules]
    loaded = []
    for source, words in given:
        place = plan.after(f"module {source.name}", len(source))
        plan.fill(place.start, source.slice(0, len(source)))
        loaded.append(LoadedModule(place, c_string(f"{source.name} {words}".rstrip())))
    return loaded


def memory_kib(memory: Sequence[E820Entry]) -> tuple[int, int]:
    """RAM from 0 on and from 1 MiB on to the first hole below 4 GiB, in KiB."""
    return _contiguous(memory, 0), _contiguous(memory, MIB)


def _contiguous(memory: Sequence[E820Entry], start: int) -> int:
    end = start
    for entry in sorted(memory):
        if entry.type is E820Type.RAM and entry.address <= end < entry.end:
            end = min(entry.end, FOUR_GIB)
    return (end - start) >> 10


def enter(plan: Plan, entry: int, magic: int, information: int) -> CpuState:
    """The state at entry: 32-bit code, flat segments, paging and interrupts off, a page of stack.

    The stack and the GDT are more than the specifications promise; QEMU and GRUB leave them too.
    """
    stack = plan.lowest("stack", STACK_SIZE)
    gdt = plan.add("GDT", _GDT)
    state = protected_mode(eip=entry, esp=stack.end, gdt_base=gdt.start)
    state.gdt = TableRegister(gdt.start, len(_GDT) - 1)
    state.cs = SegmentRegister.load(descriptors.code(32), CODE)
    for register in ("ds", "es", "fs", "gs", "ss"):
        setattr(state, register, SegmentRegister.load(descriptors.data(32), DATA))
    state.rax, state.rbx = magic, information
    return state
