"""Page tables, built: mapping by mapping, or all at once for an identity map."""

from __future__ import annotations

import struct

from pykvm.errors import ConfigError, MemoryRangeError
from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple
from pykvm.x86.paging.modes import PAGE_SIZE, PTE, LevelFormat, PagingMode

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["IdentityTables", "PageTables", "identity"]

_LARGE = 2 << 20
# A physical address has 52 bits at most (SDM 3A 4.1.4); the entries of 32-bit paging hold 32, those
# for its 4 MiB pages 40, the high eight of them in bits 20:13 (PSE-36, SDM 3A table 4-4).
_PHYSICAL_BITS = 52
_PSE36_BITS = 40


class IdentityTables(NamedTuple):
    """Page tables as one piece of memory: put `image` at the guest-physical address `base`."""

    mode: PagingMode
    base: int
    image: bytes

    @property
    def root(self) -> int:
        """The value for CR3; the root table comes first."""
        return self.base

    @property
    def size(self) -> int:
        """The size of the tables in bytes."""
        return len(self.image)

    @property
    def pages(self) -> dict[int, bytes]:
        """The tables one by one, by guest-physical address."""
        return {
            self.base + offset: self.image[offset : offset + PAGE_SIZE]
            for offset in range(0, len(self.image), PAGE_SIZE)
        }

    def read(self, address: int, size: int) -> bytes:
        """`size` bytes of the tables at the guest-physical `address`, as `walk` reads them.

        Raises MemoryRangeError outside the tables.
        """
        start = address - self.base
        if start < 0 or start + size > len(self.image):
            raise _outside(address, size)
        return self.image[start : start + size]


