"""Enumerations, without loading `enum`, which takes longer than most guests' machines.

For a type checker they are those of the standard library.
"""

from __future__ import annotations

from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from enum import Enum, IntEnum
else:

    class _Kind(type):
        """The class of an enumeration: its members are the texts and numbers in its body."""

        def __new__(cls, name, bases, body):
            values = {
                key: value
                for key, value in body.items()
                if type(value) in (int, str) and not key.startswith("_")
            }
            kind = super().__new__(
                cls, name, bases, {key: body[key] for key in body if key not in values}
            )
            made = {key: kind._make(key, value) for key, value in values.items()}
            for key, member in made.items():
                type.__setattr__(kind, key, member)
            type.__setattr__(kind, "__members__", made)
            type.__setattr__(kind, "_by_value", {one.value: one for one in made.values()})
            return kind

        def __call__(cls, value):
            if type(value) is cls:
                return value
            try:
                return cls._by_value[value]
            except (KeyError, TypeError):
                raise ValueError(f"{value!r} is not a valid {cls.__qualname__}") from None

        def __getitem__(cls, name):
            return cls.__members__[name]

        def __iter__(cls):
            return iter(cls.__members__.values())

        def __len__(cls):
            return len(cls.__members__)

        def __contains__(cls, value):
            return isinstance(value, cls) or value in cls._by_value

        def __setattr__(cls, name, value):
            raise AttributeError(f"{cls.__qualname__}.{name} cannot be set")

        def __delattr__(cls, name):
            raise AttributeError(f"{cls.__qualname__}.{name} cannot be deleted")

    class Enum(metaclass=_Kind):
        """Base of an enumeration.

        >>> class Colour(Enum):
        ...     RED = "red"
        ...     BLUE = "blue"
        >>> Colour("red"), Colour["BLUE"].value, [one.name for one in Colour]
        (<Colour.RED: 'red'>, 'blue', ['RED', 'BLUE'])
        """

        @classmethod
        def _make(cls, name, value):
            return _named(object.__new__(cls), name, value)

        def __setattr__(self, name, value):
            raise AttributeError(f"{self}.{name} cannot be set")

        def __delattr__(self, name):
            raise AttributeError(f"{self}.{name} cannot be deleted")

        def __repr__(self):
            return f"<{type(self).__qualname__}.{self.name}: {self.value!r}>"

        def __str__(self):
            return f"{type(self).__qualname__}.{self.name}"

        def __reduce_ex__(self, protocol):
            return type(self), (self.value,)

    class IntEnum(int, Enum):
        """An enumeration whose members are numbers."""

        @classmethod
        def _make(cls, name, value):
            return _named(int.__new__(cls, value), name, value)

        __str__ = int.__repr__

    def _named(member, name, value):
        vars(member).update(name=name, value=value)
        return member


__all__ = ["Enum", "IntEnum"]
