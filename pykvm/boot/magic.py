"""Files that people take for guests: what they are, and what to do with them."""

from __future__ import annotations

__all__ = ["familiar"]

_MAGIC = (
    (b"!<arch>\n", "a static library", "link it into an executable first"),
    (b"#!", "a script", "pykvm runs machine code; scripts run on a guest's operating system"),
    (b"\x1f\x8b", "compressed with gzip", "decompress it first: gunzip FILE"),
    (b"\xfd7zXZ\0", "compressed with xz", "decompress it first: unxz FILE"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "decompress it first: unzstd FILE"),
    (b"QFI\xfb", "a qcow2 disk image", "a disk is not a guest: give the program that it boots"),
    (b"\xca\xfe\xba\xbe", "a Mach-O or Java file", "build the guest as an ELF executable"),
    (b"MZ", "a DOS, Windows or EFI program", "build the guest as an ELF executable"),
    (b"/*", "source code", "compile and link it first"),
    (b"#include", "C source", "compile and link it first"),
)


def familiar(start: bytes) -> tuple[str, str] | None:
    """Say what a file that starts with `start` is, and the advice to give; None if unknown.

    >>> familiar(b"#!/bin/sh")[0]
    'a script'
    """
    for magic, what, advice in _MAGIC:
        if start.startswith(magic):
            return what, advice
    return None
