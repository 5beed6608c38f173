"""Whole processes: ``python -m pykvm FILE`` beside QEMU's microvm on the same file."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from benchmarks import qemu
from benchmarks.bench import Bench, CannotMeasureError, Measured
from benchmarks.measure import Pair, in_turns
from benchmarks.qemu import DEADLINE, HELLO, MEMORY, PVH
from benchmarks.row import Row

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.rig import Rig


class Usage(NamedTuple):
    """What ``spawn`` reports of one process."""

    wall_ns: int
    cpu_ns: int
    peak_rss_kib: int
    status: int


def pykvm_command(guest: Path) -> list[str]:
    return [sys.executable, "-m", "pykvm", "--memory", MEMORY, str(guest)]


def environment_of(rig: Rig) -> dict[str, str]:
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
def _usages(rig: Rig, guest: Path, pairs: int) -> list[tuple[Usage, Usage]]:
    """What both take: one measurement for all rows of a guest."""
    if not guest.exists():
        raise CannotMeasureError(f"{guest.relative_to(guest.parents[2])} is not built")
    qemu_command = qemu.guest_command(qemu.processor().model, guest)
    environment = environment_of(rig)
    theirs = _rehearse(qemu_command, qemu.HELLO_STATUS, environment)
    ours = _rehearse(pykvm_command(guest), 0, environment)
    # A kernel describes its machine, which differs; the amount of output is the same.
    if ours.count(b"\n") != theirs.count(b"\n"):
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

    return in_turns(side(pykvm_command(guest), 0), side(qemu_command, qemu.HELLO_STATUS), pairs)


def _bench(
    name: str,
    title: str,
    limit: float | None,
    unit: str,
    value: Callable[[Usage], float],
    guest: Path = HELLO,
) -> Bench:
    row = Row(
        name=f"process-{name}",
        title=f"python -m pykvm {guest.name}, {title}",
        against="QEMU",
        method="ratio",
        limit=limit,
        unit=unit,
    )

    def measure(rig: Rig, pairs: int) -> Measured:
        usages = _usages(rig, guest, pairs)
        taken = tuple(Pair(value(ours), value(theirs)) for ours, theirs in usages)
        return Measured(taken, qemu.processor().notes)

    return Bench(row, measure, pairs=20, pinned=False)


BENCHES = (
    _bench("time", "wall time", 1.0, "ms", lambda usage: usage.wall_ns / 1e6),
    _bench("cpu", "CPU time", None, "ms", lambda usage: usage.cpu_ns / 1e6),
    _bench("memory", "peak RSS", None, "MiB", lambda usage: usage.peak_rss_kib / 1024),
    _bench("pvh-time", "wall time", 1.0, "ms", lambda usage: usage.wall_ns / 1e6, PVH),
    _bench("pvh-cpu", "CPU time", None, "ms", lambda usage: usage.cpu_ns / 1e6, PVH),
)
