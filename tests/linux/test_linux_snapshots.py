"""Linux, booted once for each kind of machine, and put back to its shell again and again."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pykvm import Machine, Outcome, Snapshot
from support.booted import PROMPT, at_the_shell
from support.linux import DEADLINE, Linux, last_lines
from support.slowness import longer
from support.terminal import Terminal

# Where there is no file yet, the first test of a kind boots it.
pytestmark = pytest.mark.timeout(3 * DEADLINE)

#: The guest's terminal makes CR LF of a newline, and the host's makes CR LF of that LF.
NEWLINE = "\r\r\n"
#: Two in each run of the tests, and all of them in `make soak`.
KINDS = [
    ("kernel", 1),
    pytest.param(("kernel", 2), marks=pytest.mark.soak),
    pytest.param(("user", 1), marks=pytest.mark.soak),
    ("user", 2),
]
RESETS = 10


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def booted(request: pytest.FixtureRequest, linux: Linux) -> Iterator[tuple[Machine, Snapshot]]:
    """A machine at its shell's prompt, and the snapshot of that."""
    irqchip, vcpus = request.param
    path = at_the_shell(linux, irqchip, vcpus)
    with Machine.from_snapshot(Snapshot.load(path)) as machine:
        yield machine, machine.snapshot()


def command(machine: Machine, line: str, awaited: re.Pattern[str] | None = None) -> str:
    """Type a line, wait for its answer and the next prompt, and return what was printed."""
    before = machine.serial.printed
    machine.serial.send(line.encode() + b"\r")
    for text in (PROMPT,) if awaited is None else (awaited, PROMPT):
        result = machine.run(timeout=longer(60), until=text)
        assert result.outcome is Outcome.UNTIL, f"{result}\n{last_lines(machine)}"
    _, output = machine.serial.since(before)
    return output.decode()


def shown(machine: Machine, line: str, pattern: str) -> str:
    """What a command prints where `pattern` has its group, at the beginning of a line."""
    output = command(machine, line, re.compile(rf"\n{pattern}\r?\n"))
    found = re.search(rf"\n{pattern}\r?\n", output)
    assert found, output
    return found[1]


def test_the_shell_answers_after_each_of_many_resets(booted: tuple[Machine, Snapshot]) -> None:
    machine, saved = booted
    digest = saved.digest()
    for number in range(RESETS):
        machine.reset(saved)
        assert machine.snapshot().digest() == digest
        answer = shown(machine, f"echo $(({number} + 1)) > /tmp/n; cat /tmp/*", r"(\d+)")
        assert answer == str(number + 1)


def test_forks_run_beside_each_other(booted: tuple[Machine, Snapshot]) -> None:
    machine, saved = booted
    machine.reset(saved)
    with saved.fork() as one, saved.fork() as two:
        for number, each in enumerate((one, machine, two)):
            command(each, f"echo {number} > /tmp/who")
        for number, each in enumerate((one, machine, two)):
            assert shown(each, "cat /tmp/who", r"(\d)") == str(number)


def test_time_goes_on_from_where_it_was(booted: tuple[Machine, Snapshot]) -> None:
    machine, saved = booted
    machine.reset(saved)
    began = time.monotonic()
    first = float(shown(machine, "cat /proc/uptime", r"([\d.]+) [\d.]+"))
    time.sleep(3)
    machine.reset(saved)
    again = time.monotonic()
    second = float(shown(machine, "cat /proc/uptime", r"([\d.]+) [\d.]+"))
    if machine.clock.tsc_movable:
        # Between the two readings no more passed than the two took to be made.
        assert abs(second - first) < (again - began - 3) + (time.monotonic() - again)
    else:
        # Linux's clock is a TSC that goes on; the run says so.
        notes = machine.run(timeout=0.01).notes
        assert any("RDTSC did not go back" in note for note in notes)
        assert second > first


