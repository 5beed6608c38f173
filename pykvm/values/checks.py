"""Values that a caller gave: each check returns the value, or says what would have done.

>>> integer("vcpus", 2, 1)
2
>>> integer("vcpus", "2", 1)
Traceback (most recent call last):
...
pykvm.errors.ConfigError: vcpus is an integer from 1 on, not '2'
"""

from __future__ import annotations

from operator import index

from pykvm.errors import ConfigError
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    Check = Callable[[str, Any], object]

__all__ = [
    "LONGEST_WAIT",
    "Check",
    "buffer",
    "callback",
    "choice",
    "each",
    "flag",
    "integer",
    "iterable",
    "one_of",
    "optional",
    "seconds",
    "show",
    "text",
    "unsigned",
    "word",
    "words",
    "wrong",
]

#: The longest time, in seconds, that a run can be given: some 31 years.
LONGEST_WAIT = 1_000_000_000

# How much of a value stands in a message.
_SHOWN = 80
_DECIMAL = 0xFFFF


def show(value: object) -> str:
    """`value` for a message: its repr, on one line, as far as it is short."""
    if isinstance(value, (str, bytes, bytearray)):
        return repr(value) if len(value) <= _SHOWN else f"{value[:_SHOWN]!r}..."
    if type(value) is int:
        bits = value.bit_length()
        return _number(value) if bits <= 128 else f"an integer of {bits} bits"
    from reprlib import Repr

    shorten = Repr()
    shorten.maxother = shorten.maxstring = _SHOWN
    told = " ".join(shorten.repr(value).split("\n"))
    return told if len(told) <= 2 * _SHOWN else f"{told[: 2 * _SHOWN]}..."


def wrong(name: str, wanted: str, value: object, *, hint: str = "") -> ConfigError:
    """The error for `value`, given as `name`, which should have been `wanted`."""
    return ConfigError(f"{name} is {wanted}, not {show(value)}", hint=hint)


def _number(value: int) -> str:
    return f"{value:#x}" if abs(value) >= _DECIMAL else str(value)


def integer(
    name: str, value: Any, low: int | None = None, high: int | None = None, *, hint: str = ""
) -> int:
    """An int, or what stands for one, from `low` to `high`; a bool is none."""
    number = value
    if type(value) is not int:
        try:
            number = None if isinstance(value, bool) else index(value)
        except TypeError:
            number = None
    if number is None or (
        (low is not None and number < low) or (high is not None and number > high)
    ):
        wanted = "an integer"
        if low is not None:
            wanted += f" from {_number(low)} " + ("on" if high is None else f"to {_number(high)}")
        raise wrong(name, wanted, value, hint=hint)
    return int(number)


def unsigned(name: str, value: Any, bits: int) -> int:
    """An int of so many bits, not negative."""
    if type(value) is int and value >= 0 and not value >> bits:
        return value
    return integer(name, value, 0, (1 << bits) - 1)


def word(name: str, value: Any, bits: int) -> int:
    """An int of so many bits, which may be given as a negative one: its two's complement."""
    number = integer(name, value)
    if not -(1 << bits - 1) <= number < 1 << bits:
        raise wrong(name, f"a number of {bits} bits", value)
    return number % (1 << bits)


def seconds(name: str, value: Any) -> float:
    """A time to wait for, in seconds."""
    number = -1.0
    # Not float(): it reads text, too.
    if not isinstance(value, bool) and (hasattr(value, "__float__") or hasattr(value, "__index__")):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = -1.0
    if not 0 <= number <= LONGEST_WAIT:
        raise wrong(
            name,
            f"a number of seconds from 0 to {LONGEST_WAIT}",
            value,
            hint=f"leave {name} out for no limit",
        )
    return number


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if value is not True and value is not False:
        raise wrong(name, "True or False", value)
    return bool(value)


def text(name: str, value: Any) -> str:
    """A str without NUL, at which guests stop reading."""
    if not isinstance(value, str):
        raise wrong(name, "a str", value)
    if "\0" in value:
        raise wrong(name, "a str without NUL", value)
    return value


def words(name: str, value: Any) -> Sequence[str]:
    """Several strs, and not one."""
    if isinstance(value, str):
        raise wrong(name, "a list of str", value, hint=f"a single one is {name}=[{show(value)}]")
    return each(name, value, "a list of str", text)


def each(name: str, value: Any, wanted: str, check: Callable[[str, Any], Any]) -> list[Any]:
    """The elements of an iterable, each checked under its number."""
    try:
        elements = list(value)
    except TypeError:
        raise wrong(name, wanted, value) from None
    return [check(f"{name}[{number}]", element) for number, element in enumerate(elements)]


def iterable(name: str, value: Any) -> Any:
    """Something to iterate over, and no text."""
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        raise wrong(name, "a list", value)
    return value


def one_of(name: str, value: Any, choices: Iterable[object]) -> object:
    """One of these."""
    known = list(choices)
    # By identity or equality of one type: True is no 1.
    if not any(value is one or (type(value) is type(one) and value == one) for one in known):
        raise wrong(
            name, f"one of {', '.join(str(one) for one in known if one is not None)}", value
        )
    return value


def choice(*choices: object) -> Check:
    """A check for one of these."""
    return lambda name, value: one_of(name, value, choices)


def optional(check: Check) -> Check:
    """A check that takes None, too."""
    return lambda name, value: value if value is None else check(name, value)


def callback(name: str, value: Any) -> Any:
    """Something that can be called."""
    if not callable(value):
        raise wrong(name, "a function", value)
    return value


def buffer(name: str, value: Any) -> memoryview:
    """Bytes, or what holds some."""
    try:
        return memoryview(value)
    except TypeError:
        hint = "a str has to be encoded first" if isinstance(value, str) else ""
        raise wrong(name, "bytes (or a bytearray, a memoryview, ...)", value, hint=hint) from None
