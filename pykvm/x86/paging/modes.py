"""The paging modes, the shape of their tables, and the bits of an entry."""

from __future__ import annotations

from pykvm.values.enumeration import Enum
from pykvm.values.frozen import NamedTuple
from pykvm.x86.registers import CR0, CR4, EFER

__all__ = ["PAGE_SIZE", "PTE", "LevelFormat", "PagingMode"]

PAGE_SIZE = 0x1000


class PTE:
    """Bits of a paging-structure entry (SDM 3A tables 4-4 to 4-20).

    PAT is bit 7 in an entry that maps a 4 KiB page and bit 12, here LARGE_PAT, in a larger one.
    """

    P = 1 << 0
    W = 1 << 1
    U = 1 << 2
    PWT = 1 << 3
    PCD = 1 << 4
    A = 1 << 5
    D = 1 << 6
    PS = 1 << 7
    PAT = 1 << 7
    G = 1 << 8
    LARGE_PAT = 1 << 12
    NX = 1 << 63


class LevelFormat(NamedTuple):
    """One level of tables: the entry's name, its index in the address, and whether it can map.

    An entry covers 2**`shift` bytes and is chosen by the `bits` address bits above.  `large` says
    that PS may be set in it.
    """

    name: str
    shift: int
    bits: int
    large: bool = False


_PML5E = LevelFormat("PML5E", 48, 9)
_PML4E = LevelFormat("PML4E", 39, 9)
_PDPTE = LevelFormat("PDPTE", 30, 9, large=True)
_PDE = LevelFormat("PDE", 21, 9, large=True)
_PTE = LevelFormat("PTE", 12, 9)


class PagingMode(Enum):
    """How linear addresses become physical ones (SDM 3A 4.1.1)."""

    NONE = "no paging"
    LEGACY32 = "32-bit paging"
    PAE = "PAE paging"
    LEVEL4 = "4-level paging"
    LEVEL5 = "5-level paging"

    def __str__(self) -> str:
        return self.value

    @classmethod
    def of(cls, cr0: int, cr4: int, efer: int) -> PagingMode:
        """The mode that these register values select.

        >>> PagingMode.of(CR0.PE | CR0.PG, CR4.PAE, EFER.LME | EFER.LMA)
        <PagingMode.LEVEL4: '4-level paging'>
        """
        if not cr0 & CR0.PG:
            return cls.NONE
        if not cr4 & CR4.PAE:
            return cls.LEGACY32
        if not efer & EFER.LMA:
            return cls.PAE
        return cls.LEVEL5 if cr4 & CR4.LA57 else cls.LEVEL4

    @property
    def levels(self) -> tuple[LevelFormat, ...]:
        """The levels of tables, root first."""
        return _LEVELS[self]

    @property
    def entry_size(self) -> int:
        """The size of an entry in bytes: 4 in 32-bit paging, else 8."""
        return 4 if self is PagingMode.LEGACY32 else 8

    @property
    def linear_bits(self) -> int:
        """How many bits of a linear address are translated; the rest must be canonical."""
        return {PagingMode.LEVEL4: 48, PagingMode.LEVEL5: 57}.get(self, 32)

    @property
    def page_sizes(self) -> tuple[int, ...]:
        """The page sizes of the mode in bytes, smallest first.

        >>> [size >> 10 for size in PagingMode.LEGACY32.page_sizes]
        [4, 4096]
        """
        return tuple(
            1 << level.shift
            for level in reversed(self.levels)
            if level.large or level.shift == _PTE.shift
        )

    def canonical(self, address: int) -> bool:
        """Whether `address` is a linear address of this mode (SDM 1 3.3.7.1)."""
        if self.linear_bits == 32:
            return 0 <= address < 1 << 32
        top = address >> (self.linear_bits - 1)
        return top in (0, (1 << 65 - self.linear_bits) - 1)


_LEVELS = {
    PagingMode.NONE: (),
    PagingMode.LEGACY32: (LevelFormat("PDE", 22, 10, large=True), LevelFormat("PTE", 12, 10)),
    PagingMode.PAE: (LevelFormat("PDPTE", 30, 2), _PDE, _PTE),
    PagingMode.LEVEL4: (_PML4E, _PDPTE, _PDE, _PTE),
    PagingMode.LEVEL5: (_PML5E, _PML4E, _PDPTE, _PDE, _PTE),
}
