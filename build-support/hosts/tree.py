"""What is under test, as a disk of its own: made in a second, which is all that a change costs.

It has the files that git knows of, the extension and the guests as they are built here, Linux if it
is built, and the command to run.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from artifacts import Build
from image import TREE, pack

__all__ = ["LINUX", "disk"]

ROOT = Path(__file__).parents[2]

CYLINDERS = 400

# Of the tests that boot Linux; support/linux.py reads it.
LINUX = "linux"


def disk(build: Build, command: Sequence[str], environment: dict[str, str], stock: Path) -> Path:
    """Make the disk, with a command and its environment, and with Debian's own kernel."""
    for name in files():
        copy(ROOT / name, build.tree / name)
    kernels = build.tree / LINUX
    kernels.mkdir()
    for name, path in [*linux(), ("vmlinuz", str(stock))]:
        shutil.copy2(path, kernels / name)
    words = [*(f"{name}={value}" for name, value in environment.items()), *command]
    script = f"cd {TREE} && exec env {shlex.join(words)}\n"
    (build.tree / "command").write_text(script)
    image = build.result / "tree.img"
    pack(build, build.tree, image, CYLINDERS)
    return image


def files() -> Iterator[str]:
    """The files that git knows or would know of, and those built from them."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    yield from filter(None, listed.split("\0"))
    compiled = ("pykvm/**/__pycache__/*.pyc", "tests/**/__pycache__/*.pyc")
    for pattern in ("pykvm/_core/*.so", "guests/build/**/*", *compiled):
        for path in ROOT.glob(pattern):
            name = str(path.relative_to(ROOT))
            if not name.startswith("guests/build/linux/") and path.is_file():
                yield name


def copy(source: Path, target: Path) -> None:
    """Copy a file with its times, by which `make` and Python know what is up to date."""
    # One that git knows may be deleted.
    if source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


def linux() -> Iterator[tuple[str, str]]:
    """The files of guests/linux, if they are built."""
    script = ROOT / "guests/linux/build.py"
    command = [sys.executable, "-B", str(script), "--find"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode == 0:
        yield from json.loads(found.stdout).items()
