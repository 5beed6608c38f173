"""Unpacking: what goes in comes out, and no more than was allowed."""

from __future__ import annotations

import sys
import tracemalloc

import pytest
from boot.kernels import PACKERS, K, M, lz4_legacy

from pykvm.boot.payload import FORMATS, CannotUnpack, format_of, unpack
from pykvm.boot.source import Source
from pykvm.errors import LoadError

SOURCE = Source("k", b"\0")
CONTENT = b"\x7fELF" + bytes(range(256)) * 500
COMPRESSED = [name for name in PACKERS if name != "not compressed"]


def open_(payload: bytes, limit: int = M) -> bytes:
    return unpack(SOURCE, memoryview(payload), limit)


@pytest.mark.parametrize("name", PACKERS)
def test_what_goes_in_comes_out(name: str) -> None:
    payload = PACKERS[name](CONTENT)
    found = format_of(memoryview(payload))
    assert found is not None
    assert found.name == name
    assert open_(payload) == CONTENT
    assert open_(payload, len(CONTENT)) == CONTENT


def test_all_formats_are_tried_here() -> None:
    assert {one.name for one in FORMATS} - PACKERS.keys() == {"lzo"}


@pytest.mark.parametrize("name", PACKERS)
def test_one_byte_too_many(name: str) -> None:
    with pytest.raises(
        LoadError, match=rf"^k: payload \({name}, 0x\w+ bytes\) unpacks to more"
    ) as e:
        open_(PACKERS[name](CONTENT), len(CONTENT) - 1)
    assert f"more than {len(CONTENT) - 1:#x} bytes" in e.value.message


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_bomb_is_not_unpacked(name: str) -> None:
    payload = PACKERS[name](bytes(48 * M))
    tracemalloc.start()
    try:
        with pytest.raises(LoadError, match="unpacks to more than 0x100000 bytes"):
            open_(payload)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # lz4 works in blocks of 8 MiB.
    assert peak < 20 * M


@pytest.mark.parametrize("name", COMPRESSED)
@pytest.mark.parametrize("part", [0.3, 0.9])
def test_what_is_cut_off_is_refused(name: str, part: float) -> None:
    payload = PACKERS[name](CONTENT)
    with pytest.raises(LoadError, match="cannot be unpacked") as caught:
        open_(payload[: int(len(payload) * part)])
    assert caught.value.hint == "the file is truncated or damaged: copy or build it again"


@pytest.mark.parametrize("name", COMPRESSED)
def test_what_is_damaged_is_refused(name: str) -> None:
    payload = bytearray(PACKERS[name](CONTENT))
    magic = next(len(one.magic) for one in FORMATS if one.name == name)
    payload[magic:] = b"\xff" * (len(payload) - magic)
    with pytest.raises(LoadError, match="cannot be unpacked"):
        open_(bytes(payload))


def test_lz4_in_several_blocks_and_frames() -> None:
    blocks = lz4_legacy(CONTENT, 64 * K)
    assert open_(blocks) == CONTENT
    assert open_(blocks + lz4_legacy(b"more") + b"size") == CONTENT + b"more"


@pytest.mark.parametrize("what", ["blocks", "frames"])
def test_lz4_of_very_many_parts_that_hold_next_to_nothing(what: str) -> None:
    magic = lz4_legacy(b"")[:4]
    part = lz4_legacy(b"x")[4:] if what == "blocks" else magic
    with pytest.raises(LoadError, match="cannot be unpacked: it has more than 4096 blocks"):
        open_(magic + part * 5000 + b"size")


@pytest.mark.parametrize("size", [0, 0xFFFF_FFFF])
def test_an_lz4_block_of_an_impossible_size(size: int) -> None:
    payload = lz4_legacy(b"")[:4] + size.to_bytes(4, "little") + bytes(8)
    with pytest.raises(LoadError, match=f"the block at 0x8 has {size:#x} bytes, of 0x8"):
        open_(payload)


@pytest.mark.parametrize(
    ("name", "module", "reason"),
    [
        ("lz4", "lz4.block", "its payload is lz4, and lz4 is missing: pip install lz4"),
        ("zstd", "backports", "its payload is zstd, and backports.zstd is missing: pip install"),
        ("gzip", "zlib", "this Python is built without zlib"),
        ("bzip2", "bz2", "this Python is built without bz2"),
        ("xz", "lzma", "this Python is built without lzma"),
    ],
)
def test_a_library_is_missing(
    name: str, module: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "zstd" and sys.version_info >= (3, 14):
        module = "compression.zstd"
    payload = PACKERS[name](CONTENT)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(CannotUnpack) as caught:
        open_(payload)
    assert str(caught.value).startswith(reason)


def test_unknown_formats() -> None:
    with pytest.raises(CannotUnpack, match=r"does not know \(01 02 03 04 \.\.\.\)"):
        open_(b"\1\2\3\4\5")
    with pytest.raises(CannotUnpack, match="its payload is lzo"):
        open_(b"\x89LZO\0\r\n\x1a\n")
    with pytest.raises(CannotUnpack):
        open_(b"")
