"""Large files are read piece by piece, to the same effect as others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from boot.elfs import HLT, Part, R, Sym, W, elf
from boot.kernels import K, M, note, packed

from pykvm import boot
from pykvm.boot.files import read_source
from pykvm.boot.image import Setup
from pykvm.boot.large_file import LargeFile
from pykvm.boot.linux_image import version_of
from pykvm.boot.source import Source
from pykvm.errors import LoadError
from pykvm.memory import GuestMemory
from pykvm.x86.state import Mode
from support.boot import load

CONTENT = os.urandom(2 * M)
LINUX = elf(
    Part(HLT * 64 + CONTENT + b"Linux version 6\n", 0xFFFF_FFFF_8100_0000, paddr=16 * M),
    Part(b"data", 0xFFFF_FFFF_8200_0000, R | W, paddr=32 * M, memsz=64 * K),
    note(),
    entry=16 * M,
    symbols=(Sym("startup_64", 0xFFFF_FFFF_8100_0000), Sym("main", 0xFFFF_FFFF_8100_0100)),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "vmlinux"
    path.write_bytes(LINUX)
    return path


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(overcommit=True) as memory:
        # A segment may lie in regions that touch.
        memory.add_ram(0, 17 * M)
        memory.add_ram(17 * M, 47 * M)
        yield memory


def test_a_large_kernel_is_placed_as_from_bytes(path: Path, memory: GuestMemory) -> None:
    small = boot.place(load(LINUX), memory)
    places = ((16 * M, 64 + len(CONTENT) + 16), (32 * M, 64 * K))
    expected = [memory.read(*place) for place in places]
    memory.fill(16 * M, 18 * M, 0xAA)
    large = boot.place(load(path), memory)
    assert [memory.read(*place) for place in places] == expected
    assert large.layout == small.layout
    assert dict(large.symbols) == dict(small.symbols)
    assert len(large.symbols) == 2


def test_only_what_is_needed_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = LargeFile.read_into

    def counted(self: LargeFile, buffer: memoryview, offset: int) -> None:
        read.append(len(buffer))
        original(self, buffer, offset)

    monkeypatch.setattr(LargeFile, "read_into", counted)
    image = load(path)
    assert sum(read) < 100 * K
    assert image.symbols["main"] == 0xFFFF_FFFF_8100_0100
    assert sum(read) < 100 * K
    assert version_of(image) == "6"


def test_a_source_has_one_face(path: Path) -> None:
    large, small = read_source(path), Source("vmlinux", LINUX)
    assert isinstance(large, LargeFile)
    assert (large.name, len(large)) == (small.name, len(small))
    end = len(LINUX)
    for start, size in (
        *((0, 4), (0, 100 * K), (M, 10), (M, 0), (end - 4, 4), (end - 4, 8)),
        *((end, 1), (end + 8, 8), (0, 0), (0, end + 1), (1 << 63, 1 << 63)),
    ):
        assert large.part(start, size) == small.part(start, size)
        assert bytes(large.slice(start, size)) == bytes(small.slice(start, size))
        assert len(large.slice(start, size)) == len(small.slice(start, size))
    assert large.data == LINUX
    assert large.data is large.data


def test_large_flat_pie_and_bzimage_files_are_placed_alike(
    tmp_path: Path, memory: GuestMemory
) -> None:
    cases: dict[str, tuple[bytes, dict[str, Any]]] = {
        "flat.bin": (CONTENT, {"mode": Mode.PROTECTED, "address": M}),
        "pie.elf": (elf(Part(HLT + CONTENT, 0), type=3), {}),
        "bzImage": (packed(LINUX, None, "lz4", init_size=32 * M), {}),
    }
    for name, (data, request) in cases.items():
        (tmp_path / name).write_bytes(data)
        placed = []
        for file in (tmp_path / name, data):
            memory.fill(M, 36 * M)
            boot.place(load(file, name=name, **request), memory)
            placed.append(memory.read(M, 36 * M))
        assert placed[0] == placed[1], name
        assert HLT in placed[0] or name == "flat.bin"


def test_a_large_initrd_is_placed(path: Path, memory: GuestMemory) -> None:
    entry = boot.place(load(LINUX), memory, Setup(initrd=read_source(path)))
    (place,) = (one for one in entry.layout if one.name == "initrd")
    assert memory.read(place.start, len(LINUX)) == LINUX


def test_a_file_that_has_changed_is_refused(path: Path, memory: GuestMemory) -> None:
    image = load(path, name="k")
    path.write_bytes(LINUX[:M])
    with pytest.raises(LoadError, match=r"^k: has changed since it was loaded"):
        boot.place(image, memory)
    # It is worth running without its symbols.
    assert dict(image.symbols) == {}


def test_the_kernel_may_give_it_in_pieces(
    path: Path, memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda fd, buffers, at: preadv(fd, [buffers[0][: 300 * K]], at)
    )
    boot.place(load(path), memory)
    assert memory.read(16 * M + 64, len(CONTENT)) == CONTENT


def test_a_file_that_is_gone_or_replaced(path: Path, memory: GuestMemory) -> None:
    image = load(path, name="k")
    other = path.with_name("other")
    other.write_bytes(LINUX)
    path.unlink()
    with pytest.raises(LoadError, match=r"^k: cannot be read: No such file"):
        boot.place(image, memory)
    other.rename(path)
    with pytest.raises(LoadError, match="has changed since"):
        boot.place(image, memory)


def test_the_working_directory_may_change(
    path: Path, memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    image = load(path.name)
    monkeypatch.chdir("/")
    boot.place(image, memory)
    assert memory.read(16 * M, 64) == HLT * 64


def test_no_host_memory_for_a_large_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = read_source(path)
    monkeypatch.setattr(LargeFile, "__len__", lambda self: 1 << 62)
    monkeypatch.setattr(source, "_size", 1 << 62)
    with pytest.raises(LoadError, match="cannot be read: no memory for 0x4000000000000000 bytes"):
        _ = source.data


def test_small_files_are_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "k"
    path.write_bytes(CONTENT[: M - 1])
    assert type(read_source(path)) is Source