def ahead(machine: Machine) -> tuple[float, float]:
    """How far the guest's date is ahead of the host's: the least and the most, by when it read it.

    It shows whole seconds.
    """
    before = time.time()
    date = int(shown(machine, "date +%s", r"(\d{9,})"))
    assert date > 1_700_000_000
    return date - time.time(), date + 1 - before


def test_the_clock_catches_up_if_it_is_told_to(booted: tuple[Machine, Snapshot]) -> None:
    machine, saved = booted
    before = time.time()
    machine.reset(saved)
    # By so much it is behind then; where Linux reads a TSC that went on, it is not.
    missed = before - saved.taken, time.time() - saved.taken
    least, most = ahead(machine)
    time.sleep(3)
    machine.reset(saved, wall="host")
    if machine.clock.tsc_movable:
        least, most = least + missed[0], most + missed[1]
    now = ahead(machine)
    # The two readings may be the same, and a calibration is never exact.
    assert now[0] < most + 1
    assert now[1] > least - 1


def test_a_process_that_sleeps_wakes(booted: tuple[Machine, Snapshot]) -> None:
    machine, saved = booted
    machine.reset(saved)
    command(machine, "(sleep 2; echo wo''ke) &")
    asleep = machine.snapshot()
    for wall in ("keep", "host"):
        machine.reset(asleep, wall=wall)
        result = machine.run(timeout=longer(60), until="woke")
        assert result.outcome is Outcome.UNTIL, f"{result}\n{last_lines(machine)}"
    with asleep.fork() as twin:
        assert twin.run(timeout=longer(60), until="woke").outcome is Outcome.UNTIL


def test_no_output_is_lost_in_the_middle(booted: tuple[Machine, Snapshot]) -> None:
    machine, saved = booted
    machine.reset(saved)
    machine.serial.send(b"seq 1 300\r")
    assert machine.run(timeout=longer(60), until="\n150\r").outcome is Outcome.UNTIL
    middle = machine.snapshot()

    def finish(machine: Machine) -> list[str]:
        assert machine.run(timeout=longer(60), until="\n300\r").outcome is Outcome.UNTIL
        return re.findall(r"^(\d+)\r", machine.serial.text, re.MULTILINE)

    expected = [str(number) for number in range(1, 301)]
    assert finish(machine) == expected
    for _ in range(3):
        machine.reset(middle)
        assert finish(machine) == expected
    with middle.fork() as twin:
        assert finish(twin) == expected


def test_a_difference_goes_on_where_it_was(
    booted: tuple[Machine, Snapshot], tmp_path: Path
) -> None:
    """A file of what a command has changed, beside that of the shell."""
    machine, saved = booted
    machine.reset(saved)
    saved.save(tmp_path / "shell.pykvm")
    command(machine, "echo kept > /tmp/kept; word=remembered")
    child = machine.snapshot()
    child.save(tmp_path / "later.pykvm", parent=saved)
    sizes = [(tmp_path / f"{name}.pykvm").stat().st_blocks for name in ("shell", "later")]
    assert sizes[1] < sizes[0] / 4
    loaded = Snapshot.load(tmp_path / "later.pykvm")
    assert loaded.digest() == child.digest()
    with Machine.from_snapshot(loaded) as other:
        assert shown(other, "cat /tmp/kept", r"(kept)") == "kept"
        assert shown(other, "echo $word", r"(remembered)") == "remembered"


def test_a_file_goes_on_in_another_process(linux: Linux) -> None:
    """The shell answers, and its uptime goes on from where it was."""
    command = [sys.executable, "-m", "pykvm", str(at_the_shell(linux))]
    with closing(Terminal(command, deadline=DEADLINE)) as console:
        console.type("echo $((6 * 7)); cat /proc/uptime\r")
        console.wait_for(f"{NEWLINE}42{NEWLINE}")
        uptime = console.wait_for(NEWLINE)
        assert re.fullmatch(r"[\d.]+ [\d.]+\s+", uptime)
        console.wait_for(PROMPT)
        console.type("poweroff\r")
        console.wait_for("pykvm: the guest powered itself off (ACPI S5)")
        assert console.status() == 0
