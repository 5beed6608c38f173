"""JSON from a stranger."""

from __future__ import annotations

import json
import sys

from pykvm.errors import LoadError
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, NoReturn

__all__ = ["parse_json"]

# Time to read a number grows with the square of its digits; the largest in a state has 78.
_DIGITS = 4000


def parse_json(data: bytes, where: str) -> Any:
    """What `data` stands for: objects, lists, texts, integers, true, false and null.

    Raises LoadError, which begins with `where`, for everything else: also for fractions, NaN, a key
    that an object has twice, half of a surrogate pair, and for what is nested too deep.

    >>> parse_json(b'{"a": [1, null]}', "x")
    {'a': [1, None]}
    >>> parse_json(b'{"a": 1, "a": 2}', "x")
    Traceback (most recent call last):
    pykvm.errors.LoadError: x: is no JSON: 'a' stands there twice
    """
    try:
        text = data.decode()
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_float=_refuse,
            parse_constant=_refuse,
            parse_int=None if _python_limits_digits() else _integer,
        )
        if "\\ud" in text or "\\uD" in text:
            # Half of a surrogate pair can stand there as an escape, and Python lets it through.
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise LoadError(f"{where}: is nested too deep") from None
    except ValueError as error:
        raise LoadError(f"{where}: is no JSON: {error}") from None
    return value


def _python_limits_digits() -> bool:
    # From 3.10.7 on, unless the program has lifted the limit.
    limit = getattr(sys, "get_int_max_str_digits", int)()
    return 0 < limit <= 10 * _DIGITS


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _refuse(number: str) -> NoReturn:
    raise ValueError(f"{number[:40]} is no integer")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:40]!r} stands there twice")
    return made
