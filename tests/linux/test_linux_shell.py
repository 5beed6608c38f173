"""An interactive shell in Linux, on a terminal: typing, pasting, output, and the way out."""

from __future__ import annotations

import hashlib
import re
import sys
from contextlib import closing

import pytest

from support.booted import PROMPT, at_the_shell
from support.linux import DEADLINE, Linux
from support.terminal import Terminal

pytestmark = pytest.mark.timeout(2 * DEADLINE)

#: The guest's terminal makes CR LF of a newline, and the host's makes CR LF of that LF.
NEWLINE = "\r\r\n"
PASTED = bytes(b" "[0] + number % 91 for number in range(1 << 12))


def test_a_shell_on_the_terminal(linux: Linux) -> None:
    command = [sys.executable, "-m", "pykvm", str(at_the_shell(linux))]
    with closing(Terminal(command, deadline=DEADLINE)) as console:
        console.type("\r")
        console.wait_for(PROMPT)

        console.type("tty; echo $((6 * 7))\r")
        console.wait_for(f"{NEWLINE}/dev/ttyS0{NEWLINE}42{NEWLINE}")
        console.wait_for(PROMPT)

        # All that is typed arrives, with the shell's own echo out of the way.
        console.type(f"stty -echo -icanon crtscts; head -c {len(PASTED)} | sha256sum\r")
        console.wait_for("\n")
        console.paste(PASTED.decode(), echoed=False)
        console.wait_for(hashlib.sha256(PASTED).hexdigest())
        console.wait_for(PROMPT)

        # And all that is printed.
        console.type("stty sane; seq 1 400\r")
        said = console.wait_for(f"{NEWLINE}400{NEWLINE}")
        assert re.findall(r"^\d+", said, re.MULTILINE) == [str(n) for n in range(1, 401)]
        console.wait_for(PROMPT)

        # Ctrl-C is for what runs there, and that runs once it has printed.
        console.type("sh -c 'echo up; sleep 1000'\r")
        console.wait_for(f"{NEWLINE}up{NEWLINE}")
        console.type("\x03")
        console.wait_for("pykvm: Ctrl-C went to the guest")
        console.wait_for(PROMPT)

        console.type("checks\r")
        assert "FAILED" not in console.wait_for("check: done, 0 failed")
        console.wait_for(PROMPT)

        # A kernel that panics ends its run, and the reason is told.
        console.type("echo c >/proc/sysrq-trigger\r")
        console.wait_for("pykvm: the guest crashed: kernel panic: sysrq triggered crash")
        assert console.status() == 125


def test_poweroff_ends_the_run(linux: Linux) -> None:
    command = [sys.executable, "-m", "pykvm", str(at_the_shell(linux))]
    with closing(Terminal(command, deadline=DEADLINE)) as console:
        console.type("\r")
        console.wait_for(PROMPT)
        console.type("poweroff\r")
        console.wait_for("pykvm: the guest powered itself off (ACPI S5)")
        assert console.status() == 0
        # The line about the kernel's command line is for runs that failed.
        assert "command line" not in console.rest()
