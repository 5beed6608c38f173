"""Files of sections: what is written is read back, and how it lies in the file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from savefile.files import ABOUT, MEMORY, PAGE, STATE, difference, memory, saved

from pykvm.errors import ClosedError, ConfigError, LoadError
from pykvm.savefile import Bytes, Pages, Parent, SavedFile, is_saved_file, parse_json, write
from pykvm.savefile.manifest import FIRST_SECTION
from pykvm.savefile.pages import Bitmap, runs_of, whole_pages


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.pykvm"


def test_what_was_written_is_read(path: Path) -> None:
    id = saved(path)
    assert is_saved_file(path)
    with SavedFile(path) as file:
        assert (file.id, file.about, file.parent) == (id, ABOUT, None)
        assert file.names == ("machine", "raw", "memory.0")
        assert file.read("machine") == STATE
        assert file.read("raw") == bytes(range(256))
        assert list(runs_of(file.present("memory.0"))) == [
            (0, PAGE),
            (3 * PAGE, 5 * PAGE),
            (20 * PAGE, 21 * PAGE),
        ]
        with file.map("memory.0") as mapped:
            assert mapped[:] == MEMORY
            mapped[:5] = b"other"
        with file.map("memory.0") as mapped:
            assert mapped[:5] == b"first"
        file.verify()
    for closed in (lambda: file.read("machine"), lambda: file.map("memory.0"), file.verify):
        with pytest.raises(ClosedError):
            closed()


def test_a_person_can_read_the_manifest(path: Path) -> None:
    saved(path)
    head = path.read_bytes()[:8000]
    text = head[PAGE:].decode().rstrip("\0")
    record = json.loads(text)
    assert record["about"] == ABOUT
    assert '\n  "guest": "hello.elf",\n' in text
    assert record["sections"]["machine"]["unpacked"] == len(STATE)


def test_zeros_take_no_room(path: Path) -> None:
    size = 256 << 20
    region = memoryview(memory(size // PAGE, p9=b"a", p65535=b"z"))
    write(path, [Pages("memory.0", size, [(0, region)])], about=None)
    status = path.stat()
    assert status.st_size > size
    assert status.st_blocks * 512 < 1 << 20
    with SavedFile(path) as file, file.map("memory.0") as mapped:
        assert mapped == region.obj
        file.verify()


def test_equal_contents_make_equal_files(tmp_path: Path) -> None:
    assert saved(tmp_path / "a") == saved(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_difference_and_its_parent(path: Path, tmp_path: Path) -> None:
    child = tmp_path / "b.pykvm"
    id = saved(path)
    difference(child, Parent(id, path.name))
    with SavedFile(child) as file:
        assert file.parent == Parent(id, "a.pykvm")
        # A page that has become zeros is there, too.
        assert list(runs_of(file.present("memory.0"))) == [
            (3 * PAGE, 4 * PAGE),
            (7 * PAGE, 9 * PAGE),
        ]
        file.verify()
        with file.open_parent() as parent:
            assert parent.id == id


def test_the_parent_is_not_there(path: Path, tmp_path: Path) -> None:
    child = tmp_path / "b.pykvm"
    difference(child, Parent(saved(path), path.name))
    path.unlink()
    with SavedFile(child) as file:
        with pytest.raises(LoadError, match=r"is a difference to a\.pykvm: .*No such file") as no:
            file.open_parent()
        assert no.value.hint == "the two belong in one directory"


def test_the_parent_is_another_one(path: Path, tmp_path: Path) -> None:
    child = tmp_path / "b.pykvm"
    difference(child, Parent(saved(path), path.name))
    other = write(path, [], about="another")
    with (
        SavedFile(child) as file,
        pytest.raises(LoadError, match=f"the one beside it is {other[:12]}"),
    ):
        file.open_parent()


@pytest.mark.parametrize("name", ["machine", "nothing", "memory.0.present"])
def test_sections_that_are_not_there(path: Path, name: str) -> None:
    saved(path)
    with SavedFile(path) as file:
        with pytest.raises(LoadError, match="section"):
            file.map(name)
        with pytest.raises(LoadError, match="section"):
            file.read("memory.0")


@pytest.mark.parametrize(
    ("size", "parts"),
    [
        (0, []),
        (100, []),
        (PAGE, [(0, b"a")]),
        (PAGE, [(1, b"a" * PAGE)]),
        (PAGE, [(0, b"a" * 2 * PAGE)]),
        (2 * PAGE, [(PAGE, b"a" * PAGE), (0, b"a" * PAGE)]),
    ],
)
def test_parts_out_of_place_are_refused(
    path: Path, size: int, parts: list[tuple[int, bytes]]
) -> None:
    section = Pages("memory", size, [(start, memoryview(data)) for start, data in parts])
    with pytest.raises(ConfigError):
        write(path, [section], about=None)
    assert os.listdir(path.parent) == []


def test_a_manifest_that_does_not_fit(path: Path) -> None:
    with pytest.raises(ConfigError, match="a manifest of"):
        write(path, [], about="a" * FIRST_SECTION)
    with pytest.raises(ConfigError, match="surrogates not allowed"):
        write(path, [], about="\udcff")
    assert os.listdir(path.parent) == []


def test_the_same_name_twice(path: Path) -> None:
    with pytest.raises(ConfigError, match="'a' twice"):
        write(path, [Bytes("a", b""), Bytes("a", b"")], about=None)


@given(st.lists(st.booleans(), min_size=1, max_size=80))
def test_bitmaps(pages: list[bool]) -> None:
    size = len(pages) * PAGE
    region = memoryview(b"".join((b"x" if page else b"\0") * PAGE for page in pages))
    bitmap = Bitmap(size)
    for start, end in whole_pages(region):
        bitmap.add(start, end)
    assert [bytes(bitmap)[n // 8] >> n % 8 & 1 for n in range(len(pages))] == pages
    rebuilt = [False] * len(pages)
    last = -1
    for start, end in runs_of(bytes(bitmap)):
        assert start > last  # runs are as long as they can be
        last = end
        rebuilt[start // PAGE : end // PAGE] = [True] * ((end - start) // PAGE)
    assert rebuilt == pages


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100))))
def test_a_bitmap_of_any_runs(runs: list[tuple[int, int]]) -> None:
    bitmap, pages = Bitmap(200 * PAGE), set()
    for start, length in runs:
        bitmap.add(start * PAGE, (start + length) * PAGE)
        pages |= set(range(start, start + length))
    found = {page for a, b in runs_of(bytes(bitmap)) for page in range(a // PAGE, b // PAGE)}
    assert found == pages


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no JSON: Expecting value"),
        ("NaN", "NaN is no integer"),
        ("[-Infinity]", "-Infinity is no integer"),
        ("1.5", "1.5 is no integer"),
        ("1e999", "1e999 is no integer"),
        ('{"a": {"b": 1, "b": 1}}', "'b' stands there twice"),
        ('["\\ud800"]', "surrogates not allowed"),
        ('{"\\uDFFF": 1}', "surrogates not allowed"),
        ("[" * 300_000, "nested too deep"),
        ('{"a":' * 100_000, "nested too deep"),
        ("9" * 500_000, "digits"),
        ("[1] 2", "Extra data"),
        ("\ufeff[]", "BOM"),
    ],
)
def test_json_of_strangers(text: str, message: str) -> None:
    with pytest.raises(LoadError, match=message) as refused:
        parse_json(text.encode(), "there")
    assert refused.value.message.startswith("there: ")


def test_json_that_is_no_text() -> None:
    with pytest.raises(LoadError, match="can't decode"):
        parse_json(b'"\xff"', "there")
    assert parse_json('["\\ud83d\\ude00", "\u00e9"]'.encode(), "there") == ["\U0001f600", "\u00e9"]
