"""The terminal as the guest's console: raw while the guest runs, restored whatever happens."""

from __future__ import annotations

import os
import signal
import termios
from _thread import RLock
from contextlib import suppress

from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["ESCAPE_HELP", "Escape", "RawTerminal"]

# Indices into what tcgetattr returns.
_IFLAG, _OFLAG, _CFLAG, _LFLAG, _ISPEED, _OSPEED, _CC = range(7)

_INPUT_PROCESSING = (
    (termios.BRKINT | termios.INPCK | termios.ISTRIP | termios.IXON)
    | (termios.ICRNL | termios.INLCR | termios.IGNCR)
)  # fmt: skip
_DISABLED = b"\0"  # _POSIX_VDISABLE

ESCAPE_HELP = """\
Ctrl-A x        end the run and leave the console
Ctrl-A Ctrl-A   send Ctrl-A to the guest (Ctrl-A a does too)
Ctrl-A c        send Ctrl-C to the guest
Ctrl-A z        send Ctrl-Z to the guest
Ctrl-A h        this list
Ctrl-C          stop the guest; one that reads what is typed gets it, and a second one within a
                second ends the run
Ctrl-Z          suspend pykvm; fg goes on
"""

_CTRL_A = 0x01
_SENDS = {_CTRL_A: b"\x01", ord("a"): b"\x01", ord("c"): b"\x03", ord("z"): b"\x1a"}
_DOES = {ord("x"): "leave", ord("h"): "help", ord("?"): "help"}


class Escape:
    r"""What a person types, taken apart: bytes for the guest, and commands after Ctrl-A.

    >>> escape = Escape()
    >>> escape.feed(b"ls\r\x01")
    (b'ls\r', [])
    >>> escape.feed(b"x")
    (b'', ['leave'])
    """

    def __init__(self) -> None:
        self._escaped = False

    def feed(self, typed: bytes) -> tuple[bytes, list[str]]:
        """The bytes that go to the guest, and the commands ("leave", "help") among them."""
        passed = bytearray()
        commands = []
        for byte in typed:
            if self._escaped:
                self._escaped = False
                passed += _SENDS.get(byte, b"")
                if byte in _DOES:
                    commands.append(_DOES[byte])
            elif byte == _CTRL_A:
                self._escaped = True
            else:
                passed.append(byte)
        return bytes(passed), commands


def raw(attributes: list[Any]) -> list[Any]:
    r"""Terminal attributes for a console: every key goes to the guest as it is, unechoed.

    ISIG stays on, so that Ctrl-C and Ctrl-Z work on pykvm; OPOST too, so that a guest's newlines
    start new lines.  Ctrl-\ is the guest's: it would leave a core file.
    """
    new = list(attributes)
    new[_CC] = list(attributes[_CC])
    new[_IFLAG] &= ~_INPUT_PROCESSING
    new[_LFLAG] = new[_LFLAG] & ~(termios.ECHO | termios.ICANON | termios.IEXTEN) | termios.ISIG
    new[_CC][termios.VMIN] = 1
    new[_CC][termios.VTIME] = 0
    new[_CC][termios.VQUIT] = _DISABLED
    return new


class RawTerminal:
    """While entered, the terminal `fd` can be made raw; at the end it is as it was.

    `claim` makes it raw.  While the process is suspended, and while another process has the
    terminal, it is left alone.  `resumed` is called when the process goes on after a suspension.
    """

    def __init__(self, fd: int, resumed: Callable[[], object]) -> None:
        self._fd = fd
        self._resumed = resumed
        self._raw = False
        self._suspended = False
        self._before: dict[int, Any] = {}
        # Signal handlers enter it too, in whatever state they find the main thread.
        self._lock = RLock()

    def __enter__(self) -> RawTerminal:
        self._saved = termios.tcgetattr(self._fd)
        for number, take in ((signal.SIGTSTP, self._suspend), (signal.SIGCONT, self._go_on)):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, take)
        self.claim()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            for number, before in self._before.items():
                signal.signal(number, before)
            self._suspended = True
            self._restore()

    def claim(self) -> bool:
        """Make the terminal raw, if it is not; False if this process may not use it now."""
        with self._lock:
            if self._suspended or not self._foreground():
                return False
            if not self._raw:
                self._raw = True
                self._set(raw(self._saved))
            return True

    def _foreground(self) -> bool:
        """Whether the terminal is this process's, which thus is no background job of a shell."""
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:
            # Not our controlling terminal: there is no job control on it.
            return True

    def _restore(self) -> None:
        # A background job that touches the terminal's settings would be stopped.
        if self._raw and self._foreground():
            self._set(self._saved)
        self._raw = False

    def _set(self, attributes: list[Any]) -> None:
        # A terminal that has gone needs nothing.
        with suppress(termios.error):
            termios.tcsetattr(self._fd, termios.TCSANOW, attributes)

    def _suspend(self, number: int, frame: object) -> None:
        with self._lock:
            self._suspended = True
            self._restore()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._suspend)
        self._suspended = False
        self._resumed()

    def _go_on(self, number: int, frame: object) -> None:
        # After SIGSTOP nothing was restored, and the shell has set the terminal as it likes it.
        self._raw = False
        self._resumed()
