"""What a PC's firmware leaves in the RAM of the real-time clock.

Source: IBM, Personal System/2 and Personal Computer BIOS Interface Technical Reference, "CMOS RAM
data area" (0x0e to 0x33); QEMU, hw/i386/pc.c for what has no place there: memory above 16 MiB at
0x34 and above 4 GiB at 0x5b, in units of 64 KiB, and at 0x5f the processors less one.
"""

from __future__ import annotations

from pykvm.layout import FOUR_GIB
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["cmos"]

_KIB = 1 << 10
_UNIT = 64 << 10
_MIB = 1 << 20

EQUIPMENT = 0x14
_HAS_FPU = 1 << 1

_CHECKED = range(0x10, 0x2E)
_CHECKSUM = 0x2E


def cmos(ram: Sequence[tuple[int, int]], vcpus: int) -> dict[int, int]:
    """The bytes by their index, for a machine with RAM at these (start, end).

    Sizes that do not fit are the largest that do; too many processors are 1.

    >>> content = cmos([(0, 64 << 20)], 2)
    >>> content[0x34] + 256 * content[0x35] << 16 == 48 << 20
    True
    """
    low = _end_of_low(ram)
    high = sum(end - max(start, FOUR_GIB) for start, end in ram if end > FOUR_GIB)
    extended = max(low - _MIB, 0) // _KIB
    content = {
        EQUIPMENT: _HAS_FPU,
        **_number(0x15, 2, min(low, 640 * _KIB) // _KIB),
        **_number(0x17, 2, extended),
        **_number(0x30, 2, extended),
        **_number(0x34, 2, max(low - 16 * _MIB, 0) // _UNIT),
        **_number(0x5B, 3, high // _UNIT),
        0x5F: vcpus - 1 if vcpus <= 0x100 else 0,
    }
    high_byte, low_byte = sum(content.get(index, 0) for index in _CHECKED).to_bytes(2, "big")
    return {**content, _CHECKSUM: high_byte, _CHECKSUM + 1: low_byte}


def _end_of_low(ram: Sequence[tuple[int, int]]) -> int:
    """Where the RAM that starts at 0 and has no gap ends, or 4 GiB if that is lower."""
    reached = 0
    for start, end in sorted(ram):
        if start > reached:
            break
        reached = max(reached, end)
    return min(reached, FOUR_GIB)


def _number(index: int, size: int, value: int) -> dict[int, int]:
    """`value`, or as much as fits, in `size` bytes from `index` on, the low one first."""
    fitting = min(value, (1 << 8 * size) - 1)
    return dict(enumerate(fitting.to_bytes(size, "little"), index))
