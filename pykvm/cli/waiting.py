"""Ports whose reader may be absent or slow: a pseudo-terminal, a Unix socket and a TCP port.

They never make the guest wait.  The first 64 KiB that were not read wait for a reader; what does
not fit is dropped and counted.  At the end of a run they wait for a reader as `Linger` says.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import stat
import termios
import time
import tty
from _thread import allocate_lock
from contextlib import suppress

from pykvm.cli.output import Linger
from pykvm.cli.ports import NoPort
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pykvm.cli.output import Stop

__all__ = ["BACKLOG", "PtyPort", "TcpPort", "UnixPort"]

_CHUNK = 4096

LOOPBACK = "127.0.0.1"

# unix(7): sun_path, without its NUL.
_LONGEST_PATH = 107

#: How many bytes wait for a reader.
BACKLOG = 64 << 10
# What a client that has gone may have left unread here; the kernel keeps far less for a socket.
_MOST_LEFT = 16 << 20
# How often, in seconds, to look whether the reader of a pseudo-terminal has made room.
_PTY_INTERVAL = 0.05


class _WaitingPort(NoPort):
    """A port whose reader may be absent or slow: output waits in a bounded backlog."""

    pumped = True

    def __init__(self, stop: Stop | None = None) -> None:
        """A signal that `stop` counts ends the wait for a reader."""
        self._stop = stop
        self._lock = allocate_lock()
        self._backlog = bytearray()
        self._dropped = 0
        self._wake: Callable[[], object] = bool

    def attach(self, wake: Callable[[], object]) -> None:
        """Call `wake` when something begins to wait."""
        self._wake = wake

    def write(self, data: bytes) -> None:
        """Take `data`, or as much of it as there is room for; never blocks."""
        with self._lock:
            waited = bool(self._backlog)
            self._flush()
            room = BACKLOG - len(self._backlog)
            self._backlog += data[:room]
            self._dropped += max(len(data) - room, 0)
            self._flush()
            waits = bool(self._backlog)
        if waits and not waited:
            self._wake()

    def _flush(self) -> None:
        """Hand over as much of the backlog as the reader takes now."""
        while self._backlog:
            taken = self._send(bytes(self._backlog[:_CHUNK]))
            if not taken:
                return
            del self._backlog[:taken]

    def _send(self, data: bytes) -> int:
        """Give `data` to the reader; how many bytes it took, 0 if there is none or it is slow."""
        raise NotImplementedError

    def _unread(self) -> int:
        """How many bytes a reader has still to take, as far as can be told."""
        raise NotImplementedError

    def _under_way(self) -> int:
        """How many bytes a reader will find even if the port is closed now."""
        return 0

    def _wait_for_reader(self) -> int:
        """Give a reader time as long as it makes progress, and return what it left unread."""
        linger = Linger(self._stop)
        while (unread := self._unread()) and linger.goes_on(-unread - self._under_way()):
            time.sleep(0.002)
            with self._lock:
                self._flush()
        return unread

    def _lost(self, unread: int, path: str) -> str:
        lost = self._dropped + unread
        return f"{lost} bytes of output or more were lost: {path} had no reader" if lost else ""


class PtyPort(_WaitingPort):
    """A pseudo-terminal; `path` is the side to open with screen or cat."""

    def __init__(self, stop: Stop | None = None) -> None:
        super().__init__(stop)
        # The slave stays open here too: otherwise reading fails while no other process has it open.
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.path = os.ttyname(self._slave)
        self.notice = f"console on {self.path}"

    def interests(self, *, reading: bool) -> list[tuple[int, int]]:
        """The master side."""
        return [(self._master, select.POLLIN)] if reading else []

    def patience(self) -> float | None:
        """A terminal does not always report that its reader has made room."""
        with self._lock:
            self._flush()
            return _PTY_INTERVAL if self._backlog else None

    def handle(self, fd: int, events: int) -> bytes:
        """Read what was typed."""
        with suppress(BlockingIOError):
            return os.read(self._master, _CHUNK)
        return b""

    def _send(self, data: bytes) -> int:
        with suppress(BlockingIOError):
            return os.write(self._master, data)
        return 0

    def _unread(self) -> int:
        return self._ready() + len(self._backlog)

    def _ready(self) -> int:
        """How many bytes the terminal has ready for its reader: 0 only when it holds none at all.

        What was written becomes ready in its own time, and is counted only then.  A poll that
        finds nothing ready makes it so; one that finds something has not looked further.
        """
        poll = select.poll()
        poll.register(self._slave, select.POLLIN)
        while True:
            more = poll.poll(0)
            ready = fcntl.ioctl(self._slave, termios.TIOCINQ, bytes(4))
            if any(ready) or not more:
                return int.from_bytes(ready, "little")

    def _has_reader(self) -> bool:
        """Whether anybody else has the slave side open."""
        os.close(self._slave)
        poll = select.poll()
        poll.register(self._master, 0)
        alone = any(events & select.POLLHUP for _, events in poll.poll(0))
        self._slave = os.open(self.path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        return not alone

    def close(self) -> str:
        """Close both sides, once a reader had its chance: closing throws away what it has not."""
        unread = self._unread()
        if unread and self._has_reader():
            unread = self._wait_for_reader()
        os.close(self._master)
        os.close(self._slave)
        return self._lost(unread, self.path)


class _ListeningPort(_WaitingPort):
    """A socket that takes one client at a time; the others wait for their turn."""

    # Whether a client that has nothing more to say makes room for the next one.
    _gives_way = False

    def __init__(self, listener: socket.socket, stop: Stop | None) -> None:
        super().__init__(stop)
        self.path = ""
        self._client: socket.socket | None = None
        # What the client has shut down: its side to us, and ours to it.
        self._half_closed = self._deaf = False
        self._listener = listener
        try:
            self._bind()
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise

    def _bind(self) -> None:
        """Listen, and set `path` to how messages call the place."""
        raise NotImplementedError

    def interests(self, *, reading: bool) -> list[tuple[int, int]]:
        """The client, or without one the socket that waits for one."""
        client = self._client
        if client is None:
            return [(self._listener.fileno(), select.POLLIN)]
        wanted = select.POLLOUT if self._backlog and not self._deaf else 0
        if reading and not self._half_closed:
            wanted |= select.POLLIN
        # With no events asked for, POLLHUP still comes when the client has gone.
        ends = [(client.fileno(), wanted)]
        if self._half_closed and self._gives_way:
            ends.append((self._listener.fileno(), select.POLLIN))
        return ends

    def handle(self, fd: int, events: int) -> bytes:
        """Accept, read, write what waits, or let a client go."""
        if self._client is None or fd == self._listener.fileno():
            self._accept()
            return b""
        gone = bool(events & (select.POLLERR | select.POLLHUP))
        data = b""
        if gone or events & select.POLLIN:
            data = self._receive(self._client, _MOST_LEFT if gone else _CHUNK)
        with self._lock:
            if gone:
                self._forget_client()
            else:
                self._flush()
        return data

    def _receive(self, client: socket.socket, most: int) -> bytes:
        """What the client has sent and the guest not read yet, `most` bytes or a little more."""
        data = bytearray()
        while len(data) < most:
            try:
                piece = client.recv(_CHUNK)
            except BlockingIOError:
                break
            except OSError:
                # It went without reading all of the output; this comes after all that it sent.
                piece = b""
            data += piece
            if not piece:
                # A client that has nothing more to say may still want to listen.
                self._half_closed = True
                break
        return bytes(data)

    def _accept(self) -> None:
        with suppress(OSError):
            client, _ = self._listener.accept()
            client.setblocking(False)
            self._prepare(client)
            with self._lock:
                self._forget_client()
                self._client = client
                self._half_closed = self._deaf = False
                self._flush()

    def _prepare(self, client: socket.socket) -> None:
        """Set what a new client's connection is to be like."""

    def _forget_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _send(self, data: bytes) -> int:
        if self._client is None or self._deaf:
            return 0
        try:
            return self._client.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            # It has gone, or listens no more: the next one gets it.
            self._deaf = True
            return 0

    def _unread(self) -> int:
        return len(self._backlog)

    def _under_way(self) -> int:
        client = self._client
        if client is None:
            return 0
        with suppress(OSError):
            return int.from_bytes(fcntl.ioctl(client, termios.TIOCOUTQ, bytes(4)), "little")
        return 0

    def close(self) -> str:
        """Close the connection and stop listening."""
        if self._client is None:
            # One may have come since the pump stopped.
            self._accept()
        listens = self._client is not None and not self._deaf
        unread = self._wait_for_reader() if listens else self._unread()
        if self._client is not None:
            # What is left unread here would make this close look like a failure to the client.
            self._receive(self._client, _MOST_LEFT)
        self._forget_client()
        self._listener.close()
        return self._lost(unread, self.path)


