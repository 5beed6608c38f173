"""What the benchmarks make of their measurements; how long anything takes is not looked at."""

from __future__ import annotations

import doctest
import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from benchmarks import qemu
from benchmarks.bench import Bench, CannotMeasureError, Measured
from benchmarks.command import BENCHES, measure
from benchmarks.measure import Pair, alone
from benchmarks.rig import Rig
from benchmarks.row import Result, Row, Skipped
from benchmarks.table import as_json, as_markdown, as_text

ROW = Row("boot", "from start to end", "QEMU", "ratio", 2.0, "s")
BESIDE = Result(ROW, (Pair(3.0, 2.0),), 8.0, ("it was cold", "and late"))
ALONE = Result(replace(ROW, title="the share", method="own"), (alone(3.0),), 8.0)
#: Stands for the rig where only its yardstick is asked for.
RIG = cast(Rig, SimpleNamespace(yardstick=lambda: 8.0, pinned=nullcontext))
DEADLINE = 60.0


@pytest.mark.parametrize("name", ["measure"])
def test_examples_in_docstrings(name: str) -> None:
    found = doctest.testmod(import_module(f"benchmarks.{name}"))
    assert found.attempted
    assert not found.failed


def test_every_row_has_a_name_of_its_own() -> None:
    names = [bench.row.name for bench in BENCHES]
    assert len(set(names)) == len(names)


# -- notes, and rows with nothing beside them --------------------------------------------------


def test_notes_stand_below_the_table() -> None:
    skipped = Skipped(ROW, "no QEMU")
    text = as_text([BESIDE, ALONE, skipped], "kvm").splitlines()
    title = ROW.title
    said = [f"{title}: it was cold", f"{title}: and late", f"{title}: skipped, no QEMU"]
    assert text[4:] == said
    assert as_markdown([BESIDE, ALONE, skipped], "kvm").split("\n\n")[1].splitlines() == [
        f"- {line}" for line in said
    ]
    assert "\n\n" not in as_markdown([ALONE], "kvm")


def test_a_row_with_nothing_beside_it() -> None:
    [_, line] = as_text([ALONE], "kvm").splitlines()
    assert line.split()[5:9] == ["µs", "QEMU", "-", "3.00"]
    [beside, alone] = json.loads(as_json([BESIDE, ALONE], {}), parse_constant=pytest.fail)["rows"]
    assert (alone["theirs"], alone["pairs"], alone["notes"]) == (None, [[3.0, None]], [])
    assert (beside["theirs"]["median"], beside["pairs"]) == (2.0, [[3.0, 2.0]])
    assert beside["notes"] == ["it was cold", "and late"]


def test_a_measurement_may_change_its_row() -> None:
    other = replace(ROW, title="from start to the middle")
    found = Measured((Pair(3.0, 2.0),), ("it was cold",), other)
    outcome = measure(RIG, Bench(ROW, lambda rig, pairs: found), quick=True)
    assert outcome == Result(other, found.pairs, 8.0, found.notes)
    outcome = measure(RIG, Bench(ROW, lambda rig, pairs: found.pairs * pairs), quick=True)
    assert outcome == Result(ROW, found.pairs * 8, 8.0)


def test_a_measurement_that_cannot_be_made() -> None:
    def refuse(rig: Rig, pairs: int) -> Measured:
        raise CannotMeasureError("no QEMU")

    assert measure(RIG, Bench(ROW, refuse), quick=True) == Skipped(ROW, "no QEMU")


# -- QEMU ----------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to look for QEMU in, and nobody remembers what was found before."""
    monkeypatch.setenv("PATH", str(tmp_path))
    qemu.processor.cache_clear()
    yield tmp_path
    qemu.processor.cache_clear()


def install(path: Path, script: str) -> None:
    program = path / "qemu-system-x86_64"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_the_first_processor_that_works(path: Path) -> None:
    install(path, "echo hello; exit 1")
    assert qemu.processor() == ("host", ())


def test_a_host_whose_own_processor_does_not_work(path: Path) -> None:
    install(path, 'case "$*" in *host*) echo "no MSR" >&2; exit 134;; esac; echo hello; exit 1')
    model, notes = qemu.processor()
    assert model == "qemu64,-cx16"
    assert notes == (f"QEMU runs with -cpu {model}; with -cpu host it does not: no MSR",)


def test_a_host_on_which_qemu_runs_nothing(path: Path) -> None:
    with pytest.raises(CannotMeasureError, match="not installed"):
        qemu.processor()
    install(path, "exit 2")
    with pytest.raises(CannotMeasureError, match=r"host it does not: status 2; .*cx16 it does not"):
        qemu.processor()
