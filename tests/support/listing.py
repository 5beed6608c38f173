"""Guests as assembly listings: the bytes to the left, the instructions to the right."""

from __future__ import annotations

import re

_BYTES = re.compile(r"^\s*((?:[0-9A-Fa-f]{2} )+|(?:[0-9A-Fa-f]{2} )*[0-9A-Fa-f]{2}$)")


def assemble(listing: str) -> bytes:
    """The machine code of a listing: the hex bytes that each line begins with.

    >>> assemble('''
    ...     B0 41        mov al, 'A'
    ...     F4           hlt
    ... ''').hex(" ")
    'b0 41 f4'
    """
    code = bytearray()
    for line in listing.splitlines():
        found = _BYTES.match(line)
        if found:
            code += bytes.fromhex(found[1])
    return bytes(code)
