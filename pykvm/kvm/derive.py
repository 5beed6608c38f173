"""From the construct definitions in `pykvm.kvm.abi` to the layouts in `pykvm.kvm.uapi`.

``python -m pykvm.kvm.derive`` writes uapi.py anew after abi has changed; a test fails when the two
differ.  Importing construct takes longer than everything else that a guest needs to start, and
defining the enums of exit reasons and capabilities costs what a device does: so what runs uses the
derived module.
"""

from __future__ import annotations

from pathlib import Path

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

__all__ = ["layout_of", "sizeof", "source"]

_HEAD = '''\
"""The KVM API as data: the layout of every struct, all ioctls, exit reasons and capabilities.

Written by ``python -m pykvm.kvm.derive`` from the construct definitions in `pykvm.kvm.abi`, and
from `pykvm.kvm.reasons` and `pykvm.kvm.capabilities`; change those, not this.
"""

# fmt: off
# ruff: noqa: E501

from pykvm.kvm.codec import BitsLayout, Repeat, StructLayout, UnionLayout
from pykvm.kvm.flexible import FlexibleLayout

'''


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


def _layouts() -> Iterator[tuple[str, StructLayout]]:
    """Derive the layouts of all Structs in `pykvm.kvm.abi`, each before those that nest it."""
    from pykvm.kvm.abi import cpu, run, vm

    known: dict[int, StructLayout] = {}
    for module in (cpu, vm, run):
        for name, con in vars(module).items():
            if name.startswith("kvm_") and id(con) not in known:
                known[id(con)] = layout_of(con, name, known)
                yield name, known[id(con)]


def _numbers() -> Iterator[tuple[str, int]]:
    from pykvm.kvm.abi import ioctls

    for name, value in vars(ioctls).items():
        if name.startswith("KVM_"):
            yield name, value


def _enumerated() -> Iterator[tuple[str, int]]:
    from pykvm.kvm.capabilities import Cap
    from pykvm.kvm.reasons import ExitReason

    for enum in (ExitReason, Cap):
        for name, member in enum.__members__.items():
            yield name, member.value


def _write(type_: Type, names: Mapping[int, str]) -> str:
    """Return the Python expression that makes `type_` again."""
    if isinstance(type_, str):
        return f'"{type_}"'
    if isinstance(type_, Repeat):
        return f"Repeat({type_.length}, {_write(type_.element, names)})"
    if id(type_) in names:
        return names[id(type_)]
    head = f'{type(type_).__name__}("{type_.name}", {type_.size}, '
    if isinstance(type_, UnionLayout):
        members = (f'("{name}", {_write(inner, names)})' for name, inner in type_.members.items())
        return head + _tuple(members) + ")"
    if isinstance(type_, BitsLayout):
        return head + _tuple(f'("{name}", {at}, {width})' for name, at, width in type_.bits) + ")"
    text = head + _tuple(_field(field, names) for field in type_.fields)
    if type_.alias_fields:
        text += ", aliases=" + _tuple(_field(field, names) for field in type_.alias_fields)
    if isinstance(type_, FlexibleLayout):
        text += f', tail="{type_.tail}", element={_write(type_.element, names)}'
        text += f', counter="{type_.counter}"' if type_.counter else ""
    return text + ")"


def _field(field: tuple[str, int, Type], names: Mapping[int, str]) -> str:
    name, offset, type_ = field
    return f'("{name}", {offset}, {_write(type_, names)})'


def _tuple(items: Iterator[str]) -> str:
    return "(" + "".join(f"{item}, " for item in items).rstrip() + ")"


def source() -> str:
    """Return the text of uapi.py."""
    lines, names = [], dict[int, str]()
    for name, layout in _layouts():
        lines.append(f"{name} = {_write(layout, names)}\n")
        names[id(layout)] = name
    lines.append("\n")
    lines.extend(f"{name} = {number:#x}\n" for name, number in _numbers())
    lines.append("\n")
    lines.extend(f"{name} = {number}\n" for name, number in _enumerated())
    return _HEAD + "".join(lines)


if __name__ == "__main__":
    Path(__file__).with_name("uapi.py").write_text(source())
