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

from benchmarks import emulate, kernel_file, linux, qemu, syscall
from benchmarks.bench import Bench, CannotMeasureError, Measured
from benchmarks.command import BENCHES, measure
from benchmarks.console import Line, Told, furthest, watch
from benchmarks.measure import Pair, alone
from benchmarks.rig import Rig
from benchmarks.row import Outcome as Measurement
from benchmarks.row import Result, Row, Skipped
from benchmarks.table import as_json, as_markdown, as_text
from pykvm import Outcome
from pykvm.quirks import bit_counts, found
from pykvm.result import Ending
from pykvm.result import Result as Run

ROW = Row("boot", "from start to end", "QEMU", "ratio", 2.0, "s")
BESIDE = Result(ROW, (Pair(3.0, 2.0),), 8.0, ("it was cold", "and late"))
ALONE = Result(replace(ROW, title="the share", method="own"), (alone(3.0),), 8.0)
#: Stands for the rig where only its yardstick is asked for.
RIG = cast(Rig, SimpleNamespace(yardstick=lambda: 8.0, pinned=nullcontext))
DEADLINE = 60.0


@pytest.mark.parametrize("name", ["console", "hot", "measure"])
def test_examples_in_docstrings(name: str) -> None:
    done = doctest.testmod(import_module(f"benchmarks.{name}"))
    assert done.attempted
    assert not done.failed


def test_every_row_has_a_name_of_its_own() -> None:
    names = [bench.row.name for bench in BENCHES]
    assert len(set(names)) == len(names)


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
    whole = Measured((Pair(3.0, 2.0),), ("it was cold",), other)
    outcome = measure(RIG, Bench(ROW, lambda rig, pairs: whole), quick=True)
    assert outcome == Result(other, whole.pairs, 8.0, whole.notes)
    outcome = measure(RIG, Bench(ROW, lambda rig, pairs: whole.pairs * pairs), quick=True)
    assert outcome == Result(ROW, whole.pairs * 8, 8.0)


def test_a_measurement_that_cannot_be_made() -> None:
    def refuse(rig: Rig, pairs: int) -> Measured:
        raise CannotMeasureError("no QEMU")

    assert measure(RIG, Bench(ROW, refuse), quick=True) == Skipped(ROW, "no QEMU")


@pytest.fixture(scope="module")
def rig(kvm: None) -> Iterator[Rig]:
    with Rig() as rig:
        yield rig


@pytest.mark.parametrize(
    "bench",
    [*emulate.BENCHES, *syscall.BENCHES, *kernel_file.BENCHES],
    ids=lambda bench: bench.row.name,
)
def test_both_sides_do_their_work(rig: Rig, bench: Bench) -> None:
    outcome = measure(rig, replace(bench, pairs=1), quick=True)
    if isinstance(outcome, Skipped):
        # Where ring 0 runs on the processor, these are no exits, or CPUID forbids them.
        assert bench in emulate.BENCHES, outcome
        assert not found([bit_counts.QUIRK]), outcome
    else:
        assert outcome.ours.median > 0
        assert outcome.theirs is not None


def listen(script: str, deadline: float = DEADLINE) -> tuple[list[str], str]:
    told = watch(["sh", "-c", script], "up", deadline)
    return [line.text for line in told.lines], told.trouble


def test_lines_up_to_the_awaited_one() -> None:
    lines, trouble = listen(
        r"printf '\033c\033[2Jone\r\ntwo' >&2; echo; echo I am up; exec sleep 99"
    )
    assert (lines, trouble) == (["one", "two", "I am up"], "")


def test_the_end_before_the_awaited_line() -> None:
    assert listen("echo one; exit 3") == (["one"], "it ended with status 3")
    refused = "KVM internal error. Suberror: 1"
    assert listen(f"echo one; echo {refused}; exec sleep 99") == (["one"], refused)
    assert listen("exec sleep 99", deadline=0.01) == ([], "it was not done within 0.01 s")


