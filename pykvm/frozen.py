"""Small immutable values whose classes cost little to define.

A frozen dataclass does as much, but each costs a millisecond at import, and all of them the modules
that `dataclasses` needs: more than a short run of a guest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from inspect import Signature

    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**options):
        """For type checkers alone."""
        return lambda cls: cls


__all__ = ["Frozen", "FrozenType"]


@dataclass_transform(frozen_default=True)
class FrozenType(type):
    """Makes each annotation in the body of a class a field, in a slot of its own."""

    #: By field, what sets its slot past `Frozen.__setattr__`.
    __fields__: dict[str, Callable[[Any, Any], None]]
    __defaults__: dict[str, Any]

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> FrozenType:
        """Make the class: fields come in the order of the bases' and then its own."""
        kinds = namespace.get("__annotations__", {})
        fields = tuple(field for field, kind in kinds.items() if not kind.startswith("ClassVar"))
        setters: dict[str, Any] = {}
        defaults: dict[str, Any] = {}
        for base in bases:
            if isinstance(base, FrozenType):
                setters |= base.__fields__
                defaults |= base.__defaults__
        defaults |= {field: namespace.pop(field) for field in fields if field in namespace}
        namespace["__slots__"] = fields
        namespace["__match_args__"] = (*setters, *fields)
        made = super().__new__(cls, name, bases, namespace)
        made.__fields__ = setters | {field: vars(made)[field].__set__ for field in fields}
        made.__defaults__ = defaults
        return made

    @property
    def __signature__(cls) -> Signature:
        """What `help` and `inspect.signature` show."""
        from inspect import Parameter, Signature

        kind = Parameter.POSITIONAL_OR_KEYWORD
        return Signature(
            [
                Parameter(field, kind, default=cls.__defaults__.get(field, Parameter.empty))
                for field in cls.__fields__
            ]
        )


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
            cls = type(self)
            setters = cls.__fields__
            if len(args) > len(setters):
                raise TypeError(f"{cls.__name__} has {len(setters)} fields, not {len(args)}")
            values = dict(zip(setters, args, strict=False))
            for field, value in kwargs.items():
                if field not in setters or field in values:
                    what = "twice" if field in values else "which it has not"
                    raise TypeError(f"{cls.__name__} was given {field!r} {what}")
                values[field] = value
            for field, put in setters.items():
                if field in values:
                    put(self, values[field])
                elif field in cls.__defaults__:
                    put(self, cls.__defaults__[field])
                else:
                    raise TypeError(f"{cls.__name__} was not given {field!r}")

    def _values(self) -> tuple[Any, ...]:
        return tuple([getattr(self, field) for field in type(self).__fields__])

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

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
