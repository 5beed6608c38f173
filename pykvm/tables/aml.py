r"""ACPI Machine Language: the few terms that a DSDT of constants is made of, as bytes.

Source: ACPI Specification 6.5, chapter 20 "ACPI Machine Language (AML) Specification"; for resource
descriptors 6.4 "Resource Data Types for ACPI"; for EISA ids 19.3.4 "ASL Macros" (EISAID).

>>> name("_S5_", package(integer(0), integer(5))).hex(" ")
'08 5f 53 35 5f 12 05 02 00 0a 05'
"""

from __future__ import annotations

import struct

__all__ = [
    "buffer",
    "device",
    "eisa_id",
    "integer",
    "io_ports",
    "irq",
    "name",
    "package",
    "resource_template",
    "scope",
    "string",
]

_NAME_OP = 0x08
_STRING_PREFIX = 0x0D
_SCOPE_OP = 0x10
_BUFFER_OP = 0x11
_PACKAGE_OP = 0x12
_DEVICE_OP = b"\x5b\x82"

# Prefixes of integers by their bytes; 0 and 1 are opcodes of their own (20.2.3).
_INTEGERS = ((1, 0x0A), (2, 0x0B), (4, 0x0C), (8, 0x0E))

_IRQ = 0x22
_IO_PORT = 0x47
_END_TAG = b"\x79\x00"  # the second byte says that there is no checksum
_DECODES_16_BITS = 1


def integer(value: int) -> bytes:
    """An integer (20.2.3, ComputationalData): the shortest form of a number below 2**64."""
    if value in (0, 1):
        return bytes((value,))
    size, prefix = next(form for form in _INTEGERS if value < 1 << 8 * form[0])
    return bytes((prefix,)) + value.to_bytes(size, "little")


def string(text: str) -> bytes:
    """A string of ASCII characters (20.2.3)."""
    return bytes((_STRING_PREFIX,)) + text.encode("ascii") + b"\0"


def buffer(data: bytes) -> bytes:
    """A buffer (20.2.5.4, DefBuffer) that holds `data`."""
    return bytes((_BUFFER_OP,)) + _with_length(integer(len(data)) + data)


def package(*elements: bytes) -> bytes:
    """A package (20.2.5.4, DefPackage) of up to 255 elements."""
    return bytes((_PACKAGE_OP,)) + _with_length(bytes((len(elements),)) + b"".join(elements))


def name(path: str, value: bytes) -> bytes:
    """Name `path` for `value` (20.2.5.1, DefName)."""
    return bytes((_NAME_OP,)) + _name_string(path) + value


def scope(path: str, *terms: bytes) -> bytes:
    r"""What belongs under `path` (20.2.5.1, DefScope), as `\_SB_`."""
    return bytes((_SCOPE_OP,)) + _with_length(_name_string(path) + b"".join(terms))


def device(path: str, *terms: bytes) -> bytes:
    """A device and what it has (20.2.5.2, DefDevice)."""
    return _DEVICE_OP + _with_length(_name_string(path) + b"".join(terms))


def eisa_id(text: str) -> bytes:
    """The compressed id of a device (19.3.4): three letters and four hexadecimal digits.

    >>> eisa_id("PNP0501").hex(" ")
    '0c 41 d0 05 01'
    """
    first, second, third = (ord(letter) - ord("@") for letter in text[:3])
    number = first << 26 | second << 21 | third << 16 | int(text[3:], 16)
    return integer(int.from_bytes(number.to_bytes(4, "big"), "little"))


def resource_template(*descriptors: bytes) -> bytes:
    """What a `_CRS` gives: the descriptors in a buffer, with the end tag (6.4.2.9)."""
    return buffer(b"".join(descriptors) + _END_TAG)


def io_ports(first: int, count: int) -> bytes:
    """An I/O port descriptor (6.4.2.5) for these ports and no others."""
    return struct.pack("<BBHHBB", _IO_PORT, _DECODES_16_BITS, first, first, 1, count)


def irq(number: int) -> bytes:
    """An IRQ descriptor (6.4.2.1) without flags: edge-triggered, active high, not shared."""
    return struct.pack("<BH", _IRQ, 1 << number)


def _name_string(path: str) -> bytes:
    r"""A name of one segment (20.2.2), with or without the root before it."""
    root, segment = path[: path.startswith("\\")], path.removeprefix("\\")
    return (root + segment.ljust(4, "_")).encode("ascii")


def _with_length(body: bytes) -> bytes:
    """`body` after its PkgLength (20.2.4), which counts its own one to four bytes, too.

    >>> _with_length(bytes(0x3E))[:1].hex(), _with_length(bytes(0x3F))[:2].hex(" ")
    ('3f', '41 04')
    """
    if len(body) + 1 < 1 << 6:
        return bytes((len(body) + 1,)) + body
    extra = next(count for count in (1, 2, 3) if len(body) + 1 + count < 1 << (4 + 8 * count))
    length = len(body) + 1 + extra
    return bytes((extra << 6 | length & 0xF,)) + (length >> 4).to_bytes(extra, "little") + body
