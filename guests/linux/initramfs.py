"""The initramfs: a cpio archive, the same bytes whenever it is made of the same files.

The format is "newc" as the kernel reads it: Documentation/driver-api/early-userspace/
buffer-format.rst in the kernel's source.  Nothing in it depends on the user who makes it, so device
nodes need no root.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import NamedTuple

__all__ = ["Entry", "archive", "entries"]

HERE = Path(__file__).parent

#: Links to busybox for those that others than its shell start, or that start before /proc is there:
#: from then on the shell finds all of them in itself.
APPLETS = ("cttyhack", "mount", "sh")

DIRECTORIES = ("bin", "dev", "etc", "proc", "sys", "tmp")
CONSOLE = (5, 1)


class Entry(NamedTuple):
    """A file of any kind: its name, mode and content, and of a device node its numbers."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def entries(busybox: bytes, programs: dict[str, bytes]) -> list[Entry]:
    """What is in ours: busybox, programs for /bin by name, and the scripts that lie here."""
    executable = stat.S_IFREG | 0o755
    return [
        *(Entry(name, stat.S_IFDIR | 0o755) for name in DIRECTORIES),
        Entry("dev/console", stat.S_IFCHR | 0o600, device=CONSOLE),
        Entry("init", executable, (HERE / "init").read_bytes()),
        Entry("etc/environment", stat.S_IFREG | 0o644, (HERE / "environment").read_bytes()),
        Entry("etc/inittab", stat.S_IFREG | 0o644, (HERE / "inittab").read_bytes()),
        Entry("bin/busybox", executable, busybox),
        Entry("bin/checks", executable, (HERE / "checks").read_bytes()),
        *(Entry(f"bin/{name}", executable, data) for name, data in sorted(programs.items())),
        *(Entry(f"bin/{name}", stat.S_IFLNK | 0o777, b"busybox") for name in APPLETS),
    ]


def archive(entries: list[Entry]) -> bytes:
    """The cpio archive of `entries`."""
    trailer = Entry("TRAILER!!!", 0)
    return b"".join(_member(number, entry) for number, entry in enumerate([*entries, trailer], 1))


def _member(number: int, entry: Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    links, owner, time, check = 1, 0, 0, 0
    fields = (
        *(number, entry.mode, owner, owner, links, time, len(entry.data)),
        *(0, 0, *entry.device, len(name), check),
    )
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
