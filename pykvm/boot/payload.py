"""Unpacking a kernel's payload: the formats that Linux compresses its bzImage with.

Whatever comes out is bounded: a decompressor is told how much it may write, and one byte more than
that ends it.  gzip, bzip2, lzma and xz are Python's own; lz4 and zstd come with the extra `linux`.

Source: Linux, Documentation/arch/x86/boot.rst, "payload_offset" (the magic numbers) and
scripts/Makefile.lib (the size that the kernel's build appends); the LZ4 legacy frame from LZ4's
lz4_Frame_format.md, "Legacy frame".
"""

from __future__ import annotations

import sys

from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple
from pykvm.values.spelling import option

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.boot.source import Source

__all__ = ["FORMATS", "CannotUnpack", "Format", "format_of", "unpack"]

# The kernel's build uses dictionaries of up to 128 MiB for xz, and lzma's are no larger.
_LZMA_MEMORY = 192 << 20

LZ4_LEGACY_MAGIC = b"\x02\x21\x4c\x18"
_LZ4_BLOCK = 8 << 20
_LZ4_MOST_BLOCKS = 4096


class CannotUnpack(Exception):
    """Not here: the format is unknown, or its library is missing.  Says which, and what to do."""


class _Damaged(Exception):
    """The data is not what its magic number promises."""


class _TooLarge(Exception):
    """The data unpacks to more than it may."""


class Format(NamedTuple):
    """A format: its name, how its data starts, and what unpacks up to so many bytes of it."""

    name: str
    magic: bytes
    unpack: Callable[[memoryview, int], bytes]


def format_of(payload: memoryview) -> Format | None:
    """The format of `payload` by its magic number, None if it is none of ours."""
    start = bytes(payload[:8])
    return next((one for one in FORMATS if start.startswith(one.magic)), None)


def unpack(source: Source, payload: memoryview, limit: int) -> bytes:
    """What `payload`, a part of the file `source`, unpacks to: `limit` bytes at most.

    Raises CannotUnpack where this Python cannot, LoadError for data that is damaged or larger.
    """
    found = format_of(payload)
    if found is None:
        start = bytes(payload[:4]).hex(" ")
        raise CannotUnpack(f"its payload is in a format that pykvm does not know ({start} ...)")
    what = f"payload ({found.name}, {len(payload):#x} bytes)"
    try:
        return found.unpack(payload, limit)
    except _Damaged as error:
        raise source.error(
            f"{what} cannot be unpacked: {error}",
            hint="the file is truncated or damaged: copy or build it again",
        ) from None
    except _TooLarge:
        raise source.error(
            f"{what} unpacks to more than {limit:#x} bytes, which is all that its header "
            "(init_size) and the guest's memory allow",
            hint=f"if the file is sound, give the guest more memory ({option('memory')})",
        ) from None


def _stored(payload: memoryview, limit: int) -> bytes:
    return _whole(bytes(payload[: limit + 1]), True, limit)


def _gzip(payload: memoryview, limit: int) -> bytes:
    try:
        import zlib
    except ImportError:
        raise CannotUnpack("this Python is built without zlib") from None
    # 16 + 15: a gzip header, and the largest window.
    stream = zlib.decompressobj(16 + 15)
    try:
        content = stream.decompress(payload, limit + 1)
    except zlib.error as error:
        raise _Damaged(str(error)) from None
    return _whole(content, stream.eof, limit)


def _bzip2(payload: memoryview, limit: int) -> bytes:
    try:
        import bz2
    except ImportError:
        raise CannotUnpack("this Python is built without bz2") from None
    stream = bz2.BZ2Decompressor()
    try:
        content = stream.decompress(payload, limit + 1)
    except (OSError, ValueError) as error:
        raise _Damaged(str(error)) from None
    return _whole(content, stream.eof, limit)


def _lzma(payload: memoryview, limit: int) -> bytes:
    try:
        import lzma
    except ImportError:
        raise CannotUnpack("this Python is built without lzma") from None
    # It knows the old container and xz by their headers.
    stream = lzma.LZMADecompressor(lzma.FORMAT_AUTO, memlimit=_LZMA_MEMORY)
    try:
        content = stream.decompress(payload, limit + 1)
    except lzma.LZMAError as error:
        raise _Damaged(str(error)) from None
    return _whole(content, stream.eof, limit)


def _zstd(payload: memoryview, limit: int) -> bytes:
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError:
        raise CannotUnpack(
            "its payload is zstd, and backports.zstd is missing: pip install backports.zstd"
        ) from None
    # Its own limit on the window, 128 MiB, is that of the kernel's build.
    stream = zstd.ZstdDecompressor()
    try:
        content = stream.decompress(payload, limit + 1)
    except zstd.ZstdError as error:
        raise _Damaged(str(error)) from None
    return _whole(content, stream.eof, limit)


def _lz4(payload: memoryview, limit: int) -> bytes:
    """Unpack legacy frames: blocks of up to 8 MiB, each after its packed size; no end mark."""
    try:
        from lz4.block import LZ4BlockError, decompress
    except ImportError:
        raise CannotUnpack("its payload is lz4, and lz4 is missing: pip install lz4") from None
    blocks: list[bytes] = []
    done, position, words = 0, 0, 0
    # The last four bytes are the size that the kernel's build appends.
    while position + 4 < len(payload):
        word = bytes(payload[position : position + 4])
        position += 4
        # Each block but the last of a frame unpacks to 8 MiB: a file of tiny ones would never end.
        words += 1
        if words > _LZ4_MOST_BLOCKS:
            raise _Damaged(f"it has more than {_LZ4_MOST_BLOCKS} blocks")
        if word == LZ4_LEGACY_MAGIC:
            continue
        size = int.from_bytes(word, "little")
        packed = payload[position : position + size]
        if not size or len(packed) < size:
            raise _Damaged(
                f"the block at {position:#x} has {size:#x} bytes, of {len(payload) - position:#x}"
            )
        position += size
        try:
            blocks.append(decompress(packed, uncompressed_size=_LZ4_BLOCK))
        except LZ4BlockError as error:
            raise _Damaged(str(error)) from None
        done += len(blocks[-1])
        if done > limit:
            raise _TooLarge
    return b"".join(blocks)


def _lzo(payload: memoryview, limit: int) -> bytes:
    raise CannotUnpack("its payload is lzo, for which there is no library that pykvm uses")


def _whole(content: bytes, ended: bool, limit: int) -> bytes:
    if len(content) > limit:
        raise _TooLarge
    if not ended:
        raise _Damaged("it ends too early")
    return content


FORMATS = (
    Format("gzip", b"\x1f\x8b", _gzip),
    Format("bzip2", b"BZh", _bzip2),
    Format("lzma", b"\x5d\x00\x00", _lzma),
    Format("xz", b"\xfd7zXZ\0", _lzma),
    Format("lz4", LZ4_LEGACY_MAGIC, _lz4),
    Format("zstd", b"\x28\xb5\x2f\xfd", _zstd),
    Format("lzo", b"\x89LZO", _lzo),
    Format("not compressed", b"\x7fELF", _stored),
)
