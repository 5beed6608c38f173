"""From the construct definitions in `pykvm.kvm.abi` to the layouts in `pykvm.kvm.uapi`.

``python -m pykvm.kvm.derive`` writes uapi.py anew after abi has changed; a test fails when the two
differ.  Importing construct takes longer than everything else that a guest needs to start, and
defining the enums of exit reasons and capabilities costs what a device does: so what runs uses the
derived module.
"""

from __future__ import annotations

from pathlib import Path

from pykvm.kvm.codec import BitsLayout, Repeat, UnionLayout
from pykvm.kvm.flexible import FlexibleLayout
from pykvm.kvm.layouts import layout_of
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pykvm.kvm.codec import StructLayout, Type

__all__ = ["source"]

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
