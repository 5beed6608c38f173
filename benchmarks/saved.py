"""A Linux of 256 MiB from a file: to its first instruction, beside the start of the process."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from time import perf_counter_ns
from typing import TYPE_CHECKING

from benchmarks.bench import Bench, CannotMeasureError
from benchmarks.linux import DEADLINE, UP, files
from benchmarks.measure import Pair, alternate
from benchmarks.process import environment_of
from benchmarks.row import Row

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.rig import Rig

MEMORY = "256M"

# What a process that runs any guest loads.  It prints when it was there, by CLOCK_MONOTONIC: to end
# a process that has a VM takes as long again, and is no part of a start.
LOADED = """
import os, sys, time
from pykvm.machine import Machine
"""
THERE = "os.write(1, b'%d' % time.perf_counter_ns()); os._exit(0)"
START = LOADED + THERE
# One exit is the proof of a first instruction.
GO_ON = f"""
{LOADED}
machine = Machine.from_snapshot(sys.argv[1])
for exit in machine.exits(timeout=10):
    {THERE}
os._exit(1)
"""


@cache
def saved(rig: Rig) -> Path:
    """Linux, booted and saved once."""
    path = rig.folder / "linux.pykvm"
    kernel, initramfs = files()
    command = [sys.executable, "-m", "pykvm", kernel, "--initrd", initramfs, "--memory", MEMORY]
    command += ["--append", "console=ttyS0", "--until", UP, "--timeout", f"{DEADLINE:g}"]
    done = subprocess.run(
        [*command, "--save", str(path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        env=environment_of(rig),
    )
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise CannotMeasureError(f"Linux was not saved: {''.join(last) or 'no word'}")
    return path


def _measure(rig: Rig, pairs: int) -> tuple[Pair, ...]:
    path, environment = saved(rig), environment_of(rig)

    def process(program: str) -> float:
        start = perf_counter_ns()
        done = subprocess.run(
            [sys.executable, "-c", program, str(path)],
            check=False,
            env=environment,
            stdout=subprocess.PIPE,
        )
        if done.returncode:
            raise CannotMeasureError(f"a process ended with {done.returncode}")
        return (int(done.stdout) - start) / 1e6

    process(GO_ON)  # bytecode
    return alternate(lambda: process(GO_ON), lambda: process(START), pairs)


BENCHES = (
    Bench(
        Row(
            "saved",
            f"Linux of {MEMORY} from a file, to its first exit",
            "process start",
            "extra",
            10.0,
            "ms",
        ),
        _measure,
        pairs=15,
    ),
)
