"""What a multiboot2 kernel's header asks for, tag by tag.

Source: Multiboot2 Specification 2.0, 3.1.
"""

from __future__ import annotations

from struct import Struct

from pykvm.boot.multiboot_kernel import (
    AddressFields,
    MultibootKernel,
    Relocation,
    elf_kernel,
    flat_kernel,
    is_elf,
    kernel_of,
)
from pykvm.boot.plan import free_memory
from pykvm.errors import LoadError
from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple
from pykvm.values.spelling import option

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pykvm.boot.image import Image
    from pykvm.boot.source import Source
    from pykvm.memory import GuestMemory

__all__ = ["Tag", "Wishes", "read_kernel", "read_wishes", "relocated"]

TAG_ALIGN = 8
END = 0
OPTIONAL = 1
CONSOLE_REQUIRED = 1
WHOLE_FILE = 0xFFFFFFFF
PREFER_LOW, PREFER_HIGH = 1, 2

_TAG = Struct("<HHI")

# What the kernel can ask to be told: the tags of the information, by their numbers.  Those in TOLD
# are sent where there is any information; there never is a BIOS boot device, which is allowed.
INFORMATION = {
    1: "boot command line",
    2: "boot loader name",
    3: "modules",
    4: "basic memory information",
    5: "BIOS boot device",
    6: "memory map",
    7: "VBE info",
    8: "framebuffer info",
    9: "ELF symbols",
    10: "APM table",
    11: "EFI 32-bit system table pointer",
    12: "EFI 64-bit system table pointer",
    13: "SMBIOS tables",
    14: "ACPI old RSDP",
    15: "ACPI new RSDP",
    16: "networking information",
    17: "EFI memory map",
    18: "EFI boot services not terminated",
    19: "EFI 32-bit image handle pointer",
    20: "EFI 64-bit image handle pointer",
    21: "image load base physical address",
}
TOLD = frozenset({1, 2, 3, 4, 5, 6, 9, 13, 14, 15, 21})


class Tag(NamedTuple):
    """One tag: where in the file it lies, and the words after its type, flags and size."""

    offset: int
    type: int
    optional: bool
    words: tuple[int, ...]


class Wishes(NamedTuple):
    """What the tags say of how to load the kernel; `remarks` say what it has to do without."""

    addresses: AddressFields | None = None
    entry: int | None = None
    relocation: Relocation | None = None
    remarks: tuple[str, ...] = ()


def read_wishes(source: Source, start: int, end: int, *, insisted: bool = False) -> Wishes:
    """Read the tags in the file from `start` to `end`.

    Raises LoadError for tags that are no tags and, unless `insisted`, for one that is not optional
    and asks for what the specification does not know.
    """
    wishes = Wishes()
    for tag in _tags(source, start, end):
        name, words, reader = _KNOWN.get(tag.type, (f"type {tag.type}", 0, _unknown))
        if len(tag.words) < words:
            raise source.error(
                f"its multiboot2 header's {name} tag at {tag.offset:#x} has "
                f"{len(tag.words)} words, not {words}"
            )
        try:
            wishes = reader(wishes, tag)
        except _Unmet as unmet:
            if tag.optional:
                continue
            what = f"its multiboot2 header's {name} tag asks for {unmet}"
            if not (unmet.is_known or insisted):
                raise source.error(
                    what,
                    hint="mark the tag optional (bit 0 of its flags) if the kernel can do without; "
                    f"{option('boot', 'multiboot2')} starts it anyway",
                ) from None
            remark = f"{source.name}: {what}; it starts without"
            wishes = wishes._replace(remarks=(*wishes.remarks, remark))
    return wishes


