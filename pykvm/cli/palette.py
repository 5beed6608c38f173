"""Colours of the stepping prompt, where a terminal reads it."""

from __future__ import annotations

import os
import sys

__all__ = ["COLOURS", "Palette"]

#: What is coloured, and the parameters of SGR (ECMA-48 8.3.117) that do it.
COLOURS = {
    "exit": "1",  # why the guest has left: bold
    "place": "36",  # an address and its symbol: cyan
    "source": "32",  # a line of source: green
    "instruction": "33",  # yellow
    "console": "35",  # what the guest prints: magenta
    "error": "31",  # what went wrong, in the guest or with a command: red
}


class Palette:
    r"""Colours text by what it is, or leaves it as it is.

    >>> Palette(on=True).paint("place", "0x1000 main") == "\x1b[36m0x1000 main\x1b[0m"
    True
    >>> Palette(on=False).paint("place", "0x1000 main")
    '0x1000 main'
    """

    def __init__(self, *, on: bool) -> None:
        self._on = on

    @classmethod
    def of_stdout(cls) -> Palette:
        """On if a terminal reads stdout, unless NO_COLOR (no-color.org) or TERM=dumb forbids it."""
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        return cls(on=not plain and sys.stdout.isatty())

    def paint(self, what: str, text: str) -> str:
        """`text`, which has no control characters, in the colour of `what`."""
        return f"\x1b[{COLOURS[what]}m{text}\x1b[0m" if self._on and text else text
