"""The C types of <linux/types.h>, and the C idioms of <linux/kvm.h>, in construct.

The kernel lays its structs out with natural alignment and mostly pads by name; the few holes that
it leaves to the compiler are `hole(n)` here.  Three idioms of C need a word:

* an anonymous union whose members share one place is its main member, preceded by the others as
  `alias(...)`: parsing shows them all, building takes the main one;
* a named union is `union(size, ...)`: parsing shows every view, building takes the one given;
* a flexible array at the end counts nothing in `sizeof`, as in C.
"""

from __future__ import annotations

from construct import (
    Array,
    BitsInteger,
    BitStruct,
    Bytes,
    ByteSwapped,
    FixedSized,
    GreedyBytes,
    GreedyRange,
    Int8ul,
    Int16sl,
    Int16ul,
    Int32sl,
    Int32ul,
    Int64sl,
    Int64ul,
    Padding,
    Peek,
    Struct,
    Union,
    this,
)

from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "Array",
    "Bytes",
    "GreedyBytes",
    "GreedyRange",
    "Struct",
    "alias",
    "bitfields",
    "hole",
    "pointer",
    "s16",
    "s32",
    "s64",
    "this",
    "u8",
    "u16",
    "u32",
    "u64",
    "union",
]

u8, u16, u32, u64 = Int8ul, Int16ul, Int32ul, Int64ul
s16, s32, s64 = Int16sl, Int32sl, Int64sl
pointer = Int64ul


def alias(name: str, subcon: Any) -> Any:
    """Return another name for the bytes at which the next field starts."""
    return name / Peek(subcon)


def union(size: int, *members: Any) -> Any:
    """Return a C union of `size` bytes."""
    return FixedSized(size, Union(None, *members))


def hole(size: int) -> Any:
    """Return `size` bytes that the C compiler puts in for alignment."""
    return Padding(size)


def bitfields(*members: tuple[str, int]) -> Any:
    """Return little-endian C bit fields, given as (name, width), the lowest bits first.

    >>> bitfields(("low", 4), ("high", 12)).parse(bytes([0x21, 0x43])).high == 0x432
    True
    """
    return ByteSwapped(BitStruct(*(name / BitsInteger(width) for name, width in reversed(members))))
