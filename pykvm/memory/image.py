"""Frozen images: what guest memory was at one moment, as a value."""

from __future__ import annotations

from errno import ENOMEM

from pykvm._core import ffi, lib, owned
from pykvm.errors import ConfigError, LoadError, MemoryRangeError
from pykvm.memory.backing import map_memory
from pykvm.memory.pages import PAGE_SIZE, refusal
from pykvm.memory.regions import Region, check_placement
from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import integer
from pykvm.values.frozen import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any, Literal, TypeAlias

    from typing_extensions import Buffer

    from pykvm.memory.backing import HugePages
    from pykvm.memory.guest import GuestMemory

    #: Name, start, size and kind of a region.
    Placement: TypeAlias = tuple[str, int, int, Literal["ram", "rom"]]

__all__ = ["FrozenRegion", "MemoryImage", "Section"]

_ZERO = bytes(PAGE_SIZE)


class FrozenRegion(NamedTuple):
    """A region of an image: what `Region` says, and what its pages held.

    `content` is a struct pykvm_content.
    """

    name: str
    start: int
    size: int
    kind: Literal["ram", "rom"]
    backing: str
    shared: bool
    huge_pages: HugePages
    content: Any

    @property
    def end(self) -> int:
        """The first address after the region."""
        return self.start + self.size

    @property
    def key(self) -> Placement:
        """What makes a region of memory this one."""
        return self.name, self.start, self.size, self.kind

    def __str__(self) -> str:
        return f"{self.name} {self.start:#x}-{self.end:#x}"

    def __repr__(self) -> str:
        return f"<FrozenRegion {self}, {self.kind}>"


class Section(NamedTuple):
    """Where a file has the bytes of a region, for `MemoryImage.from_file`.

    `start`, `size` and `offset` are in bytes, multiples of 4096.
    """

    name: str
    start: int
    size: int
    kind: Literal["ram", "rom"]
    offset: int


class MemoryImage:
    """What a `GuestMemory` held when it was frozen.  It never changes.

    Images of one memory share the pages that are equal.  An image that nothing refers to any more
    gives back those that it alone had.
    """

    __slots__ = ("regions",)

    def __init__(self, regions: Iterable[FrozenRegion]) -> None:
        #: Every region, lowest address first.
        self.regions = tuple(regions)

    @classmethod
    def from_file(cls, file: int, sections: Iterable[Section]) -> MemoryImage:
        """The image that an open file has, page by page as the guest sees it; a hole is zero.

        The file is mapped, not read, and must not change as long as the image, or a memory made
        of it, exists: if it becomes shorter, the kernel answers an access with SIGBUS.  Raises
        LoadError for sections that cannot be, ResourceError.
        """
        import os

        end = os.fstat(file).st_size
        return cls(
            _placed(
                (
                    section[:4],
                    _content_of_file(file, end, section.name, section.size, section.offset),
                )
                for section in sections
            )
        )

    def derive(
        self, regions: Iterable[Placement], pages: Iterable[tuple[int, Buffer]]
    ) -> MemoryImage:
        """The image that has these regions, and these pages where it differs from this one.

        The opposite of `changed`: what a region of this image had is what it has but for `pages`;
        a region that is new is zero but for them.  The bytes are copied.  Raises LoadError for
        what cannot be, ResourceError.
        """
        known = {region.key: region for region in self.regions}
        derived = _placed(
            (placement, _derived(placement, known.get(placement))) for placement in regions
        )
        for address, data in pages:
            region = next((each for each in derived if each.start <= address < each.end), None)
            if region is None or address % PAGE_SIZE or len(memoryview(data)) != PAGE_SIZE:
                raise LoadError(f"{address:#x} is no page of this image, or has not {PAGE_SIZE}")
            page = (address - region.start) // PAGE_SIZE
            error = -lib.pykvm_content_put(region.content, page, ffi.from_buffer(data))
            if error:
                raise refusal("keep a page of an image", error)
        return type(self)(derived)

    @property
    def size(self) -> int:
        """How many bytes all regions hold together."""
        return sum(region.size for region in self.regions)

    def attach(self) -> GuestMemory:
        """A new memory that begins as this image, sharing its pages with all others until written.

        What is written to it shows nowhere else, and what any other memory does not show in it:
        files and memfds that backed regions of the original are not shared with it, and it has no
        huge pages of its own.  It can be frozen and thawed at once, to this image too.  Raises
        ResourceError.
        """
        from pykvm.memory.guest import GuestMemory

        # Nothing is checked against the host's memory: what a fork will write is not known.
        memory = GuestMemory(overcommit=True)
        try:
            memory.adopt(_private(slot, region) for slot, region in enumerate(self.regions))
        except BaseException:
            memory.close()
            raise
        return memory

    def read(self, address: int, length: int) -> bytes:
        """A copy of `length` bytes at `address`.  Raises MemoryRangeError."""
        address, length = integer("address", address), integer("length", length, 0)
        data = bytearray(length)
        position = address
        for region in self.regions:
            end = min(region.end, address + length)
            if region.start <= position < end:
                _read(region, position, memoryview(data)[position - address : end - address])
                position = end
        if position < address + length:
            raise MemoryRangeError(
                f"no guest memory at {position:#x} in this image",
                address=address,
                length=length,
            )
        return bytes(data)

    def pages(self) -> Iterator[tuple[int, bytes]]:
        """Every page that is not zero: its address and its bytes, lowest address first."""
        for region in self.regions:
            for page, data in _present(region):
                yield region.start + page * PAGE_SIZE, data

    def changed(self, since: MemoryImage) -> Iterator[tuple[int, bytes]]:
        """Every page that `since` has otherwise, or not at all, and what it is here.

        Costs what changed, for images of one memory.
        """
        before = {region.key: region for region in since.regions}
        for region in self.regions:
            old = before.get(region.key)
            changes = _present(region) if old is None else _differing(region, old)
            for page, data in changes:
                yield region.start + page * PAGE_SIZE, data

    def digest(self, but: Iterable[tuple[int, int]] = ()) -> bytes:
        """The BLAKE2b digest of the layout and of every page that is not zero, in 32 bytes.

        What lies at the (address, size) of `but`, each of them in one page, counts as zero.

        Equal for equal memory, whatever backs it and however the image came to be.
        """
        from hashlib import blake2b

        blanks: dict[int, list[slice]] = {}
        for address, size in but:
            at = address % PAGE_SIZE
            blanks.setdefault(address - at, []).append(slice(at, min(at + size, PAGE_SIZE)))
        digest = blake2b(digest_size=32)
        for region in self.regions:
            name, kind = region.name.encode("utf-8", "surrogatepass"), region.kind.encode()
            for part in (name, kind, b"%d %d" % (region.start, region.size)):
                digest.update(b"%d:%b," % (len(part), part))
            for page, data in _present(region):
                digest.update(b"%d:" % page)
                digest.update(_blanked(data, blanks.get(region.start + page * PAGE_SIZE, ())))
        return digest.digest()

    def __repr__(self) -> str:
        layout = ", ".join(str(region) for region in self.regions) or "no region"
        return f"<MemoryImage: {layout}>"


