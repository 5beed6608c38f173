"""Reading a Linux kernel: a bzImage, which unpacks itself, or the ELF file that comes out of it.

Source: Linux, Documentation/arch/x86/boot.rst, "32-bit Boot Protocol" and "64-bit Boot Protocol".
"""

from __future__ import annotations

import re

from pykvm.boot import elf
from pykvm.boot.elf_segments import (
    check_entry,
    extents,
    loaded_headers,
    physical_addresses,
    place_segments,
)
from pykvm.boot.image import Image, Range, Segment
from pykvm.boot.linux_header import (
    LOADED_HIGH,
    XLF_KERNEL_64,
    SetupHeader,
    kernel_version,
    later_fields,
    protected_mode_code,
    read_setup_header,
)
from pykvm.boot.notes import LINUX, has_note
from pykvm.boot.payload import CannotUnpack, unpack
from pykvm.boot.placement import check_reach
from pykvm.boot.source import Source
from pykvm.boot.symbols import Symbols, read_symbols
from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple
from pykvm.values.spelling import option
from pykvm.x86.state import Mode

if TYPE_CHECKING:
    from pykvm.boot.source import Request

__all__ = [
    "LINUX_KIND",
    "LOAD_HIGH",
    "LinuxKernel",
    "moved",
    "read_bzimage",
    "read_unpacked",
    "read_vmlinux",
    "version_of",
]

# What an image is called that is Linux, and one that only starts by Linux's protocol, as memtest86+
# and iPXE do.
LINUX_KIND = "linux"
OTHER_KIND = "bzimage"
MIB = 1 << 20

# Where the code of a bzImage goes that does not choose.
LOAD_HIGH = 1 * MIB
# Where the 64-bit entry lies in the protected-mode code; the 32-bit one is its first byte.
ENTRY_64 = 0x200
# The kernel's page tables at start-up map it by pages of this size.
PMD_SIZE = 2 * MIB
# No kernel is larger: the window that it maps itself in has this size (KERNEL_IMAGE_SIZE).
LARGEST_KERNEL = 1 << 30

_BANNER = re.compile(rb"Linux version ([ -~]{1,512})")
# Its release, who built it where, and the number of the build (arch/x86/boot/version.c).
_VERSION = re.compile(r"\d+\.\d+.* \(.*@.*\) #")

# What a vmlinux cannot say, having no setup header: the values that every 64-bit kernel has.
VMLINUX_HEADER = SetupHeader(
    version=0x20F,
    loadflags=LOADED_HIGH,
    initrd_addr_max=0x7FFF_FFFF,
    kernel_alignment=PMD_SIZE,
    cmdline_size=2047,
    xloadflags=XLF_KERNEL_64,
)


class LinuxKernel(NamedTuple):
    """What a kernel says beside its segments.

    `later` are the header's fields after the known ones, `version` is what the header says of the
    kernel's.  `needs` must be RAM and stays free until the kernel has looked at its memory map.
    The kernel may be moved by multiples of `alignment`, not at all if that is 0.
    """

    header: SetupHeader
    later: bytes = b""
    version: str = ""
    needs: Range = Range("kernel", 0, 0)
    alignment: int = 0
    remarks: tuple[str, ...] = ()


def read_bzimage(
    source: Source, request: Request, *, protocol: str, mode: Mode, remarks: tuple[str, ...] = ()
) -> Image:
    """Read a bzImage to be entered at its own entry, the 32-bit or the 64-bit one by `mode`.

    Raises LoadError for a header that makes no sense, and a kernel without a 64-bit entry.
    """
    header = read_setup_header(source)
    code = protected_mode_code(source, header)
    _check_mode(source, request, mode)
    offset = 0
    if mode is Mode.LONG:
        offset = ENTRY_64
        if not header.xloadflags & XLF_KERNEL_64:
            raise source.error(
                f"has no 64-bit entry (xloadflags {header.xloadflags:#x} without XLF_KERNEL_64, "
                f"version {header.version_text} of the protocol)",
                hint=f"enter it at its 32-bit entry: {option('boot', 'linux32')}",
            )
        if len(code) <= ENTRY_64:
            raise source.error(
                f"ends at {len(code):#x} of its code, before its 64-bit entry at {ENTRY_64:#x}"
            )
    version = kernel_version(source, header)
    address = _load_address(source, header, request)
    movable = bool(header.relocatable_kernel)
    # A kernel that cannot be moved goes to its preferred address by itself.
    start = address if movable else header.pref_address or address
    return Image(
        name=source.name,
        kind=LINUX_KIND if _VERSION.match(version) else OTHER_KIND,
        protocol=protocol,
        mode=mode,
        entry=address + offset,
        segments=(Segment("kernel", address, code, len(code)),),
        symbols=Symbols(),
        word=8 if mode is Mode.LONG else 4,
        details=LinuxKernel(
            header,
            later_fields(source),
            version,
            Range("kernel", start, start + max(header.init_size, len(code))),
            header.kernel_alignment if movable else 0,
            remarks,
        ),
    )


