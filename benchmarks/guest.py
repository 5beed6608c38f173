"""The guests that are measured, built when they are needed."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
SOURCES = HERE / "guests"
# The guests in C are built as those that pykvm comes with, from the same library.
LIBRARY = HERE.parent / "guests"
EXITS_PER_BATCH = 2000
PORT = 0x10
STOP_PORT = 0xF4
ADDRESS = 0x1000_0000
RAM = 16 << 20
BARE = ("-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none")
LINK = (*BARE, "-Wl,-n,-Ttext=0x100000")
# As guests/Makefile links its own.
LINK_VMLINUX = (*BARE, f"-Wl,-T,{LIBRARY}/boot/vmlinux.ld")


class Guest(NamedTuple):
    """One build of one source: its file in ``guests/``, and what the preprocessor or it is told."""

    source: str
    defines: tuple[tuple[str, int], ...] = ()
    #: Of guests in C alone: what they find in argv.
    args: tuple[str, ...] = ()
    #: Of those in assembly alone: what the linker is told.
    link: tuple[str, ...] = LINK

    @property
    def name(self) -> str:
        """A name of its own for this build and these arguments."""
        told = [*(f"{key}{value:x}" for key, value in self.defines), *self.args]
        return "-".join([Path(self.source).stem, *told])

    def build(self, folder: Path) -> Path:
        """Build into `folder`; return the ELF file, made only once."""
        if self.source.endswith(".c"):
            return _compile(Path(self.source).stem, folder)
        elf = folder / f"{self.name}.elf"
        if not elf.exists():
            options = [f"-D{key}={value:#x}" for key, value in self.defines]
            command = ["gcc", *self.link, *options, "-o", str(elf), str(SOURCES / self.source)]
            subprocess.run(command, check=True)
        return elf


def _compile(name: str, folder: Path) -> Path:
    elf = folder / f"{name}.elf"
    places = (f"BUILD={folder}", f"VPATH={SOURCES}")
    # With the way in by which QEMU starts it.
    pvh = f"PVH={name}"
    make = ("make", "--silent", "--no-print-directory", "-C", str(LIBRARY))
    command = [*make, *places, pvh, str(elf)]
    subprocess.run(command, check=True)
    return elf


def exits(ring: int, *, mmio: bool) -> Guest:
    """`EXITS_PER_BATCH` writes to `PORT` or `ADDRESS`, one to `STOP_PORT`, and again."""
    return Guest(
        "exits.S",
        (
            ("RING", ring),
            ("MMIO", int(mmio)),
            ("EXITS", EXITS_PER_BATCH),
            ("ADDRESS", ADDRESS),
            ("PORT", PORT),
            ("STOP", STOP_PORT),
        ),
    )


FIRST = Guest("first.S", (("STOP", STOP_PORT),))
