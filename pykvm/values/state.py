"""States: what an object is at one moment, as plain values that can be kept, compared and saved.

Whatever has state that a guest could notice has two methods (`Stateful`)::

    def state(self) -> State: ...
    def restore(self, state: State) -> None: ...

A state is an int, a bool, a text, bytes, None, a tuple of such, or a `State`: a frozen record whose
annotations say how wide each number is.  Nothing in it is alive: no object of the program, no
callback, no file.  So a state can be kept for as long as one likes, two can be compared by ``==``,
and one from a file can be checked before anything takes it.

`encode` makes JSON of a state, and `decode` a state of JSON.  A file is a stranger's: `decode`
raises LoadError for everything that the annotations do not allow, and makes nothing but the classes
that are defined by then.
"""

from __future__ import annotations

import sys
from contextlib import suppress

from pykvm.errors import ConfigError, LoadError
from pykvm.typed import TYPE_CHECKING, Protocol
from pykvm.values.frozen import Frozen

if TYPE_CHECKING:
    from typing import Any, ClassVar, TypeAlias, TypeVar

    # Unsigned numbers of so many bits, and signed ones.
    U1: TypeAlias = int
    U2: TypeAlias = int
    U3: TypeAlias = int
    U4: TypeAlias = int
    U5: TypeAlias = int
    U6: TypeAlias = int
    U7: TypeAlias = int
    U8: TypeAlias = int
    U16: TypeAlias = int
    U24: TypeAlias = int
    U32: TypeAlias = int
    U64: TypeAlias = int
    U256: TypeAlias = int
    S32: TypeAlias = int
    S64: TypeAlias = int
    S128: TypeAlias = int

    Plain: TypeAlias = object

    _Shape: TypeAlias = tuple[int, Any]
    T = TypeVar("T")

__all__ = ["State", "Stateful", "decode", "defined", "encode", "expect", "fits"]

#: How deep states may be nested: a file cannot exhaust the stack.
_DEPTH = 32

_BYTES = "bytes"

_classes: dict[str, type[State]] = {}


class State(Frozen):
    """Base of the records that states are made of.

    `version` is raised when the meaning of the fields changes: a file of another version is
    refused.  Annotations are what `decode` checks: ``U1`` to ``U256`` and ``S32`` to ``S128`` for
    numbers of so many bits, ``int``, ``bool``, ``str``, ``bytes``, other states, tuples
    (``tuple[U8, ...]``, ``tuple[U8, U16]``), alternatives with ``|``, and ``Plain`` for any of
    them.

    >>> class LampState(State):
    ...     level: U8
    ...     on: bool = False
    >>> state = LampState(level=3)
    >>> encode(state)
    {'LampState/1': {'level': 3, 'on': False}}
    >>> decode(encode(state), LampState) == state
    True
    >>> decode({"LampState/1": {"level": 256, "on": False}}, LampState)
    Traceback (most recent call last):
    pykvm.errors.LoadError: LampState.level: 256 is not a number of 8 bits
    """

    version: ClassVar[int] = 1

    def __init_subclass__(cls) -> None:
        known = _classes.get(cls.__name__)
        if known is not None and _place(known) != _place(cls):
            raise TypeError(f"two states are called {cls.__name__}: {_place(known)}, {_place(cls)}")
        _classes[cls.__name__] = cls


class Stateful(Protocol):
    """What can be saved and put back.

    `restore` makes the object what it was, and does nothing else: it drives no line, raises no
    interrupt, calls nothing.  What is at the other end has a state of its own.  It may be called on
    an object that has done anything since, or on a new one; a second `restore` of the same state
    changes nothing.  If an exception interrupts it, the next `restore` makes all well.
    """

    def state(self) -> object:
        """What it is now."""

    def restore(self, state: Any, /) -> None:
        """Be that again."""


def defined(name: str) -> type[State] | None:
    """The state of that name, if it is defined by now."""
    return _classes.get(name)


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def encode(state: object) -> Any:
    """`state` as JSON has it.  Raises TypeError for what is no state.

    >>> encode((1, b"ab", None))
    [1, {'bytes': '6162'}, None]
    """
    kind = type(state)
    if state is None or kind in (int, bool, str):
        return state
    if kind is bytes:
        return {_BYTES: state.hex()}  # type: ignore[attr-defined]
    if isinstance(state, tuple):
        return [encode(part) for part in state]
    if isinstance(state, State):
        fields = {name: encode(getattr(state, name)) for name in kind.__fields__}  # type: ignore[attr-defined]
        return {f"{kind.__name__}/{state.version}": fields}
    raise TypeError(f"{kind.__name__} is no part of a state: {state!r:.80}")


