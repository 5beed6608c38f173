"""A file is a stranger's: LoadError, and neither time nor memory for what it only claims."""

from __future__ import annotations

import json
import os
import resource
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from savefile.files import MEMORY, PAGE, STATE, saved

from pykvm.errors import LoadError
from pykvm.savefile import SavedFile, is_saved_file
from pykvm.savefile.manifest import FIRST_SECTION, Header, digest_of

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good file."""
    path = tmp_path_factory.mktemp("saved") / "good.pykvm"
    saved(path)
    return path


def everything(path: Path) -> None:
    """Do all that can be done with a file."""
    with SavedFile(path) as file:
        file.verify()
        for name in file.names:
            if name.startswith("memory"):
                file.present(name)
                file.map(name).close()
            else:
                file.read(name)


def forged(whole: Path, path: Path, change: Change | bytes, size: int | None = None) -> Path:
    """`whole` with another manifest, and all hashes right."""
    data = whole.read_bytes()
    header = Header.unpack(data[:PAGE], "whole")
    if isinstance(change, bytes):
        manifest = change
    else:
        record = json.loads(data[PAGE : PAGE + header.manifest_size])
        change(record)
        manifest = json.dumps(record).encode()
    size = len(data) if size is None else size
    head = Header(len(manifest), size, digest_of(manifest)).pack()
    path.write_bytes((head + manifest).ljust(FIRST_SECTION, b"\0") + data[FIRST_SECTION:])
    os.truncate(path, size)
    return path


def put(*keys: str, value: object) -> Change:
    """A change of one value of a manifest."""

    def change(record: dict[str, Any]) -> None:
        for key in keys[:-1]:
            record = record[key]
        record[keys[-1]] = value

    return change


def test_a_forged_manifest_that_is_right_is_taken(whole: Path, tmp_path: Path) -> None:
    everything(forged(whole, tmp_path / "f", lambda record: None))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("offset", 0, "not from"),
        ("offset", -PAGE, "not from"),
        ("offset", FIRST_SECTION + 1, "not the start of a page"),
        ("offset", FIRST_SECTION, "lies over"),
        ("offset", 1 << 40, "the file at"),
        ("offset", 1 << 70, "not from"),
        ("offset", True, "not from"),
        ("offset", "0x1000", "not from"),
        ("offset", None, "not from"),
        ("size", -1, "not from"),
        ("size", 0, "not from"),
        ("size", PAGE + 1, "not a number of pages"),
        ("size", 1 << 61, "present has"),
        ("size", len(MEMORY) + 8 * PAGE, "present has"),
        ("absent", "elsewhere", "absent is"),
        ("digest", "00", "no hash"),
        ("digest", "zz" * 32, "no hash"),
        ("digest", "00" * 32, "damaged"),
        ("more", 1, "has the fields"),
        ("present", {}, "has the fields"),
        ("present", [], "no object"),
    ],
)
def test_memory(whole: Path, tmp_path: Path, key: str, value: object, message: str) -> None:
    path = forged(whole, tmp_path / "f", put("sections", "memory.0", key, value=value))
    with pytest.raises(LoadError, match=message):
        everything(path)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("sections",), [], "no object"),
        (("sections",), {str(n): 0 for n in range(2000)}, "2000 sections"),
        (("sections", ""), {}, "a section is called ''"),
        (("sections", "x" * 1000), {}, "a section is called 'xxx"),
        (("sections", "machine", "size"), 1 << 30, "not from"),
        (("sections", "machine", "size"), 10, "damaged"),
        (("sections", "machine", "unpacked"), 0, "another size"),
        (("sections", "machine", "unpacked"), len(STATE) - 1, "another size"),
        (("sections", "machine", "unpacked"), len(STATE) + 1, "another size"),
        (("sections", "machine", "unpacked"), 1 << 40, "not from"),
        (("sections", "raw", "unpacked"), 256, "cannot be unpacked"),
        (("parent",), {}, "has the fields"),
        (("parent",), {"id": "0" * 64, "name": "../../etc/shadow"}, "not the name of a file"),
        (("parent",), {"id": "0" * 64, "name": ".."}, "not the name of a file"),
        (("parent",), {"id": "0" * 64, "name": "a\0b"}, "not the name of a file"),
        (("parent",), {"id": "0" * 63, "name": "a"}, "no hash"),
        (("more",), 1, "has the fields"),
    ],
)
def test_the_rest(
    whole: Path, tmp_path: Path, keys: tuple[str, ...], value: object, message: str
) -> None:
    path = forged(whole, tmp_path / "f", put(*keys, value=value))
    with pytest.raises(LoadError, match=message):
        everything(path)


@pytest.mark.parametrize(
    "manifest",
    [b"{}", b"null", b"[" * 100_000, b'{"about": ' * 60_000, b"\0", b"9" * 900_000, b'{"a":NaN}'],
)
def test_manifests_that_are_none(whole: Path, tmp_path: Path, manifest: bytes) -> None:
    with pytest.raises(LoadError):
        everything(forged(whole, tmp_path / "f", manifest))


def test_a_manifest_longer_than_its_place(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(Header(1 << 40, 1 << 21, bytes(32)).pack())
    os.truncate(path, 1 << 21)
    with pytest.raises(LoadError, match="its manifest has"):
        SavedFile(path)


def test_what_is_packed_small_and_unpacks_large(whole: Path, tmp_path: Path) -> None:
    """Memory is for what the manifest says, which is bounded, and not for what zlib gives."""
    path = tmp_path / "f"
    bomb = zlib.compress(bytes(64 << 20), 9)
    record = {"offset": FIRST_SECTION, "size": len(bomb), "unpacked": 1000}
    section = {**record, "digest": digest_of(bomb).hex()}
    manifest = {"about": 0, "parent": None, "sections": {"bomb": section}}
    forged(whole, path, json.dumps(manifest).encode())
    with open(path, "r+b") as file:
        file.seek(FIRST_SECTION)
        file.write(bomb)
        size = file.tell()
        file.seek(0)
        file.write(
            Header(len(json.dumps(manifest)), size, digest_of(json.dumps(manifest).encode())).pack()
        )
        file.truncate(size)
    with SavedFile(path) as opened:
        tracemalloc.start()
        try:
            with pytest.raises(LoadError, match="another size"):
                opened.read("bomb")
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
        finally:
            tracemalloc.stop()


def test_a_region_of_64_gib_costs_nothing(whole: Path, tmp_path: Path) -> None:
    """The file has a hole of that size: it is mapped, and checked, without reading it."""
    size = 64 << 30
    bitmap = bytes(size // PAGE // 8)
    packed = zlib.compress(bitmap)
    start = FIRST_SECTION + 16 * PAGE * 16
    present = {"offset": FIRST_SECTION, "size": len(packed), "unpacked": len(bitmap)}
    section = {
        "offset": start,
        "size": size,
        "absent": "zero",
        "digest": digest_of(b"").hex(),
        "present": {**present, "digest": digest_of(packed).hex()},
    }
    manifest = {"about": 0, "parent": None, "sections": {"memory": section}}
    path = forged(whole, tmp_path / "f", json.dumps(manifest).encode(), FIRST_SECTION)
    with open(path, "r+b") as file:
        file.seek(FIRST_SECTION)
        file.write(packed)
        file.truncate(start + size)
        data = json.dumps(manifest).encode()
        file.seek(0)
        file.write(Header(len(data), start + size, digest_of(data)).pack())
    everything(path)


def test_data_where_there_is_none(whole: Path, tmp_path: Path) -> None:
    """A page that the bitmap leaves out would be mapped all the same."""
    path = tmp_path / "f"
    path.write_bytes(whole.read_bytes())
    with SavedFile(path) as file:
        hole = file.pages("memory.0").offset + 10 * PAGE
        file.verify()
    with open(path, "r+b") as opened:
        opened.seek(hole)
        opened.write(b"x")
    with SavedFile(path) as file, pytest.raises(LoadError, match="data where there is none"):
        file.verify()


def test_bits_after_the_last_page(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "f"
    with SavedFile(whole) as file:
        present = file.pages("memory.0").present
        wrong = file.present("memory.0")[:-1] + b"\xff"
    keys = ("sections", "memory.0", "present")
    record = {"offset": present.offset, "size": len(wrong), "digest": digest_of(wrong).hex()}
    forged(whole, path, put(*keys, value=record))
    with open(path, "r+b") as opened:
        opened.seek(present.offset)
        opened.write(wrong)
    with pytest.raises(LoadError, match="pages after the last one"):
        everything(path)


@pytest.mark.parametrize("size", [0, 1, 16, 100, PAGE - 1, PAGE, PAGE + 10, FIRST_SECTION, -1])
def test_cut_short(whole: Path, tmp_path: Path, size: int) -> None:
    path = tmp_path / "f"
    data = whole.read_bytes()
    path.write_bytes(data[:size])
    assert is_saved_file(path) == (size == -1 or size >= 16)
    with pytest.raises(LoadError):
        SavedFile(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(LoadError, match="its header says"):
        SavedFile(path)


def test_text_that_was_translated(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(whole.read_bytes().replace(b"\r\n", b"\n"))
    with pytest.raises(LoadError, match="no file that pykvm saved"):
        SavedFile(path)


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    fifo, loop = tmp_path / "fifo", tmp_path / "loop"
    os.mkfifo(fifo)
    loop.symlink_to(loop)
    for path in (fifo, tmp_path, Path("/dev/null"), Path("/dev/zero"), loop, tmp_path / "no"):
        assert not is_saved_file(path)
        with pytest.raises(LoadError):
            SavedFile(path)
    with pytest.raises(LoadError):
        SavedFile("a\0b")


def test_a_link_to_a_file_is_followed(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(whole)
    everything(tmp_path / "link")


@given(st.data())
def test_any_byte_may_be_another(whole: Path, data: st.DataObject) -> None:
    """Whatever is changed is found; what is read is what was written."""
    good = bytearray(whole.read_bytes())
    header = Header.unpack(bytes(good[:PAGE]), "whole")
    interesting = [(0, 128), (PAGE, PAGE + header.manifest_size), (FIRST_SECTION, len(good))]
    changed = bytearray(good)
    places = set()
    for _ in range(data.draw(st.integers(1, 4))):
        low, high = data.draw(st.sampled_from(interesting))
        at = data.draw(st.integers(low, high - 1))
        changed[at] = data.draw(st.integers(0, 255))
        places.add(at)
    path = whole.parent / "mutated"
    path.write_bytes(changed)
    spoilt = any(good[at] != changed[at] and _covered(at, header, good) for at in places)
    try:
        everything(path)
    except LoadError:
        assert changed != good
    else:
        assert not spoilt


def _covered(at: int, header: Header, good: bytearray) -> bool:
    """Whether a hash covers this byte: it does not what fills the last page of a section."""
    if at < PAGE + header.manifest_size:
        return True
    record = json.loads(good[PAGE : PAGE + header.manifest_size])["sections"]
    places = [*record.values(), *(one["present"] for one in record.values() if "present" in one)]
    return any(one["offset"] <= at < one["offset"] + one["size"] for one in places)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.just(FIRST_SECTION),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.data())
def test_any_manifest(whole: Path, data: st.DataObject) -> None:
    """With hashes that are right, as one with intent would make it."""

    def change(record: dict[str, Any]) -> None:
        for _ in range(data.draw(st.integers(1, 3))):
            node: Any = record
            while isinstance(node, dict) and node:
                key = data.draw(st.sampled_from(sorted(node)))
                if not isinstance(node[key], dict) or data.draw(st.integers(0, 3)) == 0:
                    break
                node = node[key]
            if not isinstance(node, dict):
                continue
            key = data.draw(st.sampled_from([*sorted(node), "unpacked", "present"]))
            if data.draw(st.booleans()):
                node.pop(key, None)
            else:
                node[key] = data.draw(_JSON)

    path = forged(whole, whole.parent / "mutated", change)
    try:
        everything(path)
    except LoadError as error:
        assert error.message.startswith(str(path))


def test_descriptors_have_run_out(whole: Path) -> None:
    from pykvm.errors import ResourceError

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(ResourceError, match="Too many open files"):
            SavedFile(whole)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
