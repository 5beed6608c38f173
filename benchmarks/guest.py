"""The guests that are measured, assembled when they are needed."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

SOURCES = Path(__file__).parent / "guests"
EXITS_PER_BATCH = 2000
PORT = 0x10
STOP_PORT = 0xF4
ADDRESS = 0x1000_0000
RAM = 16 << 20
LINK = ("-nostdlib", "-static", "-no-pie", "-Wl,-n,-Ttext=0x100000,--build-id=none")


class Guest(NamedTuple):
    """One build of one source: its file in ``guests/`` and what the preprocessor is told."""

    source: str
    defines: tuple[tuple[str, int], ...]

    def build(self, folder: Path) -> Path:
        """Assemble and link into `folder`; return the ELF file, made only once."""
        name = "-".join([self.source, *(f"{key}{value:x}" for key, value in self.defines)])
        elf = folder / f"{name}.elf"
        if not elf.exists():
            options = [f"-D{key}={value:#x}" for key, value in self.defines]
            source = SOURCES / f"{self.source}.S"
            subprocess.run(["gcc", *LINK, *options, "-o", elf, source], check=True)
        return elf


def exits(ring: int, *, mmio: bool) -> Guest:
    """`EXITS_PER_BATCH` writes to `PORT` or `ADDRESS`, one to `STOP_PORT`, and again."""
    return Guest(
        "exits",
        (
            ("RING", ring),
            ("MMIO", int(mmio)),
            ("EXITS", EXITS_PER_BATCH),
            ("ADDRESS", ADDRESS),
            ("PORT", PORT),
            ("STOP", STOP_PORT),
        ),
    )


FIRST = Guest("first", (("STOP", STOP_PORT),))