def test_lines_are_compared_without_times_and_numbers() -> None:
    ours = Told((Line(1.0, "[    0.000000] last_pfn = 0x4000"), Line(2.0, "ours alone")))
    theirs = Told((Line(3.0, "last_pfn = 0x3fff"), Line(4.0, "theirs alone")))
    assert furthest(ours, theirs) == (ours.lines[0], theirs.lines[0])
    assert furthest(ours, Told(theirs.lines[1:])) is None


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to look for QEMU in, and what was found before is forgotten."""
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


def test_a_processor_that_works_in_one_machine_only(path: Path) -> None:
    fails = "echo 'qemu-system-x86_64: warning: old' >&2; echo bad >&2; exit 134"
    install(path, f'case "$*" in *off*host*) {fails};; esac; echo hello; exit 1')
    assert qemu.processor("pc").model == "host"
    model, notes = qemu.processor("pc,kernel-irqchip=off")
    assert (model, notes[0].endswith("with -cpu host it does not: bad")) == ("qemu64,-cx16", True)


def test_a_host_on_which_qemu_runs_nothing(path: Path) -> None:
    with pytest.raises(CannotMeasureError, match="not installed"):
        qemu.processor()
    install(path, "exit 2")
    with pytest.raises(CannotMeasureError, match=r"host it does not: status 2; .*cx16 it does not"):
        qemu.processor()


def measured(row: Row) -> Measurement:
    [bench] = [bench for bench in linux.BENCHES if bench.row == row]
    return measure(RIG, bench, quick=False)


def result(row: Row) -> Result:
    outcome = measured(row)
    assert isinstance(outcome, Result), outcome
    return outcome


def test_how_far_linux_came_in_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Told(
        tuple(
            Line(float(at), text)
            for at, text in enumerate(
                ["Linux version 6", "tsc: 1 MHz", "init: Linux 6 is up"], start=1
            )
        )
    )
    theirs = Told((Line(2.0, "Linux version 6"), Line(4.0, "tsc: 2 MHz")), "KVM internal error")
    boots = [(ours, theirs)]
    monkeypatch.setattr(linux, "_boots", lambda rig, pairs: boots)
    monkeypatch.setattr(qemu, "processor", lambda: qemu.Processor("host", ("as it is",)))
    first, common, up = map(result, (linux.FIRST_ROW, linux.COMMON_ROW, linux.UP_ROW))
    assert first.pairs == ((1.0, 2.0),)
    assert first.notes == (
        "as it is",
        "QEMU does not come to user space: after 'tsc: 2 MHz', KVM internal error",
    )
    assert (common.row.title.split(", ")[1], common.pairs) == (
        "command to 'tsc: 1 MHz'",
        ((2.0, 4.0),),
    )
    assert (up.ours.median, up.theirs, up.row.method) == (3.0, None, "own")
    boots.append((ours, ours))
    assert isinstance(measured(linux.COMMON_ROW), Skipped)
    boots[:] = [(ours, ours)]
    assert measured(linux.UP_ROW) == Result(linux.UP_ROW, (Pair(3.0, 3.0),), 8.0)
    boots[0] = (Told(ours.lines[:2], "it ended with status 1"), ours)
    assert measured(linux.UP_ROW) == Skipped(
        linux.UP_ROW, "the guest did not say 'init: Linux ': it ended with status 1"
    )


def test_the_share_of_time_outside_the_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    ending = Ending(Outcome.UNTIL, "it is up")
    run = Run(
        ending, exits={"Hlt": 1, "IoOut": 7}, seconds=5.0, guest_seconds=3.0, outside_seconds=1.0
    )
    monkeypatch.setattr(linux, "_boot_here", lambda: run)
    outcome = result(linux.SHARE_ROW)
    assert (outcome.ours.median, outcome.met) == (25.0, False)
    assert "exits: 7 x IoOut, 1 x Hlt" in outcome.notes
    assert "workarounds: none" in outcome.notes
