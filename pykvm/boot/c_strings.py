"""Command lines and arguments as the C strings that guests read."""

from __future__ import annotations

from pykvm.errors import ConfigError, LoadError
from pykvm.values.spelling import option

__all__ = ["c_string", "command_line"]


def c_string(text: str, what: str = "argument") -> bytes:
    r"""`text` in UTF-8 with a NUL after it.

    Raises ConfigError, which calls the text `what`, for what no C string can hold.

    >>> c_string("console=ttyS0")
    b'console=ttyS0\x00'
    """
    # As os.fsencode does for the arguments of a program: bytes that are no UTF-8 pass unchanged.
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ConfigError(f"{what} {text!r} is not text: {error.reason}") from error
    if b"\0" in data:
        raise ConfigError(f"{what} {text!r} contains a NUL, which ends a C string")
    return data + b"\0"


def command_line(name: str, words: str, longest: int | None = None) -> bytes:
    """`words` as the command line of the kernel `name`, a C string.

    Raises LoadError if it has more than `longest` bytes before its NUL (None: any number),
    ConfigError if it cannot be a C string.
    """
    line = c_string(words, "command line")
    if longest is not None and len(line) - 1 > longest:
        raise LoadError(
            f"{name}: the command line has {len(line) - 1} bytes, and the kernel takes {longest}",
            hint=f"shorten it ({option('append')}): a kernel would cut it off without a word",
        )
    return line
