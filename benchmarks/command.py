"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from benchmarks import (
    bulk,
    emulate,
    handled,
    hot,
    interrupts,
    kernel_file,
    kick,
    life,
    linux,
    periodic,
    process,
    reset,
    saved,
    syscall,
    thaw,
    warp,
)
from benchmarks.bench import CannotMeasureError, Measured
from benchmarks.host import conditions
from benchmarks.rig import Rig
from benchmarks.row import Result, Skipped
from benchmarks.table import as_json, as_markdown, as_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.bench import Bench
    from benchmarks.row import Outcome

BENCHES = (
    *handled.BENCHES,
    *hot.BENCHES,
    *life.BENCHES,
    *bulk.BENCHES,
    *thaw.BENCHES,
    *reset.BENCHES,
    *kick.BENCHES,
    *interrupts.BENCHES,
    *periodic.BENCHES,
    *warp.BENCHES,
    *process.BENCHES,
    *emulate.BENCHES,
    *syscall.BENCHES,
    *kernel_file.BENCHES,
    *linux.BENCHES,
    *saved.BENCHES,
)
QUICK_PAIRS = 8


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks/run.py",
        description="Measure pykvm beside C, memcpy, the kernel and QEMU, taking turns (A B B A).",
    )
    parser.add_argument("rows", nargs="*", help="names of rows, or patterns: 'posted-*' (all)")
    parser.add_argument("--list", action="store_true", help="list the names of the rows")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_PAIRS} pairs a row")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="a Markdown table")
    form.add_argument("--json", action="store_true", help="everything measured, as JSON")
    return parser


def select(patterns: Sequence[str]) -> tuple[Bench, ...]:
    """The rows that any of the patterns names, in table order; all without a pattern."""
    return tuple(
        bench
        for bench in BENCHES
        if not patterns or any(fnmatchcase(bench.row.name, pattern) for pattern in patterns)
    )


def measure(rig: Rig, bench: Bench, *, quick: bool) -> Outcome:
    pairs = min(bench.pairs, QUICK_PAIRS) if quick else bench.pairs
    yardstick = rig.yardstick()
    try:
        with rig.pinned() if bench.pinned else nullcontext():
            found = bench.measure(rig, pairs)
    except CannotMeasureError as reason:
        return Skipped(bench.row, str(reason))
    measured = found if isinstance(found, Measured) else Measured(found)
    return Result(measured.row or bench.row, measured.pairs, yardstick, measured.notes)


def explain(rig: Rig, facts: dict[str, str]) -> str:
    """How the table was made, in a few lines above it."""
    return (
        f"{facts['backend']}, {facts['cpu']}, {facts['cpus']} CPUs, Linux {facts['kernel']},"
        f" Python {facts['python']}\n"
        f"Sides taken in turns (A B B A), both pinned to CPU {rig.cpu}, but for kicks, IPIs and"
        " processes.\nExits and copies in CPU time of the thread, everything else in wall time."
        "\nYardstick: one OUT exit from ring 0 in the C loop, taken just before the row.\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments()
    options = parser.parse_args(argv)
    benches = select(options.rows)
    if not benches:
        parser.error(f"no such row: {' '.join(options.rows)} (see --list)")
    if options.list:
        print("\n".join(bench.row.name for bench in benches))
        return 0
    facts = conditions()
    outcomes = []
    with Rig() as rig:
        for bench in benches:
            print(f"measuring {bench.row.name} ...", file=sys.stderr)
            outcomes.append(measure(rig, bench, quick=options.quick))
        preface = explain(rig, facts)
    if options.json:
        print(as_json(outcomes, facts))
    elif options.markdown:
        print(f"{preface}\n{as_markdown(outcomes, facts['backend'])}")
    else:
        print(f"{preface}\n{as_text(outcomes, facts['backend'])}")
    return 0
