"""Small immutable values whose classes cost little to define.

A frozen dataclass and `typing.NamedTuple` do as much, but compile source for each class: a
millisecond for the one, a third of that for the other.  A short run of a guest defines 80 such
classes, and takes some 50 ms in all.
"""

from __future__ import annotations

from _operator import attrgetter

from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from inspect import Signature
    from typing import Any, Concatenate, NamedTuple, ParamSpec

    Fields = ParamSpec("Fields")

    from typing_extensions import dataclass_transform
else:
    from _collections import _tuplegetter

    def dataclass_transform(**options):
        """For type checkers alone."""
        return lambda cls: cls


__all__ = ["Frozen", "FrozenType", "NamedTuple", "SignatureOf", "with_fields_of"]

# dataclasses.KW_ONLY, as an annotation names it.
_KW_ONLY = "KW_ONLY"


def _fields_of(namespace: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The annotated names in the body of a class, and the values that some of them have."""
    kinds = namespace.get("__annotations__", {})
    fields = tuple(
        field
        for field, kind in kinds.items()
        if not kind.startswith("ClassVar") and kind != _KW_ONLY
    )
    return fields, {field: namespace.pop(field) for field in fields if field in namespace}


def _positional(namespace: dict[str, Any], fields: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the fields that can be given by position: all before ``_: KW_ONLY``."""
    kinds = list(namespace.get("__annotations__", {}).values())
    if _KW_ONLY not in kinds:
        return fields
    before = kinds[: kinds.index(_KW_ONLY)]
    return fields[: len([kind for kind in before if not kind.startswith("ClassVar")])]


def _signature(
    fields: Iterable[str], positional: tuple[str, ...], defaults: dict[str, Any]
) -> Signature:
    """What `help` and `inspect.signature` show of a class with these fields."""
    from inspect import Parameter, Signature

    either, named = Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY
    return Signature(
        [
            Parameter(
                field,
                either if field in positional else named,
                default=defaults.get(field, Parameter.empty),
            )
            for field in fields
        ]
    )


def _values(
    cls: Any, fields: tuple[str, ...], args: tuple[Any, ...], named: Any, defaults: Any
) -> list[Any]:
    """The values of the fields, in their order.  Raises TypeError as a call of Python's would."""
    positional = len(cls.__match_args__)
    if len(args) > positional:
        by_position = "" if positional == len(fields) else " by position"
        raise TypeError(f"{cls.__name__} has {positional} fields{by_position}, not {len(args)}")
    values, used = [*args], 0
    for field in fields[len(args) :]:
        if field in named:
            values.append(named[field])
            used += 1
        elif field in defaults:
            values.append(defaults[field])
        else:
            raise TypeError(f"{cls.__name__} was not given {field!r}")
    if used != len(named):
        odd = next(name for name in named if name not in fields[len(args) :])
        what = "twice" if odd in fields else "which it has not"
        raise TypeError(f"{cls.__name__} was given {odd!r} {what}")
    return values


@dataclass_transform(frozen_default=True)
class FrozenType(type):
    """Makes each annotation in the body of a class a field, in a slot of its own.

    Those after ``_: KW_ONLY`` are given by name, as in a dataclass.
    """

    __match_args__: tuple[str, ...]
    #: By field, what sets its slot past `Frozen.__setattr__`.
    __fields__: dict[str, Callable[[Any, Any], None]]
    __setters__: tuple[Callable[[Any, Any], None], ...]
    __defaults__: dict[str, Any]
    #: The values of one; made for the first that is compared.
    __values__: Callable[[Any], Any] | None

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> FrozenType:
        """Make the class: fields come in the order of the bases' and then its own."""
        fields, given = _fields_of(namespace)
        setters: dict[str, Any] = {}
        defaults: dict[str, Any] = {}
        for base in bases:
            if isinstance(base, FrozenType):
                setters |= base.__fields__
                defaults |= base.__defaults__
        defaults |= given
        namespace["__slots__"] = fields
        inherited = [field for base in bases for field in getattr(base, "__match_args__", ())]
        namespace["__match_args__"] = (*inherited, *_positional(namespace, fields))
        made = super().__new__(cls, name, bases, namespace)
        made.__fields__ = setters | {field: vars(made)[field].__set__ for field in fields}
        made.__defaults__ = defaults
        made.__setters__ = tuple(made.__fields__.values())
        made.__values__ = None
        return made

    @property
    def __signature__(cls) -> Signature:
        """What `help` and `inspect.signature` show."""
        return _signature(cls.__fields__, cls.__match_args__, cls.__defaults__)


class Frozen(metaclass=FrozenType):
    """Base of such values: compared, hashed, printed and pickled by their fields.

    >>> class Point(Frozen):
    ...     x: int
    ...     y: int = 0
    >>> Point(1), Point(1) == Point(x=1, y=0), Point(2) == Point(1)
    (Point(x=1, y=0), True, False)
    >>> Point(1).x = 2
    Traceback (most recent call last):
    AttributeError: Point is immutable: x cannot be set
    """

    if not TYPE_CHECKING:

        def __init__(self, *args, **kwargs):
            setters = self.__setters__
            if kwargs or len(args) != len(setters):
                cls = type(self)
                args = _values(cls, (*cls.__fields__,), args, kwargs, cls.__defaults__)
            for put, value in zip(setters, args):  # noqa: B905  as many of each
                put(self, value)

    def _values(self) -> tuple[Any, ...]:
        return tuple([getattr(self, field) for field in type(self).__fields__])

    def __eq__(self, other: object) -> bool:
        cls = type(self)
        if type(other) is not cls:
            return NotImplemented
        values = cls.__values__
        if values is None:
            values = cls.__values__ = attrgetter(*cls.__fields__) if cls.__fields__ else type
        return bool(values(self) == values(other))

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        fields = zip(type(self).__fields__, self._values(), strict=True)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in fields)})"

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: {name} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: {name} cannot be deleted")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._values()

    def __replace__(self, **changes: Any) -> Any:
        """The same with some fields changed (`copy.replace`)."""
        fields = zip(type(self).__fields__, self._values(), strict=True)
        return type(self)(**{**dict(fields), **changes})


