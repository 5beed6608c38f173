"""Sizes as people write them: ``"64M"`` in, ``"64 MiB"`` out; inside, an int in bytes."""

from __future__ import annotations

from pykvm.errors import ConfigError
from pykvm.values.checks import integer

__all__ = ["format_size", "parse_size"]

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_UNITS = ("", "K", "M", "G", "T", "P")
_SPELLINGS = {
    spelling.lower(): 1 << (10 * power)
    for power, unit in enumerate(_UNITS)
    for spelling in ((unit, f"{unit}B", f"{unit}iB") if unit else ("", "B", "byte", "bytes"))
}


def parse_size(text: str | int) -> int:
    """The number of bytes that `text` names.

    Units are K, M, G, T and P, binary (``1K`` is 1024), upper or lower case, with or without ``B``
    or ``iB``.  A number alone is bytes, decimal or ``0x...``; an int is taken as it is.

    Raises ConfigError for anything else, a negative size, or a fraction of a byte.

    >>> parse_size("64M"), parse_size("1.5 GiB"), parse_size("0x1000"), parse_size(512)
    (67108864, 1610612736, 4096, 512)
    """
    hint = "write a number and a unit: 512K, 64M, 2G (or bytes)"
    size = _parse(text) if isinstance(text, str) else integer("a size", text, hint=hint)
    if size is None:
        raise ConfigError(f"{text!r} is not a size", hint=hint)
    if size < 0:
        raise ConfigError(f"a size cannot be negative: {text}")
    return size


def format_size(size: int) -> str:
    """`size` bytes in the largest unit that fits, to one decimal place where it is not exact.

    >>> format_size(64 << 20), format_size(512), format_size(25_275_990_016)
    ('64 MiB', '512 bytes', '23.5 GiB')
    """
    power = min(max(size.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    if power == 0:
        return "1 byte" if size == 1 else f"{size} bytes"
    whole, rest = divmod(size, 1 << (10 * power))
    number = f"{size / (1 << (10 * power)):.1f}" if rest else str(whole)
    return f"{number} {_UNITS[power]}iB"


def _parse(text: str) -> int | None:
    """The size that `text` spells, or None."""
    word = text.strip().replace("_", "").lower()
    if word.startswith("0x"):
        return _integer(word, 16)
    number = word.rstrip(_LETTERS).rstrip()
    unit = _SPELLINGS.get(word[len(number) :].strip())
    if unit is None:
        return None
    whole, point, fraction = number.partition(".")
    digits = _integer(whole + fraction, 10)
    if digits is None or (point and not fraction):
        return None
    size, rest = divmod(digits * unit, 10 ** len(fraction))
    return None if rest else size


def _integer(digits: str, base: int) -> int | None:
    if not digits.isascii():
        return None
    try:
        return int(digits, base)
    except ValueError:
        return None