def read_unpacked(source: Source, request: Request, *, protocol: str) -> Image:
    """Read the ELF file that is a bzImage's payload, and what its header says about it.

    Raises CannotUnpack where that takes the kernel itself, LoadError for a payload that is damaged
    or larger than `request.room` and the header allow.
    """
    header = read_setup_header(source)
    code = protected_mode_code(source, header)
    end = header.payload_offset + header.payload_length
    if not header.payload_length:
        raise CannotUnpack("its header names no payload (payload_length 0)")
    if end > len(code):
        raise source.error(
            f"payload ends at {end:#x} (payload_offset {header.payload_offset:#x} + payload_length "
            f"{header.payload_length:#x}), past the end of the kernel ({len(code):#x})",
            hint="the file is truncated or damaged: copy or build it again",
        )
    limit = min(header.init_size or LARGEST_KERNEL, request.room or LARGEST_KERNEL)
    content = unpack(source, code[header.payload_offset : end], limit)
    if not content.startswith(elf.ELFMAG):
        raise CannotUnpack("its payload is no ELF file")
    unpacked = Source(f"{source.name}: payload", content)
    kernel = LinuxKernel(header, later_fields(source), kernel_version(source, header))
    return _read_elf(unpacked, request, kernel)._replace(name=source.name, protocol=protocol)


def read_vmlinux(source: Source, request: Request, *, protocol: str) -> Image:
    """Read an uncompressed kernel.  Raises LoadError for anything but a 64-bit x86 ELF file."""
    return _read_elf(source, request, LinuxKernel(VMLINUX_HEADER))._replace(protocol=protocol)


def version_of(image: Image) -> str:
    """The version of the kernel that was read as `image`, as it says itself; "" if it does not.

    A bzImage has it in its setup header, an uncompressed kernel in the line that it prints first.
    """
    kernel = image.details
    if isinstance(kernel, LinuxKernel) and kernel.version:
        return kernel.version
    for segment in image.segments:
        found = re.search(_BANNER, bytes(segment.data))
        if found:
            return found[1].decode("ascii")
    return ""


def _read_elf(source: Source, request: Request, kernel: LinuxKernel) -> Image:
    header = elf.read_header(source)
    if header.elf_class is not elf.ELF64 or header.e_machine != elf.EM_X86_64:
        raise source.error(
            f"is a {header.elf_class.bits}-bit Linux kernel as an ELF file, whose entry point "
            "no boot protocol of Linux defines",
            hint="boot the bzImage of the same build (arch/x86/boot/bzImage)",
        )
    _check_mode(source, request, Mode.LONG)
    loaded = loaded_headers(source, elf.read_program_headers(source, header))
    segments = place_segments(source, loaded, physical_addresses(loaded))
    check_entry(source, header.e_entry, segments, loaded)
    check_reach(source, Mode.LONG, header.e_entry)
    start = min(segment.address for segment in segments)
    end = max(segment.end for segment in segments)
    alignment = 0
    if kernel.header.relocatable_kernel:
        # Its own page tables map it by large pages.
        alignment = max(kernel.header.kernel_alignment, PMD_SIZE)
    needs = Range("kernel", start, max(end, start + kernel.header.init_size))
    if _VERSION.match(kernel.version) or has_note(source, LINUX):
        kind = LINUX_KIND
    else:
        kind = header.elf_class.name
    image = Image(
        name=source.name,
        kind=kind,
        protocol="linux",
        mode=Mode.LONG,
        entry=header.e_entry,
        segments=segments,
        symbols=Symbols(lambda: read_symbols(source, header), extents=extents(loaded)),
        word=8,
        details=kernel._replace(
            needs=needs, alignment=0 if start % (alignment or 1) else alignment
        ),
    )
    return image if request.address is None else _moved_to(source, image, request.address)


def _moved_to(source: Source, image: Image, address: int) -> Image:
    kernel = image.details
    assert isinstance(kernel, LinuxKernel)
    _check_address(source, kernel.alignment, address)
    return moved(image, address - kernel.needs.start)


def moved(image: Image, distance: int) -> Image:
    """The image with everything in it `distance` higher."""
    kernel = image.details
    assert isinstance(kernel, LinuxKernel)
    needs = kernel.needs._replace(
        start=kernel.needs.start + distance, end=kernel.needs.end + distance
    )
    return image.moved(distance)._replace(details=kernel._replace(needs=needs))


def _load_address(source: Source, header: SetupHeader, request: Request) -> int:
    """Where the protected-mode code of a bzImage goes, if there is room."""
    if not header.relocatable_kernel:
        if request.address not in (None, LOAD_HIGH):
            _check_address(source, 0, request.address)
        return LOAD_HIGH
    if request.address is not None:
        _check_address(source, header.kernel_alignment, request.address)
        return request.address
    wanted = header.pref_address or LOAD_HIGH
    return -(-wanted // header.kernel_alignment) * header.kernel_alignment


def _check_address(source: Source, alignment: int, address: int) -> None:
    if not alignment:
        raise source.error(
            f"cannot be placed at {address:#x}: the kernel does not say that it can be moved "
            "(relocatable_kernel)",
            hint="leave the address out, or boot a bzImage built with CONFIG_RELOCATABLE",
        )
    if address % alignment:
        raise source.error(
            f"cannot be placed at {address:#x}: it wants a multiple of {alignment:#x} "
            "(kernel_alignment)"
        )


def _check_mode(source: Source, request: Request, mode: Mode) -> None:
    if request.mode not in (None, mode):
        raise source.error(
            f"is a Linux kernel, entered in {mode.value} mode, not in {request.mode.value} mode",
            hint="leave the mode out, or choose another entry: "
            f"{option('boot', 'linux32')} or {option('boot', 'linux64')}",
        )