def decode(value: Any, kind: type[T], *, where: str = "") -> T:
    """The state of `kind` that `encode` made `value` of.

    `where` is what a LoadError begins with: the place in the file.

    >>> decode([1, 2], tuple[int, ...])
    (1, 2)
    """
    return _decode(value, _shape(kind), where or getattr(kind, "__name__", "state"), 0)  # type: ignore[no-any-return]


def fits(state: object, kind: type) -> bool:
    """Whether `state` is what the annotations of `kind` allow."""
    try:
        return bool(decode(encode(state), kind) == state)
    except (LoadError, TypeError):
        return False


def expect(state: object, kind: type[T]) -> T:
    """`state`, if it is one of `kind`: what `restore` begins with.  Raises ConfigError.

    The state of another kind of device may have got under this one's name.
    """
    if not isinstance(state, kind):
        raise ConfigError(f"a {kind.__name__} is to be restored, not {state!r:.60}")
    return state


class _Number(type):
    """The kind of the numbers of so many bits: what `U8` stands for in an annotation."""

    limits: range
    bits: int


class _Kinds(dict):  # type: ignore[type-arg]
    """The names that annotations use, made as they are asked for."""

    def __missing__(self, name: str) -> Any:
        if name in _classes:
            return _classes[name]
        if name == "Plain":
            return object
        if name[:1] in ("U", "S") and name[1:].isdigit():
            self[name] = _number(name)
            return self[name]
        raise KeyError(name)


def _number(name: str) -> _Number:
    bits = int(name[1:])
    low = 0 if name[0] == "U" else -(1 << bits - 1)
    return _Number(name, (int,), {"limits": range(low, low + (1 << bits)), "bits": bits})


_kinds = _Kinds()
# Most annotations are a name of these.
_PLAIN = {"bool": bool, "str": str, "bytes": bytes, "int": int, "None": type(None)}


def _hints(cls: type[State]) -> dict[str, Any]:
    """The fields of a class, and what each may be.

    What typing.get_type_hints says, without that module, which takes longer to load than a machine
    from a file may.
    """
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if issubclass(base, State) and base is not State:
            names = vars(sys.modules[base.__module__])
            for field, annotation in vars(base).get("__annotations__", {}).items():
                hints[field] = _evaluated(annotation, names)
    return {name: hints[name] for name in cls.__fields__}


def _evaluated(annotation: Any, names: dict[str, Any]) -> Any:
    """What an annotation in a module with these `names` stands for."""
    if type(annotation) is not str:
        return type(None) if annotation is None else annotation
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    with suppress(KeyError):
        return _kinds[annotation]
    # The program's own source, as typing evaluates it; nothing of a file.
    return eval(annotation, names, _kinds)


#: By class, the shapes of its fields.
_shapes_of: dict[type[State], dict[str, _Shape]] = {}

# What may stand in a place: one of these, and what it needs to know.
_NUMBER, _EXACT, _BYTES_KIND, _RECORD, _TUPLE, _EACH, _ONE_OF, _ANY = range(8)

_Union: Any = type(int | str)


def _shapes(cls: type[State]) -> dict[str, _Shape]:
    """By name, what the fields of a class may be.  Raises NameError."""
    if cls not in _shapes_of:
        _shapes_of[cls] = {field: _shape(kind) for field, kind in _hints(cls).items()}
    return _shapes_of[cls]


def _shape(kind: Any) -> _Shape:
    """`kind` taken apart."""
    if type(kind) is _Number:
        return _NUMBER, (kind.limits, kind.bits)
    if type(kind) is _Union:
        return _ONE_OF, tuple(map(_shape, kind.__args__))
    if getattr(kind, "__origin__", None) is tuple:
        arguments = kind.__args__
        if len(arguments) == 2 and arguments[1] is ...:
            return _EACH, _shape(arguments[0])
        return _TUPLE, tuple(map(_shape, arguments))
    if kind is object:
        return _ANY, None
    if kind in (int, bool, str, type(None)):
        return _EXACT, kind
    if kind is bytes:
        return _BYTES_KIND, None
    return (_RECORD, kind) if isinstance(kind, type) else _shape_of_typing(kind)


