"""The terminal as a console: what keys do, and that it is always put back as it was."""

from __future__ import annotations

import os
import re
import signal
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pykvm.cli.terminal import Escape, raw
from support.terminal import ECHO_AND_LINES, LFLAG, Terminal

Flat = Callable[[str], Path]

CTRL_A, CTRL_C, CTRL_Z = "\x01", "\x03", "\x1a"
Open = Callable[..., Terminal]


@pytest.mark.parametrize(
    ("typed", "passed", "commands"),
    [
        (b"ls\r", b"ls\r", []),
        (b"\x03\x1a\x04", b"\x03\x1a\x04", []),
        (b"\x01x", b"", ["leave"]),
        (b"\x01h\x01?", b"", ["help", "help"]),
        (b"a\x01\x01b", b"a\x01b", []),
        (b"\x01a", b"\x01", []),
        (b"\x01c\x01z", b"\x03\x1a", []),
        (b"\x01qz", b"z", []),
    ],
)
def test_escape(typed: bytes, passed: bytes, commands: list[str]) -> None:
    assert Escape().feed(typed) == (passed, commands)
    escape = Escape()
    parts = [escape.feed(bytes([byte])) for byte in typed]
    assert b"".join(part for part, _ in parts) == passed
    assert [one for _, some in parts for one in some] == commands


def test_raw_leaves_output_and_signals_alone() -> None:
    master, slave = os.openpty()
    try:
        before = termios.tcgetattr(slave)
        kept = [list(part) if isinstance(part, list) else part for part in before]
        new = raw(before)
        assert before == kept
        assert new[1] == before[1]
        assert new[LFLAG] & termios.ISIG
        assert not new[LFLAG] & ECHO_AND_LINES
        assert not new[0] & (termios.ICRNL | termios.IXON)
    finally:
        os.close(master)
        os.close(slave)


@pytest.mark.kvm
def test_a_guest_that_exits(terminal: Open, guests: Path) -> None:
    console = terminal(guests / "hello.elf")
    console.wait_for("Hello from long mode!\r\n")
    assert console.status() == 0
    assert console.attributes == console.before
    assert "the guest exited with code 0" in console.rest()


@pytest.mark.kvm
def test_keys_reach_the_guest_unechoed(terminal: Open, guests: Path) -> None:
    console = terminal(guests / "echo.elf")
    console.wait_for("just q.\r\n")
    assert console.is_raw
    console.type("abc\r")
    # Once, by the guest; the terminal itself would echo it too.
    console.wait_for("abc\r\n")
    console.type("q\r")
    console.wait_for("q\r\nBye.\r\n")
    assert console.status() == 0
    assert "abc" not in console.rest()
    assert console.attributes == console.before


@pytest.mark.kvm
def test_ctrl_a_x_leaves(terminal: Open, guests: Path) -> None:
    console = terminal(guests / "echo.elf")
    console.wait_for("just q.\r\n")
    console.type(f"{CTRL_A}x")
    console.wait_for("pykvm: the console was left with Ctrl-A x")
    assert console.status() == 0
    assert console.attributes == console.before


@pytest.mark.kvm
def test_ctrl_a_x_leaves_a_guest_that_does_not_listen(terminal: Open, guests: Path) -> None:
    console = terminal(guests / "busy.elf")
    console.wait_for("spinning")
    console.type(f"{CTRL_A}x")
    assert console.status() == 0
    assert console.attributes == console.before


@pytest.mark.kvm
def test_ctrl_a_h_helps(terminal: Open, guests: Path) -> None:
    console = terminal(guests / "echo.elf")
    console.wait_for("just q.\r\n")
    console.type(f"{CTRL_A}h")
    console.wait_for("Ctrl-A x        end the run and leave the console\r\n")
    console.type(f"{CTRL_A}x")
    assert console.status() == 0


@pytest.mark.kvm
def test_ctrl_c_stops_the_guest(terminal: Open, guests: Path) -> None:
    console = terminal(guests / "busy.elf")
    console.wait_for("spinning in ring 0\r\n")
    console.wait_until(lambda: console.is_raw, "the terminal is raw")
    console.type(CTRL_C)
    console.wait_for("pykvm: stopped by Ctrl-C")
    assert console.status() == 130
    assert console.attributes == console.before


def reading(terminal: Open, guests: Path) -> Terminal:
    """The console of a guest that has read a byte, and prints what it reads."""
    console = terminal(guests / "paste.elf")
    console.wait_until(lambda: console.is_raw, "the terminal is raw")
    console.type("a")
    console.wait_for("a")
    return console


