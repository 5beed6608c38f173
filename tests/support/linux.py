"""The Linux that tests boot: guests/linux builds it, into a cache outside the repository.

A test that boots it asks for the fixture `linux`, and is skipped where it is not built.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from _pytest.outcomes import Skipped

    from pykvm import Machine
else:
    Skipped = pytest.skip.Exception

#: Seconds within which a busy host boots it, runs the checks and powers it off.
DEADLINE = 300.0

CHECK = re.compile(r"^check: ([^:]+): (.*?)\r?$", re.MULTILINE)

#: `machine = boot(image, append="checks")`; what else it is given goes to Machine.
Boot = Callable[..., "Machine"]

#: What `Linux` has, by the names of the files.
FILES = ("vmlinux", "bzImage", "initramfs.cpio", "System.map")
#: Names a directory with these files, where they are not to be looked for in the cache.
PLACE = "PYKVM_LINUX"
BUILD = Path(__file__).parents[2] / "guests" / "linux" / "build.py"


class LinuxMissing(Skipped):
    """Skips a test because the Linux that it would boot is not built."""


class Linux(NamedTuple):
    """Where the kernel and its initramfs are."""

    vmlinux: Path
    bzimage: Path
    initramfs: Path
    map: Path

    def symbol(self, name: str) -> int:
        """Where the linker put it, by System.map."""
        found = re.search(
            rf"^([0-9a-f]+) \w {re.escape(name)}$", self.map.read_text(), re.MULTILINE
        )
        assert found, f"no symbol {name} in {self.map}"
        return int(found[1], 16)


@cache
def find() -> Linux | str:
    """Where it is, or why it is nowhere, with the command that changes that."""
    if directory := os.environ.get(PLACE):
        return Linux(*(Path(directory, name) for name in FILES))
    command = [sys.executable, "-B", str(BUILD), "--find"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"tests that boot Linux: {done.stderr.strip()}"
    paths = {name: Path(path) for name, path in json.loads(done.stdout).items()}
    return Linux(*(paths[name] for name in FILES))


def require_linux() -> Linux:
    """Where it is.  Skips the running test if it is not built."""
    found = find()
    if isinstance(found, str):
        raise LinuxMissing(found)
    return found


def checks(machine: Machine) -> dict[str, str]:
    """What guests/linux/checks has found, by its name; "done" is how many of them failed."""
    return dict(CHECK.findall(machine.serial.text.replace("check: done, ", "check: done: ")))


def last_lines(machine: Machine, count: int = 20) -> str:
    """The end of what the guest said, for a test that fails."""
    return "\n".join(machine.serial.text.splitlines()[-count:])