def _shape_of_typing(kind: Any) -> _Shape:
    """One that is spelled by `typing`, as Optional, or a text within another annotation."""
    from typing import Union, get_args, get_origin

    text = getattr(kind, "__forward_arg__", kind)
    if isinstance(text, str):
        return _shape(_evaluated(text, {}))
    if get_origin(kind) is Union:
        return _ONE_OF, tuple(map(_shape, get_args(kind)))
    raise TypeError(f"{kind!r:.60} is no annotation of a state")


def _decode(value: Any, shape: _Shape, where: str, depth: int) -> Any:
    what, more = shape
    if what == _NUMBER:
        limits, bits = more
        if type(value) is not int or not limits.start <= value < limits.stop:
            raise LoadError(f"{where}: {_shown(value)} is not a number of {bits} bits")
        return value
    if what == _EXACT:
        if type(value) is not more:
            place = "in the place of nothing" if more is type(None) else f"is no {more.__name__}"
            raise LoadError(f"{where}: {_shown(value)} {place}")
        return value
    if depth > _DEPTH:
        raise LoadError(f"{where:.200}: nested more than {_DEPTH} deep")
    if what == _BYTES_KIND:
        return _bytes(value, where)
    if what == _RECORD:
        return _record(value, more, where, depth)
    if what == _ONE_OF:
        return _one_of(value, more, where, depth)
    if what == _ANY:
        return _plain(value, where, depth)
    return _tuple(value, shape, where, depth)


def _shown(value: object) -> str:
    return f"{value!r:.60}"


def _one_of(value: Any, shapes: tuple[_Shape, ...], where: str, depth: int) -> Any:
    nothing = _EXACT, type(None)
    if value is None and nothing in shapes:
        return None
    *others, last = [shape for shape in shapes if shape != nothing]
    for shape in others:
        with suppress(LoadError):
            return _decode(value, shape, where, depth + 1)
    return _decode(value, last, where, depth + 1)


def _tuple(value: Any, shape: _Shape, where: str, depth: int) -> tuple[Any, ...]:
    if type(value) is not list:
        raise LoadError(f"{where}: {_shown(value)} is no list")
    shapes = (shape[1],) * len(value) if shape[0] == _EACH else shape[1]
    if len(value) != len(shapes):
        raise LoadError(f"{where}: {len(value)} values in the place of {len(shapes)}")
    return tuple(
        [
            _decode(part, one, f"{where}[{number}]", depth + 1)
            for number, (part, one) in enumerate(zip(value, shapes, strict=True))
        ]
    )


def _bytes(value: Any, where: str) -> bytes:
    text = value.get(_BYTES) if type(value) is dict and len(value) == 1 else None
    if type(text) is not str:
        raise LoadError(f"{where}: {_shown(value)} is no bytes")
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise LoadError(f"{where}: not hexadecimal: {_shown(text)}") from None


def _plain(value: Any, where: str, depth: int) -> Any:
    """A value whose kind only its own device knows."""
    if type(value) is list:
        return _tuple(value, (_EACH, (_ANY, None)), where, depth)
    if type(value) is dict:
        return _bytes(value, where) if _BYTES in value else _record(value, State, where, depth)
    if value is None or type(value) in (int, bool, str):
        return value
    raise LoadError(f"{where}: {_shown(value)} is no part of a state")


def _record(value: Any, kind: Any, where: str, depth: int) -> State:
    if type(value) is not dict or len(value) != 1:
        raise LoadError(f"{where}: {_shown(value)} is no {kind.__name__}")
    ((key, fields),) = value.items()
    name, _, version = key.partition("/")
    cls = defined(name)
    if cls is None or not issubclass(cls, kind):
        raise LoadError(f"{where}: {_shown(name)} is no {kind.__name__}")
    if version != str(cls.version):
        raise LoadError(
            f"{where}: {name} of version {_shown(version)}; this pykvm knows version {cls.version}"
        )
    try:
        shapes = _shapes(cls)
    except NameError as error:
        # Its annotations name a class whose module was not imported.
        raise LoadError(f"{where}: {name} cannot be read here: {error}") from None
    if type(fields) is not dict or fields.keys() != shapes.keys():
        raise LoadError(f"{where}: {name} has the fields {', '.join(shapes)}, not {_shown(fields)}")
    place = where if depth == 0 and where == name else f"{where}: {name}" if depth == 0 else where
    return cls(
        **{
            field: _decode(fields[field], shape, f"{place}.{field}", depth + 1)
            for field, shape in shapes.items()
        }
    )
