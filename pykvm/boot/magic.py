"""Files that people take for guests: what they are, and what to do with them."""

from __future__ import annotations

__all__ = ["familiar"]

_BUILD_FOR_X86 = "pykvm runs x86 guests: build it for x86-64"

# Where in a file something stands, what, what the file then is, and what to do.
_MAGIC = (
    (0x38, b"ARM\x64", "a Linux kernel for arm64", _BUILD_FOR_X86),
    (0x38, b"RSC\x05", "a Linux kernel for RISC-V", _BUILD_FOR_X86),
    (0x24, b"\x18\x28\x6f\x01", "a Linux kernel for 32-bit Arm (zImage)", _BUILD_FOR_X86),
    (4, b"zimg", "an EFI zboot image", "give the kernel that is packed in it"),
    (
        0x28,
        b"_FVH",
        "a volume of UEFI firmware that has no reset vector",
        "give the whole image (OVMF.fd) or the one with the code (OVMF_CODE.fd)",
    ),
    (0, b"!<arch>\n", "a static library", "link it into an executable first"),
    (0, b"#!", "a script", "pykvm runs machine code; scripts run on a guest's operating system"),
    (0, b"\x1f\x8b", "compressed with gzip", "decompress it first: gunzip FILE"),
    (0, b"\xfd7zXZ\0", "compressed with xz", "decompress it first: unxz FILE"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", "decompress it first: unzstd FILE"),
    (0, b"QFI\xfb", "a qcow2 disk image", "a disk is not a guest: give the program that it boots"),
    (0, b"\xca\xfe\xba\xbe", "a Mach-O or Java file", "build the guest as an ELF executable"),
    (
        0,
        b"MZ",
        "a DOS, Windows or EFI program",
        "build the guest as an ELF executable; of a Linux kernel, give the bzImage",
    ),
    (0, b"/*", "source code", "compile and link it first"),
    (0, b"#include", "C source", "compile and link it first"),
)


def familiar(start: bytes) -> tuple[str, str] | None:
    """Say what a file that starts with `start` is, and the advice to give; None if unknown.

    The first 64 bytes decide.

    >>> familiar(b"#!/bin/sh")[0]
    'a script'
    """
    for offset, magic, what, advice in _MAGIC:
        if start[offset:].startswith(magic):
            return what, advice
    return None
