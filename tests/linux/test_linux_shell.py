"""An interactive shell in Linux, on a terminal: typing, pasting, output, and the way out."""

from __future__ import annotations

import hashlib
import re
import sys
from contextlib import closing

import pytest

from support.linux import DEADLINE, Linux
from support.terminal import Terminal

pytestmark = pytest.mark.timeout(2 * DEADLINE)

PROMPT = "# "
PASTED = bytes(b" "[0] + number % 91 for number in range(1 << 13))


def test_a_shell_on_the_terminal(linux: Linux) -> None:
    command = [sys.executable, "-m", "pykvm", str(linux.vmlinux), "--memory", "64M"]
    command += ["--initrd", str(linux.initramfs), "--append", "console=ttyS0"]
    with closing(Terminal(command, deadline=DEADLINE)) as console:
        console.wait_for("is up\r\n")
        console.wait_for(PROMPT)

        console.type("tty; echo $((6 * 7))\r")
        console.wait_for("\r\n/dev/ttyS0\r\n42\r\n")
        console.wait_for(PROMPT)

        # All that is typed arrives, with the shell's own echo out of the way.
        console.type(f"stty -echo -icanon crtscts; head -c {len(PASTED)} | sha256sum\r")
        console.wait_for("\n")
        console.paste(PASTED.decode(), echoed=False)
        console.wait_for(hashlib.sha256(PASTED).hexdigest())
        console.wait_for(PROMPT)

        # And all that is printed.
        console.type("stty sane; seq 1 1000\r")
        said = console.wait_for("\r\n1000\r\n")
        assert re.findall(r"^\d+", said, re.MULTILINE) == [str(n) for n in range(1, 1001)]
        console.wait_for(PROMPT)

        console.type("exit\r")
        console.wait_for("Power down")
        assert console.status() == 0
