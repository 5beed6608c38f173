"""Colours of `pykvm step`: on a terminal that wants them, and nowhere else."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from pathlib import Path

import pytest

from pykvm.cli.palette import COLOURS, Palette
from support.terminal import Terminal


@pytest.mark.parametrize("what", COLOURS)
def test_what_is_coloured_ends_plain(what: str) -> None:
    assert Palette(on=True).paint(what, "text") == f"\x1b[{COLOURS[what]}mtext\x1b[0m"
    assert Palette(on=True).paint(what, "") == ""
    assert Palette(on=False).paint(what, "text") == "text"


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("environment", "coloured"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": ""}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
    ],
)
def test_a_session_on_a_terminal(guests: Path, environment: dict[str, str], coloured: bool) -> None:
    command = ["env", *(f"{name}={value}" for name, value in environment.items())]
    command += [sys.executable, "-m", "pykvm", "step", str(guests / "hello.elf")]
    plain = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    with closing(Terminal(command, plain)) as terminal:
        terminal.wait_for("step> ")
        terminal.type("n\n")
        shown = terminal.wait_for("[1] ") + terminal.wait_for("step> ")
        assert ("\x1b[1mthe guest " in shown) is coloured
        assert ("\x1b[36m0x" in shown) is coloured
        terminal.type("frobnicate\n")
        shown = terminal.wait_for("help lists them")
        assert (f"\x1b[{COLOURS['error']}mthere is no command" in shown) is coloured
        terminal.type("q\n")
