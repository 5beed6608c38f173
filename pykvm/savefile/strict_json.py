"""JSON from a stranger."""

from __future__ import annotations

import sys

from pykvm.errors import LoadError
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

__all__ = ["parse_json"]

# What may stand around a value (RFC 8259, section 2).
_BLANKS = " \t\n\r"
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
        value = _scan(text)
        if "\\ud" in text or "\\uD" in text:
            import json

            # Half of a surrogate pair can stand there as an escape, and Python lets it through.
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise LoadError(f"{where}: is nested too deep") from None
    except ValueError as error:
        raise LoadError(f"{where}: is no JSON: {error}") from None
    return value


def _scan(text: str) -> Any:
    if text.startswith("\ufeff"):
        raise ValueError("Unexpected UTF-8 BOM")
    start = len(text) - len(text.lstrip(_BLANKS))
    try:
        value, end = _scanner()(text, start)
    except StopIteration as error:
        raise ValueError(f"Expecting value: char {error.value}") from None
    if text[end:].strip(_BLANKS):
        raise ValueError(f"Extra data: char {end}")
    return value


def _scanner() -> Callable[[str, int], tuple[Any, int]]:
    """What reads the value that begins at an index: `json.JSONDecoder` has it as scan_once."""
    rules: Any = _Rules()
    try:
        # The part of `json` in C.  The rest of it loads `re`, which takes longer than a file does.
        from _json import make_scanner
    except ImportError:
        from json import JSONDecoder

        decoder: Any = JSONDecoder(
            object_pairs_hook=rules.object_pairs_hook,
            parse_float=rules.parse_float,
            parse_constant=rules.parse_constant,
            parse_int=rules.parse_int,
        )
        scan: Callable[[str, int], tuple[Any, int]] = decoder.scan_once
        return scan
    return make_scanner(rules)


class _Rules:
    """How a scanner reads, in the attributes that it asks for."""

    strict = True
    object_hook = array_hook = None

    def __init__(self) -> None:
        self.object_pairs_hook = _object
        self.parse_float = self.parse_constant = _refuse
        self.parse_int = int if _python_limits_digits() else _integer


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
