"""Memory types by address: the MTRRs, as firmware leaves them to a kernel (SDM 3A 12.11).

The chapter is number 11 in older editions.
"""

from __future__ import annotations

from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["IA32_MTRRCAP", "IA32_MTRR_DEF_TYPE", "firmware_mtrrs"]

IA32_MTRRCAP = 0xFE
IA32_MTRR_PHYSBASE0 = 0x200
IA32_MTRR_PHYSMASK0 = 0x201
IA32_MTRR_DEF_TYPE = 0x2FF

# IA32_MTRRCAP: how many variable ranges there are, and whether there are fixed ones.
VCNT = 0xFF
FIX = 1 << 8

# IA32_MTRR_PHYSMASKn and IA32_MTRR_DEF_TYPE.
VALID = 1 << 11
ENABLE = 1 << 11
FIXED_ENABLE = 1 << 10

UNCACHEABLE = 0
WRITE_BACK = 6

# Table 12-9: eight ranges in each.  The first MiB but the VGA's memory, at 0xA0000 to 0xBFFFF.
_FIXED = (0x250, 0x258, 0x259, *range(0x268, 0x270))
_FIXED_VGA = 0x259
_ALL_WRITE_BACK = WRITE_BACK * 0x0101_0101_0101_0101

HOLE_END = 1 << 32
_PAGE = 0x1000


def firmware_mtrrs(
    ram: Iterable[tuple[int, int]], *, capabilities: int, physical_bits: int
) -> dict[int, int]:
    """The MTRRs as QEMU's firmware leaves them: MSRs and their values, in order of writing.

    All is write-back but the VGA's memory and the hole for devices between RAM and 4 GiB.  `ram` is
    (start, end) each, `capabilities` IA32_MTRRCAP and `physical_bits` MAXPHYADDR.

    >>> msrs = firmware_mtrrs([(0, 3 << 30)], capabilities=0x508, physical_bits=40)
    >>> [hex(msrs[index]) for index in (0x200, 0x201, 0x2FF)]
    ['0xc0000000', '0xffc0000800', '0xc06']
    """
    msrs = {}
    if capabilities & FIX:
        msrs = dict.fromkeys(_FIXED, _ALL_WRITE_BACK)
        msrs[_FIXED_VGA] = UNCACHEABLE
    low = max((min(end, HOLE_END) for start, end in ram if start < HOLE_END), default=0)
    for number, (base, size) in enumerate(_hole(low, capabilities & VCNT)):
        msrs[IA32_MTRR_PHYSBASE0 + 2 * number] = base | UNCACHEABLE
        mask = (1 << physical_bits) - size
        msrs[IA32_MTRR_PHYSMASK0 + 2 * number] = mask | VALID
    enabled = ENABLE | (FIXED_ENABLE if capabilities & FIX else 0)
    return {**msrs, IA32_MTRR_DEF_TYPE: enabled | WRITE_BACK}


def _hole(start: int, count: int) -> list[tuple[int, int]]:
    """What lies between `start` and 4 GiB, from above: (base, size) of `count` pieces at most.

    Each has a size that is a power of two, and is aligned to it.  The 1 GiB below 4 GiB is all that
    is looked at: a PC's devices are there.
    """
    pieces: list[tuple[int, int]] = []
    end, low = HOLE_END, max(start, 3 << 30)
    while len(pieces) < count and end - low >= _PAGE:
        size = 1 << (end - low).bit_length() - 1
        while end % size:
            size >>= 1
        end -= size
        pieces.append((end, size))
    return pieces
