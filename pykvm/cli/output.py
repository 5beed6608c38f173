"""Writing to a descriptor whose reader may be slow, absent or gone.

Output waits for its reader, as in any pipeline, while the run lasts.  Once the run is over (its
time is up, a signal came) it waits only while the reader makes progress: `LINGER` seconds for the
next byte, `LONGEST` in all, and not at all after another signal.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress

from pykvm.typed import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import select
    from collections.abc import Callable

__all__ = ["LINGER", "LONGEST", "Linger", "Stop", "TimeLimit", "Writer", "attach_standard_streams"]

LINGER = 0.5
LONGEST = 10.0

# What a pipe takes without blocking if it polls writable: PIPE_BUF.
_PIPE_PIECE = 4096
# What a terminal takes then: it has room for 256 bytes at least, and a newline takes two.
_TERMINAL_PIECE = 128
# How often, in seconds, to look whether the reader has made progress.
_GLANCE = 0.02

# In seconds: longer than `Machine.run` takes to begin.
_MARGIN = 0.05

_FIONREAD, _TIOCOUTQ = 0x541B, 0x5411  # asm-generic/ioctls.h
# Major and minor of /dev/ptmx: opening it anew would make another pseudo-terminal.
_PTMX = os.makedev(5, 2)


class Stop(Protocol):
    """The request to end the run: `fd` is readable then, `signals` counts the requests."""

    @property
    def fd(self) -> int:
        """A descriptor to poll."""

    @property
    def signals(self) -> int:
        """How many signals came."""


class TimeLimit:
    """When a run is over: `at`, on time.monotonic's clock, None for never."""

    def __init__(self, seconds: float | None = None) -> None:
        self._seconds = seconds
        self.start()

    def start(self) -> None:
        """The run begins now.

        `at` is a little later than the run's own deadline: a guest whose output is given up must
        not come to an end of its own before that.
        """
        self.at = None if self._seconds is None else time.monotonic() + self._seconds + _MARGIN


class Linger:
    """Patience with a reader once the run is over.

    >>> linger = Linger()
    >>> linger.goes_on(0), linger.goes_on(100)
    (True, True)
    """

    def __init__(self, stop: Stop | None = None) -> None:
        """A signal that `stop` counts from now on ends it."""
        self._stop = stop
        self._signals = stop.signals if stop is not None else 0
        self._began = self._moved = time.monotonic()
        self._taken: int | None = None

    def goes_on(self, taken: int) -> bool:
        """Whether to wait on for a reader that has `taken` so many bytes by now."""
        now = time.monotonic()
        if taken != self._taken:
            self._taken, self._moved = taken, now
        if self._stop is not None and self._stop.signals != self._signals:
            return False
        return now - self._moved < LINGER and now - self._began < LONGEST


class Writer:
    """Writes to `fd` without ever blocking in a write.

    `limit` and `stop` are when the run is over; without `lingers` it then waits no more.  `fd`
    itself stays in the mode that it is in: other programs share it.  Raises OSError if it is not
    open.
    """

    def __init__(
        self,
        fd: int,
        *,
        limit: TimeLimit | None = None,
        stop: Stop | None = None,
        lingers: bool = True,
    ) -> None:
        self._lingers = lingers
        self._limit = limit or TimeLimit()
        self._stop = stop
        self._linger: Linger | None = None
        self._close: Callable[[], object] = bool
        self._asks_first = False
        self._written = 0
        self._piece = 1 << 20
        self._queue_request = 0
        self._fd = fd
        self._write: Callable[[memoryview], int] = self._write_fd
        mode = os.fstat(fd).st_mode
        if stat.S_ISSOCK(mode):
            self._open_socket(fd)
        elif stat.S_ISFIFO(mode):
            self._queue_request = _FIONREAD
            self._open_anew(fd, _PIPE_PIECE)
        elif os.isatty(fd):
            self._open_anew(fd, _TERMINAL_PIECE)
        self._poll: select.poll | None = None

    def _write_fd(self, data: memoryview) -> int:
        return os.write(self._fd, data)

    def _open_socket(self, fd: int) -> None:
        import socket

        one = socket.socket(fileno=os.dup(fd))
        self._close = one.close
        self._queue_request = _TIOCOUTQ
        self._write = lambda data: one.send(data, socket.MSG_DONTWAIT)

    def _open_anew(self, fd: int, piece: int) -> None:
        """Get a descriptor of our own that does not block; if that is refused, write `piece`s."""
        if not os.get_blocking(fd):
            return
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        if os.fstat(fd).st_rdev != _PTMX:
            # Another user's terminal or pipe cannot be opened, though it can be written to.
            with suppress(OSError):
                self._fd = os.open(f"/proc/self/fd/{fd}", flags)
                self._close = lambda: os.close(self._fd)
                return
        self._asks_first = True
        self._piece = piece

    def write(self, data: bytes | memoryview) -> int:
        """Write `data`, and return how many bytes of it the reader did not take in time.

        Raises OSError for anything else that comes between.
        """
        rest = memoryview(data)
        asks = self._asks_first
        while rest:
            if asks and not self._has_room():
                return len(rest)
            try:
                count = self._write(rest[: self._piece])
                self._written += count
                rest = rest[count:]
                asks = self._asks_first
            except BlockingIOError:
                if asks and not self._asks_first:
                    # Room for less than one character: nothing to poll for.
                    time.sleep(_GLANCE / 10)
                asks = True
        return 0

    def _room(self) -> select.poll:
        """What says when something can be written; most outputs are never full."""
        if self._poll is None:
            from select import POLLIN, POLLOUT, poll

            self._poll = poll()
            self._poll.register(self._fd, POLLOUT)
            if self._stop is not None:
                self._poll.register(self._stop.fd, POLLIN)
        return self._poll

    def _has_room(self) -> bool:
        """Wait until something can be written; False if the wait is over."""
        while True:
            patience = self._patience()
            ready = [fd for fd, _ in self._room().poll(patience)]
            if self._fd in ready:
                return True
            if self._linger is not None:
                if not patience:
                    return False
            elif self._is_over(ready):
                if not self._lingers:
                    return False
                self._begin_to_linger()

    def _is_over(self, ready: list[int]) -> bool:
        """Whether the run is over, where `ready` are the descriptors that are."""
        if self._stop is not None and self._stop.fd in ready:
            return True
        return self._limit.at is not None and time.monotonic() >= self._limit.at

    def _begin_to_linger(self) -> None:
        if self._stop is not None:
            # Readable from now on.
            self._room().unregister(self._stop.fd)
        self._linger = Linger(self._stop)

    def _patience(self) -> float | None:
        """How long to poll, in ms; 0 once the wait is over."""
        if self._linger is not None:
            taken = self._written - self._queued()
            return _GLANCE * 1000 if self._linger.goes_on(taken) else 0.0
        if self._limit.at is None:
            return None
        return max(self._limit.at - time.monotonic(), 0.0) * 1000

    def _queued(self) -> int:
        """What the reader has yet to take of what was written, if the kernel reports it."""
        if not self._queue_request:
            return 0
        import fcntl

        try:
            return int.from_bytes(fcntl.ioctl(self._fd, self._queue_request, bytes(4)), "little")
        except OSError:
            return 0

    def close(self) -> None:
        """Give back what was opened; `fd` itself stays open."""
        self._close()


def attach_standard_streams() -> None:
    """Open /dev/null in the place of each of stdin, stdout and stderr that is closed.

    What is opened next would get its number otherwise, and be read and written in its stead.
    """
    import sys

    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest number that is free: those below are open by now.
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(fd, True)
        if getattr(sys, name) is None:
            stream = open(fd, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
