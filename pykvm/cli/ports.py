"""The host's end of a guest's console: stdio, a file, a pseudo-terminal, a Unix socket, nothing.

What a guest prints to stdio or a file waits until it is written, as in any pipeline, but never
longer than the run may last.  `pykvm.cli.waiting` has those that need not have a reader.
"""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING, Protocol

from pykvm.errors import ConfigError, HostError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.cli.interrupts import Interrupts
    from pykvm.cli.options import Destination
    from pykvm.cli.terminal import RawTerminal

__all__ = ["FilePort", "NoPort", "Port", "StdioPort", "StdoutPort", "open_port"]

_STDIN, _STDOUT = 0, 1
_CHUNK = 4096  # PIPE_BUF: a pipe that polls writable takes this much without blocking

# How often, in seconds, a background job looks whether it was brought to the foreground.
_FOREGROUND_INTERVAL = 0.25


class Port(Protocol):
    """One end of a serial line.  `write` is called by vCPUs, the rest by the pump."""

    @property
    def pumped(self) -> bool:
        """Whether it needs a pump: for input, or for a reader that may be slow."""

    @property
    def notice(self) -> str:
        """What a person has to know to use it; empty for most."""

    def attach(self, wake: Callable[[], object]) -> None:
        """Call `wake`, from any thread, when `interests` have changed."""

    def write(self, data: bytes, /) -> None:
        """Take what the guest printed."""

    def interests(self, *, reading: bool) -> list[tuple[int, int]]:
        """The (descriptor, poll events) to wait for, for input only if `reading`."""

    def patience(self) -> float | None:
        """After how many seconds `interests` may change by itself, None for never."""

    def handle(self, fd: int, events: int, /) -> bytes:
        """Deal with what was waited for, and return what came in for the guest."""

    def close(self) -> str:
        """Let go of everything; a sentence if not everything reached its reader."""


class NoPort:
    """Nobody reads and nobody types."""

    pumped = False
    notice = ""

    def attach(self, wake: Callable[[], object]) -> None:
        """Nothing ever changes."""

    def write(self, data: bytes) -> None:
        """Forget `data`."""

    def interests(self, *, reading: bool) -> list[tuple[int, int]]:
        """None."""
        return []

    def patience(self) -> float | None:
        """None."""
        return None

    def handle(self, fd: int, events: int) -> bytes:
        """Never called."""
        return b""

    def close(self) -> str:
        """Nothing to do."""
        return ""


class FilePort(NoPort):
    """Output to a file descriptor, which waits for a reader no longer than the run may last."""

    def __init__(self, fd: int, name: str, interrupts: Interrupts, deadline: float | None) -> None:
        """`deadline` is on time.monotonic's clock."""
        self._fd = fd
        self._name = name
        self._stop_fd = interrupts.fd
        self._deadline = deadline
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._poll.register(self._stop_fd, select.POLLIN)
        #: Whether the last line that was written has no end yet.
        self.unfinished = False

    def write(self, data: bytes) -> None:
        """Write all of `data`, unless the run is ending and nobody reads.

        Raises HostError when that fails.
        """
        rest = memoryview(data)
        while rest:
            if not self._writable():
                return
            try:
                rest = rest[os.write(self._fd, rest[:_CHUNK]) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._trouble(error) from error
        self.unfinished = not data.endswith(b"\n")

    def _trouble(self, error: OSError) -> Exception:
        return HostError(f"cannot write to {self._name}: {error.strerror}")

    def _writable(self) -> bool:
        while True:
            left = None
            if self._deadline is not None:
                left = max(self._deadline - time.monotonic(), 0.0) * 1000
            ready = [fd for fd, _ in self._poll.poll(left)]
            if self._fd in ready or not ready or self._stop_fd in ready:
                return self._fd in ready

    def close(self) -> str:
        """Close the file."""
        os.close(self._fd)
        return ""


class StdoutPort(FilePort):
    """The program's own stdout.  When its reader has gone `write` raises BrokenPipeError."""

    def __init__(self, interrupts: Interrupts, deadline: float | None) -> None:
        super().__init__(_STDOUT, "stdout", interrupts, deadline)

    def _trouble(self, error: OSError) -> Exception:
        # Not an error: whoever read our output has had enough.
        return error if isinstance(error, BrokenPipeError) else super()._trouble(error)

    def close(self) -> str:
        """Leave it open: it is the program's."""
        return ""


class StdioPort(StdoutPort):
    """The program's own stdin and stdout."""

    pumped = True

    def __init__(
        self, interrupts: Interrupts, deadline: float | None, terminal: RawTerminal | None
    ) -> None:
        """`terminal` is what stdin is, if it is one."""
        super().__init__(interrupts, deadline)
        self._terminal = terminal
        self._open = True

    def interests(self, *, reading: bool) -> list[tuple[int, int]]:
        """Stdin, until its end."""
        if not (reading and self._open and self._mine()):
            return []
        return [(_STDIN, select.POLLIN)]

    def _mine(self) -> bool:
        return self._terminal is None or self._terminal.claim()

    def patience(self) -> float | None:
        """A shell gives the terminal back without a word."""
        return None if self._mine() else _FOREGROUND_INTERVAL

    def handle(self, fd: int, events: int) -> bytes:
        """Read what there is."""
        try:
            data = os.read(_STDIN, _CHUNK)
        except BlockingIOError:
            return b""
        except OSError:
            # Closed from the start, or a terminal that has gone.
            data = b""
        self._open = bool(data)
        return data


def open_port(
    option: str,
    destination: Destination,
    *,
    interrupts: Interrupts,
    deadline: float | None = None,
    typing: bool = True,
    terminal: RawTerminal | None = None,
) -> Port:
    """The port for a destination; stdin belongs to it only if `typing`.

    Raises ConfigError, naming `option`, where it cannot be opened.
    """
    try:
        if destination.kind == "stdio":
            if typing:
                return StdioPort(interrupts, deadline, terminal)
            return StdoutPort(interrupts, deadline)
        if destination.kind == "file":
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            fd = os.open(destination.path, flags, 0o666)
            return FilePort(fd, destination.path, interrupts, deadline)
        if destination.kind == "pty":
            from pykvm.cli.waiting import PtyPort

            return PtyPort()
        if destination.kind == "unix":
            from pykvm.cli.waiting import UnixPort

            return UnixPort(destination.path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{option} {destination}: {reason}") from error
    return NoPort()