def _tags(source: Source, start: int, end: int) -> Iterator[Tag]:
    """The tags up to the one that ends them."""
    end = min(end, len(source))
    offset = start
    while offset + _TAG.size <= end:
        kind, flags, size = _TAG.unpack(source.part(offset, _TAG.size))
        if kind == END:
            return
        if size < _TAG.size or offset + size > end:
            raise source.error(
                f"its multiboot2 header's tag at {offset:#x} (type {kind}) has size {size:#x}: "
                f"from {_TAG.size} to {end - offset:#x} there would be room for"
            )
        content = bytes(source.part(offset + _TAG.size, size - _TAG.size))
        words = Struct(f"<{len(content) // 4}I").unpack_from(content)
        yield Tag(offset, kind, bool(flags & OPTIONAL), words)
        offset += -(-size // TAG_ALIGN) * TAG_ALIGN
    raise source.error(
        f"its multiboot2 header's tags reach {end:#x}, where it ends, without an end tag",
        hint="end them with a tag of type 0 and size 8, counted in header_length",
    )


class _Unmet(Exception):
    """A tag asks for what there is not, as the message says; `is_known` to the specification."""

    def __init__(self, what: str, *, is_known: bool = True) -> None:
        super().__init__(what)
        self.is_known = is_known


def _read_requests(wishes: Wishes, tag: Tag) -> Wishes:
    absent = [number for number in tag.words if number not in TOLD]
    unknown = [number for number in absent if number not in INFORMATION]
    if unknown:
        numbers = ", ".join(map(str, unknown))
        raise _Unmet(f"information of a kind that is not known: tag {numbers}", is_known=False)
    if absent:
        names = ", ".join(f"{INFORMATION[number]} (tag {number})" for number in absent)
        raise _Unmet(f"information that is not given: {names}")
    return wishes


def _read_addresses(wishes: Wishes, tag: Tag) -> Wishes:
    header_addr, load_addr, load_end_addr, bss_end_addr = tag.words[:4]
    start = None if load_addr == WHOLE_FILE else load_addr
    return wishes._replace(addresses=AddressFields(header_addr, start, load_end_addr, bss_end_addr))


def _read_entry(wishes: Wishes, tag: Tag) -> Wishes:
    return wishes._replace(entry=tag.words[0])


def _read_console(wishes: Wishes, tag: Tag) -> Wishes:
    if tag.words[0] & CONSOLE_REQUIRED:
        raise _Unmet("a console, EGA text or a framebuffer, and there is no video")
    return wishes


def _read_framebuffer(wishes: Wishes, tag: Tag) -> Wishes:
    raise _Unmet("a framebuffer, and there is no video")


def _read_relocation(wishes: Wishes, tag: Tag) -> Wishes:
    low, high, align, preference = tag.words[:4]
    return wishes._replace(relocation=Relocation(low, high, max(align, 1), preference))


def _nothing(wishes: Wishes, tag: Tag) -> Wishes:
    return wishes


def _unknown(wishes: Wishes, tag: Tag) -> Wishes:
    raise _Unmet("what the specification does not know", is_known=False)


# By type: the tag's name, the words it has at least, and what it makes of the wishes.  Modules
# always start a page.  The tags for EFI count on EFI platforms only.
_KNOWN: dict[int, tuple[str, int, Callable[[Wishes, Tag], Wishes]]] = {
    1: ("information request", 0, _read_requests),
    2: ("address", 4, _read_addresses),
    3: ("entry address", 1, _read_entry),
    4: ("flags", 1, _read_console),
    5: ("framebuffer", 3, _read_framebuffer),
    6: ("module alignment", 0, _nothing),
    7: ("EFI boot services", 0, _nothing),
    8: ("EFI i386 entry address", 1, _nothing),
    9: ("EFI amd64 entry address", 1, _nothing),
    10: ("relocatable header", 4, _read_relocation),
}


def read_kernel(source: Source, offset: int, wishes: Wishes) -> MultibootKernel:
    """Read the kernel as its header, at `offset` of the file, wishes.  Raises LoadError."""
    if wishes.addresses is not None:
        if wishes.entry is None:
            raise source.error(
                "its multiboot2 header has an address tag, but no entry address tag",
                hint="add a tag of type 3 with the address to start at",
            )
        kernel = flat_kernel(source, wishes.addresses, offset, wishes.entry)
    elif not is_elf(source):
        raise source.error(
            f"has a multiboot2 header at {offset:#x} without an address tag, and is no ELF file "
            "that would say where it goes",
            hint="add tags of type 2 and 3 to the header, or boot the ELF file",
        )
    else:
        kernel = elf_kernel(source, wishes.entry)
    return kernel._replace(relocation=wishes.relocation, remarks=wishes.remarks)


def relocated(image: Image, memory: GuestMemory) -> tuple[Image, int | None]:
    """Move a relocatable image to where it may lie, and say where its first byte is now.

    One without a preference stays where it was linked, if that is allowed and free.  One that is
    not relocatable stays anyway: None.  Raises LoadError where there is no room.
    """
    kernel = kernel_of(image)
    relocation = kernel.relocation
    if relocation is None:
        return image, None
    start = min(segment.address for segment in image.segments)
    size = max(segment.end for segment in image.segments) - start
    free = free_memory(image.name, memory)
    low, high, align, preference = relocation
    highest = preference == PREFER_HIGH
    wanted = start if preference not in (PREFER_LOW, PREFER_HIGH) and start >= low else low
    # `high` is the last byte that may be the image's.
    for floor in (wanted, low):
        base = free.find(size, align=align, low=floor, high=high + 1, highest=highest)
        if base is not None:
            break
    else:
        raise LoadError(
            f"{image.name}: no room for the kernel ({size:#x} bytes), which its multiboot2 header "
            f"wants between {low:#x} and {high:#x} at a multiple of {align:#x}",
            hint=f"give the guest more memory ({option('memory')})",
        )
    distance = base - start
    return image.moved(distance)._replace(symbols=kernel.symbols(distance)), base