def identity(
    length: int,
    *,
    base: int,
    page_size: int = _LARGE,
    user: bool = False,
    writable: bool = True,
    mode: PagingMode = PagingMode.LEVEL4,
) -> IdentityTables:
    """Tables that map linear addresses 0 to `length` to themselves, executable.

    `length` is rounded up to whole pages.  The tables lie one after another from `base`, root
    first, a page each.  Raises ConfigError for a page size that `mode` does not have, a `length`
    beyond its address space, or a `base` that no table can have.

    >>> tables = identity(4 << 30, base=0x1000)
    >>> tables.size // PAGE_SIZE, hex(tables.root)
    (6, '0x1000')
    """
    levels = _levels_down_to(mode, page_size)
    half = mode.linear_bits - (mode.linear_bits > 32)
    if not 0 < length <= 1 << half:
        raise ConfigError(f"{mode} cannot map {length:#x} bytes from address 0")
    _check_table(mode, base)

    counts = []
    entries = -(-length // page_size)
    for level in reversed(levels):
        tables = -(-entries >> level.bits)
        counts.append((entries, tables))
        entries = tables
    counts.reverse()

    rights = PTE.P | PTE.W * writable | PTE.U * user
    format_character = "I" if mode.entry_size == 4 else "Q"
    image = []
    below = base
    for level, (entries, tables) in zip(levels, counts, strict=True):
        below += tables * PAGE_SIZE
        if level is levels[-1]:
            first, step = rights | PTE.PS * (page_size > PAGE_SIZE), page_size
        else:
            first, step = below | (PTE.P if _rightless(mode, level) else rights), PAGE_SIZE
        values = range(first, first + entries * step, step)
        image.append(struct.pack(f"<{entries}{format_character}", *values))
        image.append(bytes(tables * PAGE_SIZE - entries * mode.entry_size))
    return IdentityTables(mode, base, b"".join(image))


class PageTables:
    """Page tables that grow with each mapping.

    `allocate` returns the guest-physical address of a free page, a new one at each call.  `pages`
    holds the tables by that address, for the caller to write there; `root` is the value for CR3.
    An entry that leads to a table allows what any page below it allows, so that the page's own
    entry decides.

    >>> tables = PageTables(PagingMode.LEVEL4, iter(range(0x1000, 0x9000, 0x1000)).__next__)
    >>> tables.map(0xFFFF_8000_0000_0000, 0x20_0000, 0x20_0000, page_size=0x20_0000)
    >>> [hex(address) for address in tables.pages]
    ['0x1000', '0x2000', '0x3000']
    """

    def __init__(self, mode: PagingMode, allocate: Callable[[], int]) -> None:
        if mode is PagingMode.NONE:
            raise ConfigError("there are no page tables without paging")
        self.mode = mode
        self.pages: dict[int, bytearray] = {}
        self._allocate = allocate
        self._entry = struct.Struct("<I" if mode.entry_size == 4 else "<Q")
        self.root = self._new_table()

    def map(
        self,
        virtual: int,
        physical: int,
        length: int,
        page_size: int | None = PAGE_SIZE,
        *,
        writable: bool = True,
        user: bool = False,
        executable: bool = True,
        global_page: bool = False,
        pat: int = 0,
        accessed: bool = False,
        dirty: bool = False,
    ) -> None:
        """Map `length` bytes at `virtual` to `physical` in pages of `page_size` bytes.

        With None as `page_size` each page is the largest that fits.  `pat` is the index of the
        memory type in IA32_PAT, 0 to 7.  A page that was mapped in the same size is mapped anew.

        Raises ConfigError if an address is not aligned, not canonical or too large, the mode has no
        such page or no NX, or a page of another size is in the way.
        """
        self._check(virtual, physical, length, page_size, pat)
        flags = (
            PTE.P
            | PTE.W * writable
            | PTE.U * user
            | PTE.PWT * (pat & 1)
            | PTE.PCD * (pat >> 1 & 1)
            | PTE.A * accessed
            | PTE.D * dirty
            | PTE.G * global_page
        )
        if not executable:
            if self.mode is PagingMode.LEGACY32:
                raise ConfigError("32-bit paging has no NX: every page is executable")
            flags |= PTE.NX
        end = virtual + length
        while virtual < end:
            size = page_size or self._largest(virtual, physical, end)
            self._map_page(virtual, physical, size, flags, pat >> 2)
            virtual += size
            physical += size

    def read(self, address: int, size: int) -> bytes:
        """`size` bytes of a table at the guest-physical `address`, as `walk` reads them.

        Raises MemoryRangeError where there is no table.
        """
        page = self.pages.get(address & -PAGE_SIZE)
        offset = address & (PAGE_SIZE - 1)
        if page is None or offset + size > PAGE_SIZE:
            raise _outside(address, size)
        return bytes(page[offset : offset + size])

    def _map_page(self, virtual: int, physical: int, size: int, flags: int, pat: int) -> None:
        """Write one entry, and the tables on the way to it that do not exist yet."""
        table = self.root
        for level in self.mode.levels:
            offset = (virtual >> level.shift & (1 << level.bits) - 1) * self._entry.size
            page = self.pages[table]
            (entry,) = self._entry.unpack_from(page, offset)
            is_page = level.shift == 12 or bool(level.large and entry & PTE.PS)
            if 1 << level.shift == size:
                if entry & PTE.P and not is_page:
                    raise _occupied(virtual, size, level, "a table of smaller pages")
                self._entry.pack_into(page, offset, _leaf(physical, size, flags, pat))
                return
            if entry & PTE.P:
                if is_page:
                    raise _occupied(virtual, size, level, f"a page of {1 << level.shift:#x} bytes")
            else:
                entry = self._new_table() | PTE.P
            if not _rightless(self.mode, level):
                entry |= flags & (PTE.W | PTE.U)
            self._entry.pack_into(page, offset, entry)
            # Bits 51:12 of the entry; bit 12 and up are clear in no table's address but its own.
            table = entry & (1 << _PHYSICAL_BITS) - PAGE_SIZE

    def _new_table(self) -> int:
        address = self._allocate()
        _check_table(self.mode, address)
        self.pages[address] = bytearray(PAGE_SIZE)
        return address

    def _largest(self, virtual: int, physical: int, end: int) -> int:
        """The largest page that `virtual` and `physical` are aligned to and that `end` allows."""
        return next(
            size
            for size in reversed(self.mode.page_sizes)
            if not (virtual | physical) & (size - 1) and virtual + size <= end
        )

    def _check(
        self, virtual: int, physical: int, length: int, page_size: int | None, pat: int
    ) -> None:
        if page_size is not None:
            _levels_down_to(self.mode, page_size)
        unit = page_size or PAGE_SIZE
        for name, value in (("virtual", virtual), ("physical", physical), ("length", length)):
            if value & (unit - 1):
                raise ConfigError(f"{name} {value:#x} is not a multiple of the page, {unit:#x}")
        if length <= 0:
            raise ConfigError(f"cannot map {length} bytes")
        last = virtual + length - 1
        # Both ends canonical and in different halves would mean the hole lies between them.
        if (
            not self.mode.canonical(virtual)
            or not self.mode.canonical(last)
            or (virtual ^ last) >> self.mode.linear_bits
        ):
            raise ConfigError(f"{virtual:#x}-{last:#x} is not a linear range of {self.mode}")
        bits = _PHYSICAL_BITS
        if self.mode is PagingMode.LEGACY32:
            bits = _PSE36_BITS if unit > PAGE_SIZE else 32
        if physical < 0 or physical + length > 1 << bits:
            raise ConfigError(f"physical {physical:#x}+{length:#x} does not fit {bits} bits")
        if not 0 <= pat < 8:
            raise ConfigError(f"PAT has 8 entries, there is no {pat}")


def _check_table(mode: PagingMode, address: int) -> None:
    """Raise ConfigError unless a table can lie there: CR3 holds 32 bits outside long mode."""
    bits = 32 if mode.linear_bits == 32 else _PHYSICAL_BITS
    if address & (PAGE_SIZE - 1) or address < 0 or address >> bits:
        raise ConfigError(f"a page table of {mode} cannot lie at {address:#x}")


def _leaf(physical: int, size: int, flags: int, pat: int) -> int:
    """The entry that maps a page; physical bits 39:32 of a 4 MiB page go to bits 20:13."""
    if size == PAGE_SIZE:
        return physical | flags | PTE.PAT * pat
    if size == 4 << 20:
        physical = physical & 0xFFFF_FFFF | physical >> 32 << 13
    return physical | flags | PTE.PS | PTE.LARGE_PAT * pat


def _rightless(mode: PagingMode, level: LevelFormat) -> bool:
    """Whether the entries carry no rights: W and U are reserved in PAE's PDPTEs (SDM table 4-8)."""
    return mode is PagingMode.PAE and level.name == "PDPTE"


def _levels_down_to(mode: PagingMode, page_size: int) -> tuple[LevelFormat, ...]:
    """The levels of `mode` from the root to the one that maps pages of `page_size`."""
    if page_size not in mode.page_sizes:
        sizes = ", ".join(f"{size:#x}" for size in mode.page_sizes) or "none"
        raise ConfigError(f"{mode} has no pages of {page_size:#x} bytes", hint=f"it has {sizes}")
    return tuple(level for level in mode.levels if 1 << level.shift >= page_size)


def _occupied(virtual: int, size: int, level: LevelFormat, what: str) -> ConfigError:
    return ConfigError(f"cannot map {size:#x} bytes at {virtual:#x}: its {level.name} holds {what}")


def _outside(address: int, size: int) -> MemoryRangeError:
    return MemoryRangeError(
        f"{address:#x}+{size} is in none of the tables", address=address, length=size
    )
