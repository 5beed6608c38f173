"""The host's end of a guest's console: stdio, a file, a pseudo-terminal, a socket, nothing.

What a guest prints to stdio or a file waits until it is written, as in any pipeline, but never
longer than the run may last.  `pykvm.cli.waiting` has those that need not have a reader.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import suppress

from pykvm.cli.output import Writer
from pykvm.errors import HostError
from pykvm.typed import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.cli.output import Stop, TimeLimit
    from pykvm.cli.terminal import RawTerminal

__all__ = [
    "FifoPort",
    "FilePort",
    "NoPort",
    "PathPort",
    "Port",
    "StdioPort",
    "StdoutPort",
    "open_file",
]

_STDIN, _STDOUT = 0, 1
_CHUNK = 4096

# How often, in seconds, a background job looks whether it was brought to the foreground.
_FOREGROUND_INTERVAL = 0.25
# How often, in seconds, to look whether a FIFO has a reader.
_FIFO_INTERVAL = 0.02


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
    """No reader and no input."""

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

    def __init__(self, writer: Writer, name: str) -> None:
        """`name` is what messages call it."""
        self._writer = writer
        self._name = name
        #: How many bytes its reader did not take.
        self.lost = 0
        #: Whether the last line that was written has no end yet.
        self.unfinished = False

    def write(self, data: bytes) -> None:
        """Write all of `data`, unless the run is ending and there is no reader.

        Raises HostError when that fails.
        """
        try:
            self.lost += self._writer.write(data)
        except OSError as error:
            raise self._trouble(error) from error
        if data:
            self.unfinished = not data.endswith(b"\n")

    def finish(self, data: bytes) -> None:
        """Write `data`, the last there is, whatever the limit says."""
        FilePort.write(self, data)

    def _trouble(self, error: OSError) -> Exception:
        return HostError(f"cannot write to {self._name}: {error.strerror}")

    def close(self) -> str:
        """Give up the writer; the descriptor stays open."""
        self._writer.close()
        if not self.lost:
            return ""
        return f"{self.lost} bytes of output were lost: {self._name} had no reader"


class PathPort(FilePort):
    """Output to a file of its own: a regular one takes `most` bytes, the rest is dropped."""

    def __init__(self, fd: int, writer: Writer, path: str, most: int | None) -> None:
        super().__init__(writer, path)
        self._fd = fd
        self._most = most
        self._left = most if stat.S_ISREG(os.fstat(fd).st_mode) else None
        self._dropped = 0

    def write(self, data: bytes) -> None:
        """Write `data` as far as the limit allows.  Raises HostError when that fails."""
        if self._left is not None:
            self._dropped += max(len(data) - self._left, 0)
            data = data[: self._left]
            self._left -= len(data)
        super().write(data)

    def close(self) -> str:
        """Close the file."""
        lost = super().close()
        os.close(self._fd)
        if not self._dropped:
            return lost
        return (
            f"{self._name} is cut off after {self._most} bytes, {self._dropped} more are not in "
            "it: --output-limit sets how many a file takes"
        )


class FifoPort(NoPort):
    """Output to a FIFO that had no reader yet: it is opened when there is one, as a shell does it.

    The guest waits for that when it first prints.
    """

    unfinished = False

    def __init__(self, path: str, stop: Stop, limit: TimeLimit) -> None:
        self._path = path
        self._stop = stop
        self._limit = limit
        self._port: PathPort | None = None
        self._lost = 0

    def write(self, data: bytes) -> None:
        """Write all of `data`, unless the run ends before there is a reader."""
        while not self._open():
            if self._is_over():
                self._lost += len(data)
                return
        assert self._port is not None
        self._port.write(data)

    finish = write

    def _is_over(self) -> bool:
        """Wait a little; whether the run is over."""
        from select import POLLIN, poll

        reader = poll()
        reader.register(self._stop.fd, POLLIN)
        late = self._limit.at is not None and time.monotonic() >= self._limit.at
        return late or bool(reader.poll(_FIFO_INTERVAL * 1000))

    def _open(self) -> bool:
        if self._port is None:
            fd = open_without_waiting(self._path)
            if fd is not None:
                writer = Writer(fd, limit=self._limit, stop=self._stop)
                self._port = PathPort(fd, writer, self._path, None)
        return self._port is not None

    def close(self) -> str:
        """Close it, so that a reader who has come meanwhile finds its end."""
        with suppress(OSError):
            self._open()
        lost = self._port.close() if self._port is not None else ""
        if self._lost:
            return f"{self._lost} bytes of output were lost: {self._path} had no reader"
        return lost


class StdoutPort(FilePort):
    """The program's own stdout.  When its reader has gone `write` raises BrokenPipeError."""

    def __init__(self, stop: Stop, limit: TimeLimit) -> None:
        super().__init__(Writer(_STDOUT, limit=limit, stop=stop), "stdout")

    def _trouble(self, error: OSError) -> Exception:
        # Not an error: the reader of our output has had enough.
        return error if isinstance(error, BrokenPipeError) else super()._trouble(error)


class StdioPort(StdoutPort):
    """The program's own stdin and stdout."""

    def __init__(self, stop: Stop, limit: TimeLimit, terminal: RawTerminal | None) -> None:
        """`terminal` is what stdin is, if it is one."""
        super().__init__(stop, limit)
        self._terminal = terminal
        # A script's or CI's stdin, from which nothing ever comes: no thread is started to find out.
        self.pumped = self._open = not is_null(_STDIN)

    def interests(self, *, reading: bool) -> list[tuple[int, int]]:
        """Stdin, until its end."""
        if not (reading and self._open and self._mine()):
            return []
        from select import POLLIN

        return [(_STDIN, POLLIN)]

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


def is_null(fd: int) -> bool:
    """Whether it is /dev/null, by its number (Documentation/admin-guide/devices.txt)."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 3)


def open_without_waiting(path: str) -> int | None:
    """Open `path` for writing, empty; None for a FIFO that has no reader.  Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    try:
        return os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ENXIO and stat.S_ISFIFO(os.stat(path).st_mode):
            return None
        raise


def open_file(path: str, *, stop: Stop, limit: TimeLimit, most: int | None) -> PathPort | FifoPort:
    """The port for the file at `path`, which takes `most` bytes if it is a regular one.

    Raises OSError where it cannot be opened.
    """
    fd = open_without_waiting(path)
    if fd is None:
        return FifoPort(path, stop, limit)
    return PathPort(fd, Writer(fd, limit=limit, stop=stop), path, most)
