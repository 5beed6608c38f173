"""Packing and unpacking KVM structs at the speed of `struct`.

A layout says where each field of a C struct lies.  `pykvm.kvm.uapi` holds the layouts of the whole
KVM API, derived from the construct definitions in `pykvm.kvm.abi`.  On first use a layout turns
itself into one `struct.Struct`, so that kvm_sregs, 312 bytes in 151 fields, unpacks in some
microseconds where construct's own parser takes 200.

Structs that end in a flexible array are in `pykvm.kvm.flexible`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property

from pykvm.errors import ConfigError
from pykvm.kvm.records import RAW, Overlay, Record, show
from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple

if TYPE_CHECKING:
    from typing import Any, TypeAlias

    # Anything with the buffer protocol, which Python 3.10 has no name for.
    Buffer: TypeAlias = Any
    Values: TypeAlias = tuple[Any, ...]
    Store: TypeAlias = Callable[[Any, list[Any], str], None]
    # A `struct` format character, "16s" for bytes, an array or a nested layout.
    Type: TypeAlias = "str | Repeat | StructLayout | UnionLayout"

__all__ = ["BitsLayout", "Repeat", "StructLayout", "UnionLayout", "size_of"]


class Repeat(NamedTuple):
    """A C array of a fixed length."""

    length: int
    element: Type


def size_of(type_: Type) -> int:
    """Return the size in bytes of a scalar, byte string, array or nested layout."""
    if isinstance(type_, str):
        return struct.calcsize("<" + type_)
    if isinstance(type_, Repeat):
        return type_.length * size_of(type_.element)
    return type_.size


class _Step(NamedTuple):
    """How one field travels between `struct`'s flat tuple and a record.

    A field without `load` and `store` is a plain value.
    """

    name: str
    offset: int
    format: str
    width: int
    load: Callable[[Values], Any] | None
    store: Store | None


def _step(name: str, offset: int, type_: Type) -> _Step:
    if isinstance(type_, Repeat):
        return _array_step(name, offset, type_)
    if not isinstance(type_, str):
        return _Step(name, offset, type_.format, type_.width, type_.load, type_.store)
    if type_.endswith("s"):
        return _Step(name, offset, type_, 1, _first, _bytes_store(size_of(type_)))
    return _Step(name, offset, type_, 1, None, None)


def _first(values: Values) -> Any:
    return values[0]


def _bytes_store(size: int) -> Store:
    def store(value: Any, out: list[Any], where: str) -> None:
        if isinstance(value, int | str):
            raise ConfigError(f"{where}: expected up to {size} bytes, not {value!r}")
        data = bytes(value)
        if len(data) > size:
            raise ConfigError(f"{where}: {len(data)} bytes do not fit in {size}")
        out.append(data)

    return store


def _array_step(name: str, offset: int, array: Repeat) -> _Step:
    count, one = array.length, _step("", 0, array.element)
    load, store, width = one.load, one.store, one.width

    def load_all(values: Values) -> list[Any]:
        if load is None:
            return list(values)
        return [load(values[at : at + width]) for at in range(0, count * width, width)]

    def store_all(value: Any, out: list[Any], where: str) -> None:
        items = list(value) if isinstance(value, Iterable) else None
        if items is None or len(items) != count:
            raise ConfigError(f"{where}: expected {count} elements, not {show(value)}")
        if store is None:
            out.extend(items)
            return
        for index, item in enumerate(items):
            store(item, out, f"{where}[{index}]")

    format_ = f"{count}{one.format}" if store is None else one.format * count
    return _Step(name, offset, format_, count * width, load_all, store_all)


def _leaves(path: str, type_: Type) -> Iterator[tuple[str, str]]:
    """Name every value of the flat format of `type_`, for the sake of error messages."""
    if isinstance(type_, Repeat):
        for index in range(type_.length):
            yield from _leaves(f"{path}[{index}]", type_.element)
    elif isinstance(type_, str):
        yield path, type_
    elif type_.width == 1 and type_.format.endswith("s"):
        yield path, type_.format
    elif isinstance(type_, StructLayout):
        for name, _, inner in type_.fields:
            yield from _leaves(f"{path}.{name}", inner)


def check(path: str, format_: str, value: Any) -> None:
    """Raise ConfigError, naming `path`, if `struct` does not take `value` as `format_`."""
    try:
        struct.pack("<" + format_, value)
    except (struct.error, OverflowError, TypeError):
        sign = "signed" if format_.islower() else "unsigned"
        bits = 8 * struct.calcsize("<" + format_)
        raise ConfigError(f"{path}: {show(value)} is no {sign} {bits}-bit integer") from None


class StructLayout:
    """The layout of one C struct.

    `fields` and `aliases` are (name, offset, type); an alias is the further name that a member of
    an anonymous union gives to a field's bytes.

    >>> point = StructLayout("point", 8, (("x", 0, "I"), ("y", 4, "I")))
    >>> point.unpack(point.pack({"y": 2}))
    point(x=0x0, y=0x2)
    """

    def __init__(
        self,
        name: str,
        size: int,
        fields: tuple[tuple[str, int, Type], ...],
        aliases: tuple[tuple[str, int, Type], ...] = (),
    ) -> None:
        self.name = name
        self.size = size
        self.fields = fields
        self.alias_fields = aliases

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}, {self.size} bytes>"

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the fields, in their order."""
        return tuple(name for name, _, _ in self.fields)

    @cached_property
    def aliases(self) -> dict[str, _Step]:
        """The further names of anonymous unions' members."""
        return {name: _step(name, offset, type_) for name, offset, type_ in self.alias_fields}

    @cached_property
    def _steps(self) -> list[_Step]:
        return [_step(name, offset, type_) for name, offset, type_ in self.fields]

    @cached_property
    def format(self) -> str:
        """The `struct` format of the whole, without its byte order."""
        parts, at = [], 0
        for step in self._steps:
            parts.append("x" * (step.offset - at) + step.format)
            at = step.offset + struct.calcsize("<" + step.format)
        return "".join(parts) + "x" * (self.size - at)

    @cached_property
    def width(self) -> int:
        """How many values `struct` makes of it."""
        return sum(step.width for step in self._steps)

    @cached_property
    def packer(self) -> struct.Struct:
        """The `struct.Struct` that does the work."""
        return struct.Struct("<" + self.format)

    @cached_property
    def record(self) -> type[Record]:
        """The class of this struct's records."""
        return type(self.name, (Record,), {"_layout": self})

    @cached_property
    def _loaders(self) -> list[tuple[str, int, int, Callable[[Values], Any] | None]] | None:
        """Where each field's values lie, or None where every field is one plain value."""
        if all(step.load is None for step in self._steps):
            return None
        loaders, at = [], 0
        for step in self._steps:
            loaders.append((step.name, at, at + step.width, step.load))
            at += step.width
        return loaders

    def load(self, values: Values) -> Record:
        """Return the record that `struct`'s flat `values` make."""
        record = self.record()
        fields = record.__dict__
        if self._loaders is None:
            fields.update(zip(self.names, values, strict=True))
            return record
        for name, start, stop, load in self._loaders:
            fields[name] = values[start] if load is None else load(values[start:stop])
        return record

    def store(self, value: Any, out: list[Any], where: str) -> None:
        """Append `value`, a record or a mapping, to `out` as flat values."""
        if type(value) is dict and value.keys() <= self._zeros.keys():
            # Most ioctls get a few fields: no record is made for them.
            self._store_some(value, out, where)
            return
        fields = self.fields_of(value, where)
        if self._loaders is None:
            out.extend(map(fields.__getitem__, self.names))
            return
        for step in self._steps:
            if step.store is None:
                out.append(fields[step.name])
            else:
                step.store(fields[step.name], out, f"{where}.{step.name}")

    @cached_property
    def _zeros(self) -> dict[str, Values]:
        """By field, the flat values that stand for it where all of its bytes are zero."""
        values, zeros, at = self.packer.unpack(bytes(self.size)), {}, 0
        for step in self._steps:
            zeros[step.name] = values[at : at + step.width]
            at += step.width
        return zeros

    def _store_some(self, fields: dict[str, Any], out: list[Any], where: str) -> None:
        """Append `fields`, and zeros for those that are left out."""
        zeros = self._zeros
        for step in self._steps:
            if step.name not in fields:
                out.extend(zeros[step.name])
            elif step.store is None:
                out.append(fields[step.name])
            else:
                step.store(fields[step.name], out, f"{where}.{step.name}")

    def fields_of(self, value: Any, where: str) -> dict[str, Any]:
        """Return every field of `value`: one of our records, a mapping, or None for zeros."""
        if type(value) is self.record:
            return value.__dict__
        record = self.zero()
        if value is None:
            return record.__dict__
        if not isinstance(value, Mapping):
            kind = type(value).__name__
            raise ConfigError(f"{where}: expected a {self.name} record or a mapping, not {kind}")
        for name, field in value.items():
            if name not in record.__dict__ and name not in self.aliases:
                known = ", ".join((*record.__dict__, *self.aliases))
                raise ConfigError(f"{self.name} has no field {name!r}", hint=f"it has {known}")
            setattr(record, name, field)
        return record.__dict__

    def new(self, **fields: Any) -> Record:
        """Return a record of zeros with `fields` set; mappings in them become records.

        Raises ConfigError for a field that the struct does not have or that does not fit.
        """
        return self.unpack(self.pack(fields)) if fields else self.zero()

    def zero(self) -> Record:
        """Return a record whose every byte is zero."""
        return self.load(self.packer.unpack(bytes(self.size)))

    def unpack(self, buffer: Buffer, offset: int = 0) -> Record:
        """Return the struct at `offset` of `buffer` as a record."""
        return self.load(self.packer.unpack_from(buffer, offset))

    def pack(self, value: Any = None) -> bytearray:
        """Return `value` as the bytes of the C struct.

        `value` is a record or any mapping: fields that a mapping leaves out are zero, and None is
        all zeros.  Raises ConfigError, naming the field, for what does not fit or does not exist.
        """
        out: list[Any] = []
        self.store(value, out, self.name)
        data = bytearray(self.size)
        try:
            self.packer.pack_into(data, 0, *out)
        except (struct.error, OverflowError, TypeError):
            for (path, format_), item in zip(_leaves(self.name, self), out, strict=True):
                check(path, format_, item)
            raise
        return data

    def offset_of(self, path: str) -> int:
        """Return the offset of a field given by its path: ``cs.base``, ``db[2]``."""
        at, type_ = 0, self
        for part in path.replace("[", ".").replace("]", "").split("."):
            step, type_ = _inside(type_, part, path)
            at += step
        return at

    def read_alias(self, record: Record, name: str) -> Any:
        """Return the bytes of `record` that `name` stands for."""
        step = self.aliases[name]
        return struct.unpack_from("<" + step.format, self.pack(record), step.offset)[0]

    def with_alias(self, record: Record, name: str, value: Any) -> dict[str, Any]:
        """Return the fields of `record` with the bytes that `name` stands for set to `value`."""
        step = self.aliases[name]
        check(f"{self.name}.{name}", step.format, value)
        data = self.pack(record)
        struct.pack_into("<" + step.format, data, step.offset, value)
        return self.unpack(data).__dict__


