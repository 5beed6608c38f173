"""From a construct definition, as in `pykvm.kvm.abi`, to the layout of the struct."""

from __future__ import annotations

from construct import (
    Array,
    BitsInteger,
    Bytes,
    FixedSized,
    FormatField,
    GreedyBytes,
    GreedyRange,
    Padded,
    Peek,
    Renamed,
    Struct,
    Transformed,
    Union,
)

from pykvm.kvm.codec import BitsLayout, Repeat, StructLayout, UnionLayout, size_of
from pykvm.kvm.flexible import FlexibleLayout
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from pykvm.kvm.codec import Type

__all__ = ["layout_of", "sizeof"]


class _CounterName:
    """Stands in for a construct context, to learn which field a flexible array is counted by."""

    def __getitem__(self, name: str) -> str:
        return name


def sizeof(con: Any) -> int:
    """Return C's sizeof of a construct definition: a flexible array at its end counts nothing."""
    return size_of(_type_of(con, "", {}))


def layout_of(con: Any, name: str, known: Mapping[int, StructLayout] | None = None) -> StructLayout:
    """Return the layout of the construct Struct `con`.

    `known` maps the id() of Structs to layouts already derived, to be shared where `con` nests
    them.  Raises TypeError for a construct that no KVM struct needs.
    """
    known = known or {}
    fields: list[tuple[str, int, Type]] = []
    aliases: list[tuple[str, int, Type]] = []
    offset = 0
    for sub in con.subcons:
        field, inner = sub.name, _unnamed(sub)
        tail = _tail_of(inner)
        if tail is not None:
            counter, element = tail
            layout = element if isinstance(element, str) else _type_of(element, field, known)
            return FlexibleLayout(
                name, offset, tuple(fields), tail=field, element=layout, counter=counter
            )
        if isinstance(inner, Padded):
            offset += inner.length
        elif isinstance(inner, Peek):
            aliases.append((field, offset, _type_of(inner.subcon, f"{name}.{field}", known)))
        else:
            type_ = _type_of(inner, f"{name}.{field}", known)
            fields.append((field, offset, type_))
            offset += size_of(type_)
    return StructLayout(name, offset, tuple(fields), tuple(aliases))


def _unnamed(con: Any) -> Any:
    while isinstance(con, Renamed):
        con = con.subcon
    return con


def _tail_of(con: Any) -> tuple[str | None, Any] | None:
    """Return the counter and the element of a flexible array, None for anything else."""
    if con is GreedyBytes:
        return None, "s"
    if isinstance(con, GreedyRange):
        return None, con.subcon
    if isinstance(con, Bytes) and callable(con.length):
        return con.length(_CounterName()), "s"
    if isinstance(con, Array) and callable(con.count):
        return con.count(_CounterName()), con.subcon
    return None


def _type_of(con: Any, path: str, known: Mapping[int, StructLayout]) -> Type:
    con = _unnamed(con)
    if id(con) in known:
        return known[id(con)]
    if isinstance(con, FormatField):
        if con.fmtstr[0] != "<":
            raise TypeError(f"{path}: KVM's byte order is little-endian, not that of {con!r}")
        return str(con.fmtstr[-1])
    if isinstance(con, Bytes):
        return f"{con.length}s"
    if isinstance(con, Array):
        return Repeat(con.count, _type_of(con.subcon, path, known))
    if isinstance(con, Struct):
        return layout_of(con, path, known)
    if isinstance(con, FixedSized) and isinstance(con.subcon, Union):
        members = ((m.name, _type_of(m, f"{path}.{m.name}", known)) for m in con.subcon.subcons)
        return UnionLayout(path, con.length, tuple(members))
    if isinstance(con, Transformed) and isinstance(con.subcon, Transformed):
        return BitsLayout(path, con.sizeof(), tuple(_bits_of(con.subcon.subcon)))
    raise TypeError(f"{path}: cannot derive a layout from {con!r}")


def _bits_of(con: Any) -> Iterator[tuple[str, int, int]]:
    """Name the bit fields of a byte-swapped BitStruct, whose first member is the highest."""
    shift = 0
    for sub in reversed(con.subcons):
        integer = _unnamed(sub)
        if not isinstance(integer, BitsInteger):
            raise TypeError(f"{sub.name}: cannot derive bit fields from {integer!r}")
        yield sub.name, shift, integer.length
        shift += integer.length
