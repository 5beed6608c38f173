"""Running the command line as a user does: in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.listing import assemble
from support.slowness import longer
from support.terminal import Terminal

DEADLINE = longer(30.0)

#: `done = pykvm("guest.elf", "--stats", stdin="text", NAME="in the environment")`
Pykvm = Callable[..., "subprocess.CompletedProcess[str]"]
#: `path = flat(listing)`: a file with these instructions, which run in real mode.
Flat = Callable[[str], Path]


@pytest.fixture
def command() -> list[str]:
    """What starts pykvm."""
    return [sys.executable, "-m", "pykvm"]


@pytest.fixture
def environment(root: Path) -> dict[str, str]:
    """An environment in which that works anywhere, and errors have no traceback."""
    kept = {name: value for name, value in os.environ.items() if name != "PYKVM_TRACEBACK"}
    return {**kept, "PYTHONPATH": str(root)}


@pytest.fixture
def pykvm(command: list[str], environment: dict[str, str]) -> Pykvm:
    """Run pykvm with these arguments to its end."""

    def run(
        *arguments: str | Path, stdin: str = "", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *map(str, arguments)],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
            env={**environment, **variables},
        )

    return run


@pytest.fixture
def flat(tmp_path: Path) -> Flat:
    """Make a flat binary of a listing."""

    def make(listing: str) -> Path:
        path = tmp_path / f"guest{len(list(tmp_path.glob('guest*.bin')))}.bin"
        path.write_bytes(assemble(listing))
        return path

    return make


@pytest.fixture
def terminal(command: list[str], environment: dict[str, str]) -> Iterator[Callable[..., Terminal]]:
    """Run pykvm with these arguments on a terminal of its own."""
    with ExitStack() as stack:

        def start(*arguments: str | Path) -> Terminal:
            opened = Terminal([*command, *map(str, arguments)], environment)
            stack.callback(opened.close)
            return opened

        yield start