def _inside(type_: Any, part: str, path: str) -> tuple[int, Any]:
    if isinstance(type_, Repeat) and part.isdigit() and int(part) < type_.length:
        return int(part) * size_of(type_.element), type_.element
    if isinstance(type_, UnionLayout) and part in type_.members:
        return 0, type_.members[part]
    if isinstance(type_, StructLayout):
        for name, offset, inner in (*type_.fields, *type_.alias_fields):
            if name == part:
                return offset, inner
    raise ConfigError(f"no field {part!r} in {path!r}")


class BitsLayout(StructLayout):
    """C bit fields: `bits` are (name, lowest bit, width) of one little-endian integer."""

    def __init__(self, name: str, size: int, bits: tuple[tuple[str, int, int], ...]) -> None:
        super().__init__(name, size, ())
        self.bits = bits
        self.format = f"{size}s"
        self.width = 1

    def load(self, values: Values) -> Record:
        """Return the record of the bit fields in ``values[0]``, bytes."""
        word = int.from_bytes(values[0], "little")
        record = self.record()
        for name, shift, width in self.bits:
            record.__dict__[name] = word >> shift & (1 << width) - 1
        return record

    def store(self, value: Any, out: list[Any], where: str) -> None:
        """Append `value`, a record or a mapping, to `out` as bytes."""
        fields = self.fields_of(value, where)
        word = 0
        for name, shift, width in self.bits:
            field = fields[name]
            if not isinstance(field, int) or field >> width:
                raise ConfigError(f"{where}.{name}: {show(field)} does not fit in {width} bits")
            word |= field << shift
        out.append(word.to_bytes(self.size, "little"))