@pytest.mark.kvm
def test_ctrl_c_is_for_a_guest_that_reads(terminal: Open, guests: Path) -> None:
    console = reading(terminal, guests)
    console.type(CTRL_C)
    console.wait_for("pykvm: Ctrl-C went to the guest; another one within a second, or Ctrl-A x")
    # It prints what it reads.
    console.type("b")
    assert "b" in console.wait_for("b")
    console.type("\x04")
    assert console.status() == 0
    assert console.attributes == console.before


@pytest.mark.kvm
def test_the_guest_gets_ctrl_c_as_a_character(terminal: Open, guests: Path) -> None:
    console = reading(terminal, guests)
    console.type(CTRL_C)
    console.wait_for(CTRL_C)
    console.type("\x04")
    assert console.status() == 0


@pytest.mark.kvm
def test_two_ctrl_c_in_a_row_end_the_run(terminal: Open, guests: Path) -> None:
    console = reading(terminal, guests)
    console.type(CTRL_C)
    console.wait_for("Ctrl-C went to the guest")

    def ended() -> bool:
        # Two of them are one to a process that was not there to take the first.
        if console.process.poll() is None:
            console.type(CTRL_C)
            time.sleep(0.05)
        return console.process.poll() is not None

    console.wait_until(ended, "the run ends")
    assert console.status() == 130
    console.wait_for("pykvm: stopped by Ctrl-C")
    assert console.attributes == console.before


@pytest.mark.kvm
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_signals_restore_the_terminal(terminal: Open, guests: Path, number: signal.Signals) -> None:
    console = terminal(guests / "busy.elf")
    console.wait_for("spinning")
    assert console.is_raw
    console.process.send_signal(number)
    assert console.status() == 128 + number
    assert console.attributes == console.before


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["triple.elf"], 125), (["busy.elf", "--timeout", "0.3"], 124), (["halt.elf"], 0)],
)
def test_every_end_of_a_run_restores_the_terminal(
    terminal: Open, guests: Path, arguments: list[str], status: int
) -> None:
    console = terminal(guests / arguments[0], *arguments[1:])
    assert console.status() == status
    assert console.attributes == console.before


@pytest.mark.kvm
def test_the_last_line_stands_apart(terminal: Open, flat: Flat) -> None:
    console = terminal(
        flat("""
            BA F8 03    mov dx, 0x3f8
            B0 3E       mov al, '>'
            EE          out dx, al
            F4          hlt
        """)
    )
    assert console.status() == 0
    assert re.match(r">\r\npykvm: the guest halted", console.rest())


@pytest.mark.kvm
def test_suspended_and_resumed(
    command: list[str], environment: dict[str, str], guests: Path
) -> None:
    """Ctrl-Z under a shell with job control: the shell gets its terminal, fg gives it back."""
    console = Terminal(["bash", "--norc", "--noprofile", "-i"], environment)
    try:
        console.wait_for("$ ")
        console.type(" ".join([*command, str(guests / "echo.elf")]) + "\r")
        console.wait_for("just q.\r\n")
        console.wait_until(lambda: console.is_raw, "the terminal is raw")
        console.type(CTRL_Z)
        console.wait_for("Stopped")
        console.type("echo still $((40 + 2))\r")
        console.wait_for("still 42\r\n")
        console.type("fg\r")
        console.wait_for("echo.elf\r\n")
        console.wait_until(lambda: console.is_raw, "the terminal is raw again")
        console.type("xyz\r")
        console.wait_for("xyz\r\n")
        console.type("q\r")
        console.wait_for("the guest exited with code 0")
        console.type("exit 7\r")
        assert console.status() == 7
    finally:
        console.close()


@pytest.mark.kvm
def test_in_the_background_the_terminal_is_left_alone(
    command: list[str], environment: dict[str, str], guests: Path
) -> None:
    console = Terminal(["bash", "--norc", "--noprofile", "-i"], environment)
    try:
        console.wait_for("$ ")
        console.type(" ".join([*command, str(guests / "echo.elf"), "&"]) + "\r")
        console.wait_for("just q.\r\n")
        console.type("echo still $((40 + 2))\r")
        console.wait_for("still 42\r\n")
        console.type("fg\r")
        console.wait_for("echo.elf\r\n")
        console.wait_until(lambda: console.is_raw, "the terminal is raw")
        console.type("q\r")
        console.wait_for("the guest exited with code 0")
        console.type("exit 7\r")
        assert console.status() == 7
    finally:
        console.close()
