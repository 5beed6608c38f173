"""Files of sections for tests."""

from __future__ import annotations

from pathlib import Path

from pykvm.savefile import Bytes, Pages, Parent, write

__all__ = ["ABOUT", "MEMORY", "PAGE", "STATE", "difference", "memory", "saved"]

PAGE = 4096
ABOUT = {"guest": "hello.elf", "vcpus": [1, 2]}
STATE = b'{"rip": 1}' * 200


def memory(pages: int, **present: bytes) -> bytearray:
    """So many pages of zeros, and these: memory(8, p3=b"text")."""
    made = bytearray(pages * PAGE)
    for name, data in present.items():
        start = int(name[1:]) * PAGE
        made[start : start + len(data)] = data
    return made


MEMORY = memory(21, p0=b"first", p3=b"x" * PAGE, p4=b"y", p20=b"last")


def saved(path: Path) -> str:
    """A file with two sections of bytes and one of memory; its id."""
    sections: list[Bytes | Pages] = [
        Bytes("machine", STATE),
        Bytes("raw", bytes(range(256))),
        Pages("memory.0", len(MEMORY), [(0, memoryview(MEMORY))]),
    ]
    return write(path, sections, about=ABOUT)


def difference(path: Path, parent: Parent) -> str:
    """A difference to `saved`: page 3 is zeros now, pages 7 and 8 are new."""
    parts = [(3 * PAGE, memoryview(bytes(PAGE))), (7 * PAGE, memoryview(b"z" * 2 * PAGE))]
    region = Pages("memory.0", len(MEMORY), parts, "parent")
    sections: list[Bytes | Pages] = [Bytes("machine", b"later"), region]
    return write(path, sections, about=ABOUT, parent=parent)
