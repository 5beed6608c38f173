"""Text of a guest's or a file's making, safe to show on a terminal.

Symbol names, panic messages and file names may hold anything: escape sequences that a terminal
obeys, newlines that forge a line of ours, characters that reverse the reading direction.
"""

from __future__ import annotations

__all__ = ["printable", "printable_lines"]


def printable(text: str) -> str:
    r"""`text` in one line that only shows characters: whatever else it holds stands as in Python.

    >>> print(printable("caf\u00e9 main\x1b[2J\npykvm: all is well"))
    café main\x1b[2J\npykvm: all is well
    """
    # Separators other than the blank, controls, surrogates and all that has no shape of its own.
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def printable_lines(text: str) -> str:
    r"""The same for text of several lines, which stay lines; their tabs are expanded.

    >>> print(printable_lines("one\r\n\ttwo\x1b[2J"))
    one
            two\x1b[2J
    """
    if text.isprintable():
        return text
    return "\n".join(printable(line.rstrip("\r").expandtabs()) for line in text.split("\n"))