class UnionLayout:
    """A named C union: `members` are (name, type)."""

    width = 1

    def __init__(self, name: str, size: int, members: tuple[tuple[str, Type], ...]) -> None:
        self.name = name
        self.size = size
        self.members = dict(members)
        self.format = f"{size}s"

    def __repr__(self) -> str:
        return f"<UnionLayout {self.name}, {self.size} bytes>"

    def load(self, values: Values) -> Overlay:
        """Return the union whose bytes are ``values[0]``."""
        return Overlay(self, values[0])

    def store(self, value: Any, out: list[Any], where: str) -> None:
        """Append `value` to `out` as bytes: an overlay, a mapping of one member, or bytes.

        In a mapping, `RAW` is a member that has all of the union's bytes.
        """
        if isinstance(value, Overlay):
            value = bytes(value)
        if isinstance(value, Mapping) and value.keys() == {RAW}:
            value = value[RAW]
        if isinstance(value, Mapping):
            if len(value) != 1 or not value.keys() <= self.members.keys():
                members = ", ".join(self.members)
                raise ConfigError(
                    f"{where}: a union takes exactly one of {members}, not {list(value)}"
                )
            ((member, content),) = value.items()
            value = self.pack_member(member, content, bytes(self.size))
        _bytes_store(self.size)(value, out, where)

    def unpack_member(self, member: str, data: bytes) -> Any:
        """Return `data` read as `member`."""
        step = _step(member, 0, self.members[member])
        values = struct.unpack_from("<" + step.format, data)
        return values[0] if step.load is None else step.load(values)

    def pack_member(self, member: str, value: Any, data: bytes) -> bytes:
        """Return `data` with `member` in it replaced by `value`."""
        type_ = self.members[member]
        packed = StructLayout(self.name, size_of(type_), ((member, 0, type_),)).pack(
            {member: value}
        )
        return bytes(packed) + data[len(packed) :]