class SignatureOf:
    """The ``__signature__`` of a class whose ``__init__`` takes the fields of `record`.

    A subclass with an ``__init__`` of its own has its own.
    """

    def __init__(self, record: FrozenType) -> None:
        self._record = record

    def __set_name__(self, owner: type, name: str) -> None:
        self._owner = owner

    def __get__(self, instance: object, cls: type) -> Signature:
        if cls.__init__ is not self._owner.__init__:  # type: ignore[misc]
            raise AttributeError("__signature__")
        return self._record.__signature__


def with_fields_of(
    record: Callable[Fields, object],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, Fields], None]]:
    """For type checkers: an ``__init__`` that takes what `record` does."""
    return lambda init: init


if not TYPE_CHECKING:

    class _TupleType(type):
        """Makes each annotation in the body of a class an element of a tuple, with its name.

        As for `FrozenType`, its module begins with ``from __future__ import annotations``.
        """

        def __new__(cls, name, bases, namespace):
            fields, defaults = _fields_of(namespace)
            for number, field in enumerate(fields):
                namespace[field] = _tuplegetter(number, None)
            namespace["__slots__"] = ()
            namespace["__match_args__"] = namespace["_fields"] = fields
            namespace["_field_defaults"] = defaults
            return super().__new__(cls, name, bases, namespace)

        @property
        def __signature__(cls):
            return _signature(cls._fields, cls._fields, cls._field_defaults)

    class NamedTuple(tuple, metaclass=_TupleType):
        """`typing.NamedTuple` for type checkers, and the same in use.

        >>> class Point(NamedTuple):
        ...     x: int
        ...     y: int = 0
        >>> Point(1), Point(1) == (1, 0), Point(1)._replace(y=2).y
        (Point(x=1, y=0), True, 2)
        """

        __slots__ = ()

        def __new__(cls, *args, **kwargs):
            """The fields by position, by name, or by their defaults."""
            if kwargs or len(args) != len(cls._fields):
                args = _values(cls, cls._fields, args, kwargs, cls._field_defaults)
            return tuple.__new__(cls, args)

        @classmethod
        def _make(cls, values):
            """One of the elements of `values`."""
            return cls(*values)

        def _replace(self, **changes):
            """The same with some fields changed."""
            return type(self)(**{**self._asdict(), **changes})

        __replace__ = _replace

        def _asdict(self):
            """The fields by name."""
            return dict(zip(self._fields, self, strict=True))

        def __getnewargs__(self):
            return tuple(self)

        def __repr__(self):
            values = ", ".join(f"{name}={value!r}" for name, value in self._asdict().items())
            return f"{type(self).__name__}({values})"
