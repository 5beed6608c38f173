"""What a guest does from some moment on, to be compared: its exits, what it prints, how it ends.

As a program it does so for snapshots in files: their rests, as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pykvm import Machine, Placement, Space
from pykvm.exits import Hlt, Interrupted, IrqWindowOpen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.exits import Exit

__all__ = ["Adder", "Trajectory", "is_of_time", "rest", "rests_of_files"]

#: Exits that come by the host's time, and not by the guest's program.
_OF_TIME = (Hlt, Interrupted, IrqWindowOpen)


class Trajectory(NamedTuple):
    """The exits of a guest by its vCPUs, what it had printed at the end, and how it ended."""

    exits: tuple[str, ...]
    printed: str
    end: str


class Adder:
    """The device of guests/mmio.c."""

    name = "adder"
    length = 12
    address = 0xD000_0000

    def __init__(self) -> None:
        self.sum = 0

    def read(self, offset: int, size: int) -> int:
        return {0: 0x4D56_4B50, 8: self.sum}.get(offset, 0)

    def write(self, offset: int, size: int, value: int) -> None:
        self.sum += value

    def state(self) -> int:
        return self.sum

    def restore(self, state: int) -> None:
        self.sum = state

    def clone(self) -> Adder:
        return Adder()

    def placed(self) -> Placement:
        return Placement(self, Space.MMIO, self.address, self.length)


def is_of_time(exit: Exit) -> bool:
    """Whether the exit comes by the host's time."""
    return isinstance(exit, _OF_TIME)


def rest(machine: Machine, *, timed: bool, timeout: float = 60) -> Trajectory:
    """Run a machine to its end.

    With `timed`, its exits depend on the host's time, and only what it prints is compared.
    """
    if timed:
        result = machine.run(timeout=timeout)
        return Trajectory((), machine.serial.text, result.sentence)
    exits = machine.exits(timeout=timeout)
    seen = [repr(exit) for exit in exits if not is_of_time(exit)]
    assert exits.result is not None
    return Trajectory(tuple(seen), machine.serial.text, exits.result.sentence)


def rests_of_files(paths: Sequence[Path], *, timed: bool) -> list[Trajectory]:
    """What the snapshots in these files do, in another process, one after the other."""
    done = subprocess.run(
        [sys.executable, "-m", "support.trajectories", *["--timed"] * timed, *paths],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    return [Trajectory(tuple(exits), *others) for exits, *others in json.loads(done.stdout)]


def main(words: Sequence[str]) -> None:
    """Print the rest of each file."""
    timed = words[:1] == ["--timed"]
    rests = []
    for path in words[timed:]:
        with Machine.from_snapshot(path, devices=[Adder().placed()]) as machine:
            rests.append(rest(machine, timed=timed))
    json.dump(rests, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
