"""The C side: builds ``cloop.c`` and talks to it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

HERE = Path(__file__).parent


def compile_c(name: str, folder: Path) -> Path:
    """Compile ``benchmarks/<name>.c`` into `folder`, once."""
    program = folder / name
    if not program.exists():
        source = HERE / f"{name}.c"
        subprocess.run(
            ["gcc", "-O2", "-pthread", "-Wall", "-Wextra", "-o", program, source], check=True
        )
    return program


class CLoop:
    """A running ``cloop``: one guest, measured on request.

    Every method returns nanoseconds for one unit of work.
    """

    def __init__(self, program: Path, image: Path) -> None:
        self._process = subprocess.Popen(
            [program, image], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def _ask(self, command: str) -> float:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(command + "\n")
        process.stdin.flush()
        answer = process.stdout.readline().split()
        if len(answer) != 2:
            raise RuntimeError(f"cloop ended with status {process.wait()} at {command!r}")
        return int(answer[1]) / int(answer[0])

    def exit(self) -> float:
        """One VM exit, averaged over a batch."""
        return self._ask("run")

    def life(self, count: int) -> float:
        """A VM created, run to its first exit and closed."""
        return self._ask(f"life {count}")

    def read(self, count: int) -> float:
        """1 MiB copied out of guest RAM."""
        return self._ask(f"read {count}")

    def write(self, count: int) -> float:
        """1 MiB copied into guest RAM."""
        return self._ask(f"write {count}")

    def kick(self) -> float:
        """From a thread's signal to the return of KVM_RUN, for a guest that makes no exits."""
        return self._ask("kick")

    def close(self) -> None:
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