class UnixPort(_ListeningPort):
    """A Unix socket at `path`."""

    def __init__(self, path: str, stop: Stop | None = None) -> None:
        self._wanted = path
        super().__init__(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), stop)
        self.notice = f"console at {path}, which waits for a client"

    def _bind(self) -> None:
        self.path = self._wanted
        self._remove_stale()
        self._listen()
        self._identity = _identity(self.path)

    def _remove_stale(self) -> None:
        """Remove the socket of a program that crashed.  Raises OSError if it lives."""
        try:
            if not stat.S_ISSOCK(os.stat(self.path).st_mode):
                raise OSError(errno.EEXIST, "there is a file that is no socket")
        except FileNotFoundError:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(self.path)
            except ConnectionRefusedError:
                os.unlink(self.path)
                return
        raise OSError(errno.EADDRINUSE, "another program listens there")

    def _listen(self) -> None:
        """Listen at `path`: the file is never there without a listener."""
        staging = f"{self.path}.{os.getpid()}"
        if len(os.fsencode(staging)) > _LONGEST_PATH:
            self._listener.bind(self.path)
            self._listener.listen(1)
            return
        self._listener.bind(staging)
        try:
            self._listener.listen(1)
            # Not by renaming, which would replace what has come to be there meanwhile.
            os.link(staging, self.path)
        finally:
            os.unlink(staging)

    def close(self) -> str:
        """Close the connection and remove the socket's file."""
        lost = super().close()
        with suppress(OSError):
            if _identity(self.path) == self._identity:
                os.unlink(self.path)
        return lost


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


class TcpPort(_ListeningPort):
    """A TCP port of this host, given as "PORT" or "HOST:PORT"; without a host it is loopback."""

    # A client that went says the same as one that will only listen from now on: an end of its data.
    _gives_way = True

    _address: tuple[Any, ...]

    def __init__(self, place: str, stop: Stop | None = None) -> None:
        host, _, port = place.rpartition(":")
        found = socket.getaddrinfo(host.strip("[]") or LOOPBACK, port, type=socket.SOCK_STREAM)
        family, _, _, _, self._address = found[0]
        super().__init__(socket.socket(family, socket.SOCK_STREAM), stop)
        self.notice = f"console at {self.path}, which waits for a client"

    def _bind(self) -> None:
        # A port that a run before this one had is free again at once.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(self._address)
        self._listener.listen(1)
        host, port = self._listener.getsockname()[:2]
        self.path = f"tcp:[{host}]:{port}" if ":" in host else f"tcp:{host}:{port}"

    def _prepare(self, client: socket.socket) -> None:
        # Characters are not to wait for others, nor is a client that was cut off to stay for ever.
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
