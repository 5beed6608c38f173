"""Things that take long to build, kept outside the repository under the name of what they are of.

A directory of the cache is there whole or not at all; two who want the same build it once.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

__all__ = ["Artifact", "Build", "BuildError", "cache", "digest"]

LOG_LINES = 20


class BuildError(Exception):
    """Why something cannot be built, in a line for the user."""


class Build(NamedTuple):
    """A build in progress: its directory, where results go, and the log."""

    tree: Path
    result: Path
    log: Path

    def run(self, *command: str | Path) -> None:
        """Run a command in the tree.  Raises BuildError if it fails."""
        # Under `make -j` or with variables on its command line, a make inherits those.
        inherited = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"}
        environment = {name: value for name, value in os.environ.items() if name not in inherited}
        with self.log.open("a") as log:
            print("$", *command, file=log, flush=True)
            done = subprocess.run(
                command,
                cwd=self.tree,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**environment, "LC_ALL": "C"},
                check=False,
            )
        if done.returncode:
            last = "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES:])
            raise BuildError(f"{last}\nthis failed; the whole log is {self.log}")


class Artifact(NamedTuple):
    """Files that are made together."""

    #: What it is, and what it was made of: the name of its directory.
    title: str
    name: str
    files: tuple[str, ...]
    minutes: int
    make: Callable[[Build], None]

    @property
    def directory(self) -> Path:
        """Where they are once they are made."""
        return cache() / self.name

    @property
    def is_there(self) -> bool:
        """Whether they are made."""
        return self.directory.is_dir()

    def build(self) -> None:
        """Make them, unless they are there.  Raises BuildError."""
        if self.is_there:
            return
        cache().mkdir(parents=True, exist_ok=True)
        with _locked(cache() / "lock"):
            if not self.is_there:
                self._build()

    def _build(self) -> None:
        log = cache() / f"{self.name}.log"
        log.unlink(missing_ok=True)
        takes = f": takes about {self.minutes} minutes" if self.minutes else ""
        print(f"building {self.title}{takes}", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="build-", dir=cache()) as directory:
            build = Build(Path(directory, "tree"), Path(directory, "result"), log)
            build.tree.mkdir()
            build.result.mkdir()
            self.make(build)
            build.result.rename(self.directory)
        log.unlink(missing_ok=True)


def cache() -> Path:
    """The directory for all of this."""
    if chosen := os.environ.get("PYKVM_CACHE"):
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pykvm"


def digest(*inputs: str | bytes) -> str:
    """A name for what is made of `inputs`: other inputs, another name."""
    total = hashlib.sha256()
    for one in inputs:
        data = one.encode() if isinstance(one, str) else one
        total.update(b"%d:" % len(data) + data)
    return total.hexdigest()[:12]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock at `path`, and remove what a build that was killed has left."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another build to end", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in path.parent.glob("build-*"):
            shutil.rmtree(leftover)
        yield
