"""Whole processes: ``python -m pykvm hello.elf`` beside QEMU's microvm on the same file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.bench import Bench, CannotMeasureError
from benchmarks.measure import Pair, in_turns
from benchmarks.row import Row

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.rig import Rig

HELLO = Path(__file__).parent.parent / "guests" / "build" / "hello.elf"
MEMORY = "64M"
DEADLINE = 20.0
# isa-debug-exit turns the guest's 0 into (0 << 1) | 1.
QEMU_STATUS = 1


class Usage(NamedTuple):
    """What ``spawn`` tells of one process."""

    wall_ns: int
    cpu_ns: int
    peak_rss_kib: int
    status: int


def pykvm_command() -> list[str]:
    return [sys.executable, "-m", "pykvm", "--memory", MEMORY, str(HELLO)]


def qemu_command() -> list[str]:
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        raise CannotMeasureError("qemu-system-x86_64 is not installed")
    options = (
        "-M microvm -accel kvm -cpu host -nodefaults -no-user-config -no-reboot -display none"
        " -serial stdio -device isa-debug-exit,iobase=0xf4,iosize=4"
    )
    return [program, *options.split(), "-m", MEMORY, "-kernel", str(HELLO)]


def _environment(rig: Rig) -> dict[str, str]:
    """Modules come from bytecode, as they do where pykvm is installed, and that is up to date."""
    environment = dict(os.environ, PYTHONPYCACHEPREFIX=str(rig.folder / "bytecode"))
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def _rehearse(command: list[str], status: int, environment: dict[str, str]) -> bytes:
    """Run once and return what the guest printed; no measurement of something that fails."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DEADLINE,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise CannotMeasureError(f"{command[0]} did not end within {DEADLINE:g} s") from None
    if done.returncode != status or not done.stdout:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise CannotMeasureError(
            f"{command[0]} ended with {done.returncode}, not {status}: {''.join(last) or 'no word'}"
        )
    return done.stdout


@cache
def _usages(rig: Rig, pairs: int) -> list[tuple[Usage, Usage]]:
    """What both take: one measurement for all rows."""
    if not HELLO.exists():
        raise CannotMeasureError(f"{HELLO.relative_to(HELLO.parents[2])} is not built")
    qemu = qemu_command()
    environment = _environment(rig)
    theirs = _rehearse(qemu, QEMU_STATUS, environment)
    ours = _rehearse(pykvm_command(), 0, environment)
    if ours.replace(b"\r", b"") != theirs.replace(b"\r", b""):
        raise CannotMeasureError(f"the guest printed {ours!r} here and {theirs!r} in QEMU")

    def side(command: list[str], status: int) -> Callable[[], Usage]:
        spawn = [str(rig.program("spawn")), *command]

        def once() -> Usage:
            done = subprocess.run(
                spawn, capture_output=True, text=True, check=True, env=environment
            )
            usage = Usage(*map(int, done.stdout.split()))
            if usage.status != status:
                raise RuntimeError(f"{command[0]} ended with {usage.status}, not {status}")
            return usage

        return once

    return in_turns(side(pykvm_command(), 0), side(qemu, QEMU_STATUS), pairs)


def _bench(
    name: str, title: str, limit: float | None, unit: str, value: Callable[[Usage], float]
) -> Bench:
    row = Row(
        name=f"process-{name}",
        title=f"python -m pykvm hello.elf, {title}",
        against="QEMU",
        method="ratio",
        limit=limit,
        unit=unit,
    )

    def measure(rig: Rig, pairs: int) -> tuple[Pair, ...]:
        return tuple(Pair(value(ours), value(theirs)) for ours, theirs in _usages(rig, pairs))

    return Bench(row, measure, pairs=20, pinned=False)


BENCHES = (
    _bench("time", "wall time", 1.0, "ms", lambda usage: usage.wall_ns / 1e6),
    _bench("cpu", "CPU time", None, "ms", lambda usage: usage.cpu_ns / 1e6),
    _bench("memory", "peak RSS", None, "MiB", lambda usage: usage.peak_rss_kib / 1024),
)
