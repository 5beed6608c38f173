"""The header and the manifest: where each section lies and what its hash is."""

from __future__ import annotations

import struct

from pykvm.errors import LoadError
from pykvm.savefile.magic import MAGIC
from pykvm.savefile.strict_json import parse_json
from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple

if TYPE_CHECKING:
    from hashlib import blake2b
    from typing import Any
else:
    try:
        # Where `hashlib` has it from: that loads OpenSSL, which takes longer than a file does.
        from _blake2 import blake2b
    except ImportError:
        from hashlib import blake2b

__all__ = [
    "FIRST_SECTION",
    "LARGEST_BYTES",
    "PAGE",
    "VERSION",
    "Header",
    "Manifest",
    "Parent",
    "StoredBytes",
    "StoredPages",
    "aligned",
    "blake2b",
    "digest_of",
]

PAGE = 4096

VERSION = 1

#: Where the sections begin, and so how long a manifest may be.
FIRST_SECTION = 1 << 20

#: The most bytes of a section that is read whole, unpacked.
LARGEST_BYTES = 128 << 20

_SECTIONS = 1024
_NAME = 200
# An offset that mmap and pread can take.
_LARGEST_FILE = 1 << 62

# magic, version, zero, size of the manifest, of the file, hash of the manifest
_HEADER = struct.Struct("<16sIIQQ32s")
_DIGEST = 32

#: What pages that are not in a section are.
ABSENT = ("zero", "parent")


def digest_of(data: bytes | memoryview) -> bytes:
    """The hash of what is in a section or a manifest."""
    return blake2b(data, digest_size=_DIGEST).digest()


def aligned(offset: int) -> int:
    """The start of the next page, if `offset` is none."""
    return (offset + PAGE - 1) & -PAGE


class Header(NamedTuple):
    """The first page: magic, version, sizes of manifest and file, the manifest's hash, its own."""

    manifest_size: int
    file_size: int
    id: bytes

    def pack(self) -> bytes:
        """The page."""
        head = _HEADER.pack(MAGIC, VERSION, 0, *self)
        return (head + digest_of(head)).ljust(PAGE, b"\0")

    @classmethod
    def unpack(cls, page: bytes, where: str) -> Header:
        """Raises LoadError unless `page` is what `pack` makes."""
        if not page.startswith(MAGIC):
            raise LoadError(f"{where}: is no file that pykvm saved")
        if len(page) < PAGE:
            raise LoadError(f"{where}: ends after {len(page)} bytes, in its header")
        _, version, _, manifest_size, file_size, id = _HEADER.unpack_from(page)
        if version != VERSION:
            raise LoadError(
                f"{where}: is of version {version} of the format; this pykvm reads {VERSION}"
            )
        header = cls(manifest_size, file_size, id)
        if header.pack() != page:
            raise LoadError(f"{where}: its header is damaged (hash)")
        if not 0 < manifest_size <= FIRST_SECTION - PAGE:
            raise LoadError(f"{where}: its manifest has {manifest_size} bytes")
        return header


class Parent(NamedTuple):
    """The file that another is a difference to: its id in hexadecimal, and what it was called."""

    id: str
    name: str


class StoredBytes(NamedTuple):
    """Bytes of the file; `unpacked` is their number after zlib, None if they are as they are."""

    offset: int
    size: int
    unpacked: int | None
    digest: bytes

    @property
    def end(self) -> int:
        """The offset after it."""
        return self.offset + self.size

    def as_json(self) -> dict[str, Any]:
        """The record in a manifest."""
        packing = {} if self.unpacked is None else {"unpacked": self.unpacked}
        place = {"offset": self.offset, "size": self.size}
        return {**place, **packing, "digest": self.digest.hex()}


class StoredPages(NamedTuple):
    """A region's pages.  `absent` says what those are that the bitmap `present` leaves out."""

    offset: int
    size: int
    absent: str
    present: StoredBytes
    digest: bytes

    @property
    def end(self) -> int:
        """The offset after it."""
        return self.offset + self.size

    def as_json(self) -> dict[str, Any]:
        """The record in a manifest."""
        place = {"offset": self.offset, "size": self.size, "absent": self.absent}
        return {**place, "present": self.present.as_json(), "digest": self.digest.hex()}


class Manifest(NamedTuple):
    """What is in a file: `about` is the writer's own."""

    about: Any
    parent: Parent | None
    sections: dict[str, StoredBytes | StoredPages]

    def pack(self) -> bytes:
        """The JSON.  Raises ValueError if it does not fit."""
        import json

        sections = {name: section.as_json() for name, section in self.sections.items()}
        parent = None if self.parent is None else self.parent._asdict()
        record = {"about": self.about, "parent": parent, "sections": sections}
        # A text that is no Unicode could not be read back.
        json.dumps(record, ensure_ascii=False).encode()
        data = json.dumps(record, indent=1, allow_nan=False).encode() + b"\n"
        if len(data) > FIRST_SECTION - PAGE:
            raise ValueError(f"a manifest of {len(data)} bytes")
        return data

    @classmethod
    def unpack(cls, data: bytes, file_size: int, where: str) -> Manifest:
        """Check and read it.  Raises LoadError."""
        reader = _Reader(f"{where}: manifest", file_size)
        record = reader.fields(parse_json(data, reader.where), ("about", "parent", "sections"))
        sections = reader.object(record["sections"], "sections")
        if len(sections) > _SECTIONS:
            raise reader.error(f"{len(sections)} sections")
        read = {name: reader.section(name, one) for name, one in sections.items()}
        reader.check_places(read)
        return cls(record["about"], reader.parent(record["parent"]), read)


