"""QEMU, with the processor that it can have on this host."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

from benchmarks.bench import CannotMeasureError

GUESTS = Path(__file__).parent.parent / "guests" / "build"
HELLO = GUESTS / "hello.elf"
PVH = GUESTS / "pvh.elf"
# A PC's firmware takes its time where ring 0 is emulated.
DEADLINE = 60.0
# isa-debug-exit turns the guest's 0 into (0 << 1) | 1.
HELLO_STATUS = 1
MEMORY = "64M"

# Some KVMs refuse MSRs that come with the host's own features; the second has next to none, and
# CMPXCHG16B is what such a KVM offers and then refuses in ring 0.
MODELS = ("host", "qemu64,-cx16")


class Processor(NamedTuple):
    """The first `model` of MODELS that runs a guest here, and a note for each before it."""

    model: str
    notes: tuple[str, ...]


def command(machine: str, model: str, *options: str) -> list[str]:
    """What starts QEMU with its first serial port on stdout, and nothing that was not asked for."""
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        raise CannotMeasureError("qemu-system-x86_64 is not installed")
    bare = "-nodefaults -no-user-config -no-reboot -display none -serial stdio"
    return [
        *(program, "-M", machine, "-accel", "kvm", "-cpu", model, "-m", MEMORY),
        *(*bare.split(), *options),
    ]


def guest_command(model: str, guest: Path, machine: str = "microvm") -> list[str]:
    way_out = "isa-debug-exit,iobase=0xf4,iosize=4"
    return command(machine, model, "-device", way_out, "-kernel", str(guest))


def _trouble(machine: str, model: str) -> str:
    """What keeps QEMU from running hello.elf on this processor; empty if nothing does."""
    try:
        done = subprocess.run(
            guest_command(model, HELLO, machine),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DEADLINE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"nothing within {DEADLINE:g} s"
    if done.returncode == HELLO_STATUS and done.stdout:
        return ""
    said = [
        line.removeprefix("qemu-system-x86_64: ")
        for line in done.stderr.decode(errors="replace").strip().splitlines()
    ]
    errors = [line for line in said if not line.startswith("warning: ")]
    return errors[0] if errors else f"status {done.returncode}"


@cache
def processor(machine: str = "microvm") -> Processor:
    """Try each of MODELS in this machine.  Raises CannotMeasureError if none will do."""
    notes: tuple[str, ...] = ()
    for model in MODELS:
        trouble = _trouble(machine, model)
        if not trouble:
            chosen = f"QEMU runs with -cpu {model}"
            return Processor(model, (f"{chosen}; {'; '.join(notes)}",) if notes else ())
        notes = (*notes, f"with -cpu {model} it does not: {trouble}")
    raise CannotMeasureError(f"QEMU runs no guest here: {'; '.join(notes)}")
