"""What annotations need of `typing` while a program runs, without importing it.

`typing`, and `re` which it loads, take a tenth of the time in which a small guest starts and ends.
What only annotations name is imported from there below ``if TYPE_CHECKING``, which type checkers
take for true whatever its value.
"""

from __future__ import annotations

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Generic, Protocol, cast, overload
else:
    Protocol = object

    class Generic:
        """Base of a class whose parameters type checkers know."""

        def __class_getitem__(cls, parameters):
            return cls

    def cast(kind, value):
        """`value`, which is of this kind, though a type checker does not see it."""
        return value

    def overload(function):
        """One of the signatures of the function of that name that follows."""
        return function


__all__ = ["TYPE_CHECKING", "Generic", "Protocol", "cast", "overload"]
