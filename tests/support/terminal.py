"""A terminal of its own for a process under test."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping
from typing import Any

from support.slowness import longer

__all__ = ["ECHO_AND_LINES", "LFLAG", "Terminal"]

DEADLINE = longer(20.0)
LFLAG = 3
ECHO_AND_LINES = termios.ECHO | termios.ICANON
# What the other side of a terminal has room for if it polls writable.
PIECE = 256

# Makes the terminal on stdin the controlling one, as a login does, then becomes the command.
LOGIN = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """A terminal and a process on it."""

    def __init__(
        self,
        command: list[str],
        environment: Mapping[str, str] = os.environ,
        *,
        deadline: float = DEADLINE,
    ) -> None:
        """`deadline` is how many seconds anything that is waited for may take."""
        self.master, self.slave = os.openpty()
        self._deadline = deadline
        self.before = self.attributes
        self.process = subprocess.Popen(
            [sys.executable, "-c", LOGIN, *command],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env={**environment, "TERM": "dumb", "PS1": "$ "},
        )
        self.seen = ""

    @property
    def attributes(self) -> list[Any]:
        return termios.tcgetattr(self.slave)

    @property
    def is_raw(self) -> bool:
        return not self.attributes[LFLAG] & ECHO_AND_LINES

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def paste(self, text: str, *, echoed: bool = True) -> str:
        """Type `text` as fast as it is taken; if it is `echoed`, return as much as came back."""
        rest, seen = memoryview(text.encode()), bytearray(self.seen.encode())
        poll = select.poll()
        while rest or (echoed and len(seen) < len(text)):
            poll.register(self.master, select.POLLIN | (select.POLLOUT if rest else 0))
            ready = poll.poll(self._deadline * 1000)
            assert ready, f"nothing moves: {len(rest)} to type, {len(seen)} of {len(text)} seen"
            if ready[0][1] & select.POLLOUT:
                rest = rest[os.write(self.master, rest[:PIECE]) :]
            if ready[0][1] & select.POLLIN:
                seen += os.read(self.master, 4096)
        self.seen = "" if echoed else seen.decode(errors="replace")
        return seen.decode(errors="replace")

    def wait_for(self, text: str) -> str:
        """Read until `text` appears, and return all up to its end; the rest is kept."""
        deadline = time.monotonic() + self._deadline
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], deadline - time.monotonic())
            assert ready, f"{text!r} did not appear in {self.seen!r}"
            self.seen += os.read(self.master, 4096).decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self._deadline
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain until {what}"
            time.sleep(0.01)

    def status(self) -> int:
        """Wait for the end of the process and return its exit status."""
        return self.process.wait(self._deadline)

    def rest(self) -> str:
        """What else was printed."""
        while select.select([self.master], [], [], 0)[0]:
            self.seen += os.read(self.master, 4096).decode(errors="replace")
        return self.seen

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)
