"""`--until`: a run that ends once the guest has said it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pykvm.cli.report import exit_status
from pykvm.cli.status import Status
from pykvm.result import Ending, Outcome, Result
from support.terminal import Terminal

Pykvm = Callable[..., "subprocess.CompletedProcess[str]"]
Open = Callable[..., Terminal]


@pytest.mark.parametrize(
    ("outcome", "code", "status"),
    [
        (Outcome.UNTIL, None, 0),
        (Outcome.EXITED, 0, 123),
        (Outcome.EXITED, 3, 3),
        (Outcome.HALTED, None, 123),
        (Outcome.RESET, None, 123),
        (Outcome.TIMEOUT, None, 124),
        (Outcome.CRASHED, None, 125),
    ],
)
def test_status_0_says_that_it_was_said(outcome: Outcome, code: int | None, status: int) -> None:
    ending = Ending(outcome, "", exit_code=code)
    result = Result(
        ending, exits={}, seconds=0.0, guest_seconds=0.0, outside_seconds=0.0, awaited="'ready'"
    )
    told, note = exit_status(result)
    assert told == status
    assert ("--until" in note) == (status == Status.UNSAID)
    # What QEMU's isa-debug-exit makes of code 0 is 1.
    assert exit_status(result, "qemu")[0] in (status, 1, 7)


@pytest.mark.kvm
@pytest.mark.parametrize(
    "until",
    [["--until", "from"], ["--until-regex", r"fr\w\w"], ["--until", "never", "--until", "from"]],
    ids=["text", "regex", "several"],
)
@pytest.mark.parametrize("trace", [[], ["--trace-file", "/dev/null"]], ids=["", "traced"])
def test_it_ends_at_the_last_byte(
    pykvm: Pykvm, guests: Path, until: list[str], trace: list[str]
) -> None:
    done = pykvm(guests / "hello.elf", *until, *trace)
    assert (done.returncode, done.stdout) == (0, "Hello from")
    (line,) = done.stderr.splitlines()
    assert line.startswith("pykvm: the guest said 'from' (")


@pytest.mark.kvm
def test_lines_have_ends(pykvm: Pykvm, guests: Path) -> None:
    done = pykvm(guests / "echo.elf", "--until-regex", "^Bye", stdin="my Bye\nq\n")
    assert (done.returncode, done.stdout.splitlines()[1:]) == (0, ["my Bye", "q", "Bye"])


@pytest.mark.kvm
def test_a_guest_that_never_says_it(pykvm: Pykvm, guests: Path) -> None:
    for quiet in ([], ["-q"]):
        done = pykvm(guests / "hello.elf", "--until-regex", "a{3}", *quiet)
        assert done.returncode == 123
        first, second = done.stderr.splitlines()
        assert first.startswith("pykvm: the guest exited with code 0 (")
        assert first.endswith("exit status 123: it did not say what --until waits for)")
        assert second.strip() == "awaited: a match of 'a{3}'"


@pytest.mark.kvm
def test_quiet_where_it_was_said(pykvm: Pykvm, guests: Path) -> None:
    done = pykvm("-q", guests / "hello.elf", "--until", "Hello")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello", "")


@pytest.mark.kvm
def test_bytes_that_are_no_text(pykvm: Pykvm, guests: Path) -> None:
    done = pykvm(guests / "echo.elf", "--until", "\udcff", "--timeout", "0.3")
    assert done.returncode == 124
    assert r"awaited: b'\xff'" in done.stderr


@pytest.mark.kvm
def test_typed_on_a_terminal(terminal: Open, guests: Path) -> None:
    console = terminal(guests / "echo.elf", "--until", "enough")
    console.wait_for("just q.\r\n")
    console.type("more, not yet, enough, and this is not read")
    console.wait_for("enough")
    console.wait_for("pykvm: the guest said 'enough'")
    assert console.status() == 0
    assert console.attributes == console.before


@pytest.mark.kvm
def test_left_before_it_was_said(terminal: Open, guests: Path) -> None:
    console = terminal(guests / "echo.elf", "--until", "enough")
    console.wait_for("just q.\r\n")
    console.type("\x01x")
    console.wait_for("pykvm: the console was left with Ctrl-A x")
    assert console.status() == 123