def _placed(parts: Iterable[tuple[Placement, Any]]) -> list[FrozenRegion]:
    """Regions of these contents, lowest address first.  Raises LoadError if they cannot be."""
    regions: list[FrozenRegion] = []
    for (name, start, size, kind), content in parts:
        try:
            check_placement(name, start, size, regions)
        except ConfigError as error:
            raise LoadError(str(error)) from None
        regions.append(FrozenRegion(name, start, size, kind, "anonymous", True, False, content))
    return sorted(regions, key=lambda region: region.start)


def _content_of_file(file: int, end: int, name: str, size: int, offset: int) -> Any:
    """What `size` bytes from `offset` on are, in a file of `end` bytes."""
    if size <= 0 or size % PAGE_SIZE or offset % PAGE_SIZE or not 0 <= offset <= end - size:
        raise LoadError(
            f"{name}: {size:#x} bytes at {offset:#x} of a file of {end:#x} bytes: outside "
            f"it, or no multiple of {PAGE_SIZE:#x}"
        )
    number = ffi.new("int32_t *")
    content = owned(lib.pykvm_content_of_file, lib.pykvm_content_free, file, offset, size, number)
    if not content:
        raise refusal(f"map {name} of a file", number[0])
    return content


def _derived(placement: Placement, known: FrozenRegion | None) -> Any:
    """A content of its own for a region, as that of `known` or zero."""
    if known is not None:
        content = owned(lib.pykvm_content_copy, lib.pykvm_content_free, known.content)
    else:
        name, start, size, _ = placement
        try:
            check_placement(name, start, size, ())
        except ConfigError as error:
            raise LoadError(str(error)) from None
        content = owned(lib.pykvm_content_new, lib.pykvm_content_free, size // PAGE_SIZE)
    if not content:
        raise refusal("derive an image", ENOMEM)
    return content


def _blanked(page: bytes, blanks: Iterable[slice]) -> bytes:
    """`page` with zeros at some places."""
    if not blanks:
        return page
    blanked = bytearray(page)
    for blank in blanks:
        blanked[blank] = bytes(blank.stop - blank.start)
    return bytes(blanked)


def _private(slot: int, region: FrozenRegion) -> Region:
    """`region` for a fork."""
    mapping = map_memory(region.size, "anonymous", shared=True, huge_pages=False)
    error = -lib.pykvm_content_map(region.content, mapping.pages.core)
    if error:
        mapping.close()
        raise refusal(f"map {region} of an image", error)
    mapping.is_fork()
    return Region(region.name, region.start, region.size, region.kind, "anonymous", slot, mapping)


def _read(region: FrozenRegion, address: int, into: memoryview) -> None:
    """Copy from `address` on to the zeroed `into`."""
    offset = address - region.start
    data = ffi.new("uint8_t **")
    page, pages = offset // PAGE_SIZE, region.size // PAGE_SIZE
    while True:
        page = lib.pykvm_content_next(region.content, page, data)
        at = page * PAGE_SIZE - offset
        if page >= pages or at >= len(into):
            return
        low, high = max(at, 0), min(at + PAGE_SIZE, len(into))
        into[low:high] = ffi.buffer(data[0], PAGE_SIZE)[low - at : high - at]
        page += 1


def _present(region: FrozenRegion) -> Iterator[tuple[int, bytes]]:
    data = ffi.new("uint8_t **")
    pages = region.size // PAGE_SIZE
    page = lib.pykvm_content_next(region.content, 0, data)
    while page < pages:
        yield page, bytes(ffi.buffer(data[0], PAGE_SIZE))
        page = lib.pykvm_content_next(region.content, page + 1, data)


def _differing(region: FrozenRegion, old: FrozenRegion) -> Iterator[tuple[int, bytes]]:
    data = ffi.new("uint8_t **")
    pages = region.size // PAGE_SIZE
    page = lib.pykvm_content_differs(region.content, old.content, 0)
    while page < pages:
        is_here = lib.pykvm_content_next(region.content, page, data) == page
        yield page, bytes(ffi.buffer(data[0], PAGE_SIZE)) if is_here else _ZERO
        page = lib.pykvm_content_differs(region.content, old.content, page + 1)