class _Reader:
    """Reads the parts of a manifest, and says what is wrong with one."""

    def __init__(self, where: str, file_size: int) -> None:
        self.where = where
        self._file_size = file_size

    def error(self, message: str) -> LoadError:
        return LoadError(f"{self.where}: {message}")

    def object(self, value: Any, what: str) -> dict[str, Any]:
        if type(value) is not dict:
            raise self.error(f"{what} is {value!r:.60}, no object")
        return value

    def fields(self, value: Any, names: tuple[str, ...], what: str = "it") -> dict[str, Any]:
        record = self.object(value, what)
        if record.keys() != set(names):
            raise self.error(f"{what} has the fields {', '.join(names)}, not {[*record]!r:.100}")
        return record

    def section(self, name: str, value: Any) -> StoredBytes | StoredPages:
        if not 0 < len(name) <= _NAME:
            raise self.error(f"a section is called {name!r:.60}")
        record = self.object(value, name)
        return self._pages(name, record) if "present" in record else self._bytes(name, record)

    def _bytes(self, name: str, value: Any) -> StoredBytes:
        record = self.object(value, name)
        packed = ("unpacked",) if "unpacked" in record else ()
        self.fields(record, ("offset", "size", *packed, "digest"), name)
        return StoredBytes(
            self._offset(name, record),
            self._number(f"{name}.size", record["size"], 0, LARGEST_BYTES),
            self._number(f"{name}.unpacked", record["unpacked"], 0, LARGEST_BYTES)
            if packed
            else None,
            self._hash(name, record),
        )

    def _pages(self, name: str, record: dict[str, Any]) -> StoredPages:
        self.fields(record, ("offset", "size", "absent", "present", "digest"), name)
        size = self._number(f"{name}.size", record["size"], PAGE, _LARGEST_FILE)
        if size % PAGE:
            raise self.error(f"{name}.size is {size:#x}, not a number of pages")
        if record["absent"] not in ABSENT:
            raise self.error(f"{name}.absent is {record['absent']!r:.60}")
        present = self._bytes(f"{name}.present", record["present"])
        unpacked = present.size if present.unpacked is None else present.unpacked
        if unpacked != (size // PAGE + 7) // 8:
            raise self.error(f"{name}.present has {unpacked} bytes for {size // PAGE} pages")
        offset = self._offset(name, record)
        return StoredPages(offset, size, record["absent"], present, self._hash(name, record))

    def _offset(self, name: str, record: dict[str, Any]) -> int:
        offset = self._number(f"{name}.offset", record["offset"], FIRST_SECTION, _LARGEST_FILE)
        if offset % PAGE:
            raise self.error(f"{name}.offset is {offset:#x}, not the start of a page")
        return offset

    def _number(self, what: str, value: Any, low: int, high: int) -> int:
        if type(value) is not int or not low <= value <= high:
            raise self.error(f"{what} is {value!r:.60}, not from {low} to {high}")
        return value

    def _hash(self, name: str, record: dict[str, Any]) -> bytes:
        return bytes.fromhex(self._hex(f"{name}.digest", record["digest"]))

    def _hex(self, what: str, value: Any) -> str:
        if type(value) is not str or len(value) != 2 * _DIGEST or value.strip("0123456789abcdef"):
            raise self.error(f"{what} is {value!r:.60}, no hash in hexadecimal")
        return value

    def parent(self, value: Any) -> Parent | None:
        if value is None:
            return None
        record = self.fields(value, ("id", "name"), "parent")
        name = record["name"]
        # It is looked for beside this file and nowhere else.
        good = type(name) is str and 0 < len(name) <= _NAME and name not in (".", "..")
        if not good or "/" in name or "\0" in name:
            raise self.error(f"parent.name is {name!r:.60}, not the name of a file")
        return Parent(self._hex("parent.id", record["id"]), name)

    def check_places(self, sections: dict[str, StoredBytes | StoredPages]) -> None:
        """Raise LoadError where one lies outside the file, or over another."""
        places: list[tuple[int, int, str]] = []
        for name, section in sections.items():
            places.append((section.offset, section.end, name))
            if isinstance(section, StoredPages):
                present = section.present
                places.append((present.offset, present.end, f"{name}.present"))
        places.sort()
        last, before = 0, ""
        for start, end, name in places:
            if end > self._file_size:
                raise self.error(f"{name} ends at {end:#x}, the file at {self._file_size:#x}")
            if start < last:
                raise self.error(f"{name} lies over {before}")
            last, before = end, name
