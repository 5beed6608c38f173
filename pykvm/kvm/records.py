"""What a KVM struct looks like in Python: a record, its fields as attributes.

A `Record` is what getters return and setters take.  Its fields carry the kernel's names; integers
print in hex; a name that the struct does not have is refused at once.  An `Overlay` is the value
of a C union: one run of bytes, read as any of its members.
"""

from __future__ import annotations

from pykvm.typed import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Container, Iterable
    from typing import Any, ClassVar

__all__ = ["Overlay", "Record"]

_SHOWN_BYTES = 16


class _StructLayout(Protocol):
    """What a record needs of `pykvm.kvm.codec.StructLayout`."""

    name: str

    @property
    def aliases(self) -> Container[str]: ...

    def read_alias(self, record: Record, name: str, /) -> Any: ...

    def with_alias(self, record: Record, name: str, value: Any, /) -> dict[str, Any]: ...


class _UnionLayout(Protocol):
    """What an overlay needs of `pykvm.kvm.codec.UnionLayout`."""

    name: str
    size: int

    @property
    def members(self) -> Iterable[str]: ...

    def unpack_member(self, name: str, data: bytes, /) -> Any: ...

    def pack_member(self, name: str, value: Any, data: bytes, /) -> bytes: ...


def show(value: object) -> str:
    """Return `value` as records print it: integers in hex, long byte strings by their length."""
    if isinstance(value, int):
        return hex(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(show, value)) + "]"
    if isinstance(value, bytes | bytearray):
        return f"<{value.hex(' ')}>" if len(value) <= _SHOWN_BYTES else f"<{len(value)} bytes>"
    return repr(value)


def plain(value: object) -> Any:
    """Return `value` with every record in it turned into a dict."""
    if isinstance(value, Record | Overlay):
        return value.as_dict()
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


class Record:
    """One KVM struct by value; `layout.new()` and every getter make one.

    >>> from pykvm.kvm import uapi
    >>> registers = uapi.kvm_dtable.new(base=0x5000)
    >>> registers.limit = 0x27
    >>> registers
    kvm_dtable(base=0x5000, limit=0x27, padding=[0x0, 0x0, 0x0])
    """

    _layout: ClassVar[_StructLayout]

    def __getattr__(self, name: str) -> Any:
        layout = self._layout
        if name in layout.aliases:
            return layout.read_alias(self, name)
        raise AttributeError(f"{layout.name} has no field {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__:
            self.__dict__[name] = value
            return
        layout = self._layout
        if name not in layout.aliases:
            raise AttributeError(f"{layout.name} has no field {name!r}")
        self.__dict__.update(layout.with_alias(self, name, value))

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be deleted")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={show(value)}" for name, value in self.__dict__.items())
        return f"{self._layout.name}({fields})"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain dicts, lists, ints and bytes."""
        return {name: plain(value) for name, value in self.__dict__.items()}


#: In `Overlay.as_dict`, the name of the union's bytes.
RAW = "raw"


class Overlay:
    """The value of a C union: bytes that are read and written as one member at a time.

    Reading a member gives a view that may be changed; the union takes those changes over when it
    is packed or when another member is looked at.  Assigning a member replaces the bytes.

    >>> from pykvm.kvm import uapi
    >>> entry = uapi.kvm_irq_routing_entry.new(gsi=4)
    >>> entry.u.irqchip.pin = 3
    >>> entry.u.pad[:2]
    [0, 3]
    """

    __slots__ = ("_bytes", "_layout", "_member", "_view")

    _bytes: bytes
    _layout: _UnionLayout
    _member: str | None
    _view: Any

    def __init__(self, layout: _UnionLayout, data: bytes) -> None:
        keep = object.__setattr__
        keep(self, "_layout", layout)
        keep(self, "_bytes", data)
        keep(self, "_member", None)
        keep(self, "_view", None)

    def __bytes__(self) -> bytes:
        """Return the union's bytes, changes made through the last view included."""
        member, layout = self._member, self._layout
        # A view that was only looked at changes nothing, not even the holes in its struct.
        if member is not None and self._view != layout.unpack_member(member, self._bytes):
            data = layout.pack_member(member, self._view, self._bytes)
            object.__setattr__(self, "_bytes", data)
        return self._bytes

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in self._layout.members:
            raise AttributeError(f"{self._layout.name} has no member {name!r}")
        if name != self._member:
            data = bytes(self)
            object.__setattr__(self, "_view", self._layout.unpack_member(name, data))
            object.__setattr__(self, "_member", name)
        return self._view

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._layout.members:
            raise AttributeError(f"{self._layout.name} has no member {name!r}")
        data = self._layout.pack_member(name, value, bytes(self._layout.size))
        object.__setattr__(self, "_bytes", data)
        object.__setattr__(self, "_member", None)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Overlay):
            return NotImplemented
        return self._layout is other._layout and bytes(self) == bytes(other)

    __hash__ = None  # type: ignore[assignment]

    def __copy__(self) -> Overlay:
        return Overlay(self._layout, bytes(self))

    def __deepcopy__(self, memo: object) -> Overlay:
        return Overlay(self._layout, bytes(self))

    def __repr__(self) -> str:
        return f"{self._layout.name}({' | '.join(self._layout.members)}: {show(bytes(self))})"

    def as_dict(self) -> dict[str, Any]:
        """Return the union as the member that was looked at last, if that is all of it, or as RAW.

        Either is taken where the union is.
        """
        member, layout, data = self._member, self._layout, bytes(self)
        if member is not None and layout.pack_member(member, self._view, bytes(len(data))) == data:
            return {member: plain(self._view)}
        return {RAW: data}
