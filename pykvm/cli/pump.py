"""The thread that moves bytes between a port of the host and the guest's serial port."""

from __future__ import annotations

import os
import select
import threading
from collections import deque

from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.cli.ports import Port

__all__ = ["Pump"]

# Above this many unread characters, what is typed waits where it is.
_ENOUGH = 4096
# Above this many, what clients left is dropped.
_MOST = 1 << 20


class Pump:
    """Waits for input on a port and hands it on, and lets a port write what waits there.

    `receive` takes what came in and `unread` says how much of it the guest has not read: while that
    is a lot nothing more is taken, so a long file waits outside.  Tell `drained` when it was read.
    """

    def __init__(
        self,
        port: Port,
        *,
        receive: Callable[[bytes], object] = lambda data: None,
        unread: Callable[[], int] = lambda: 0,
    ) -> None:
        self._port = port
        self._receive = receive
        self._unread = unread
        self._full = False
        self._closing = False
        self._dropped = 0
        self._calls: deque[Callable[[], object]] = deque()
        self._wake_fd, self._write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        port.attach(self.wake)
        self._thread = threading.Thread(target=self._loop, name="console", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> str:
        """Stop and wait for that; harmless before `start`.  A sentence if input was lost."""
        self._closing = True
        self.wake()
        if self._thread.ident is not None:
            self._thread.join()
        os.close(self._wake_fd)
        os.close(self._write_fd)
        if not self._dropped:
            return ""
        return (
            f"{self._dropped} bytes of input were lost: the guest left {_MOST} before them unread"
        )

    def wake(self) -> None:
        """Look again at what to wait for.  From any thread, and from signal handlers."""
        try:
            os.write(self._write_fd, b"!")
        except BlockingIOError:
            # It is being woken already.
            return

    def soon(self, call: Callable[[], object]) -> None:
        """Call `call` in the pump's thread.  From any thread, and from signal handlers."""
        self._calls.append(call)
        self.wake()

    def drained(self) -> None:
        """The guest has read what it was sent."""
        if self._full:
            self.wake()

    def _loop(self) -> None:
        while not self._closing:
            # In this order: a guest that reads everything in between then wakes us.
            self._full = True
            reading = self._unread() < _ENOUGH
            self._full = not reading
            poll = select.poll()
            poll.register(self._wake_fd, select.POLLIN)
            for fd, events in self._port.interests(reading=reading):
                poll.register(fd, events)
            patience = self._port.patience()
            for fd, events in poll.poll(None if patience is None else patience * 1000):
                if fd == self._wake_fd:
                    os.read(fd, 4096)
                    while self._calls:
                        self._calls.popleft()()
                else:
                    self._deliver(self._port.handle(fd, events))

    def _deliver(self, data: bytes) -> None:
        """Hand on what came in, as far as there is room for it."""
        room = max(_MOST - self._unread(), 0) if len(data) > _ENOUGH else _MOST
        self._dropped += max(len(data) - room, 0)
        if data[:room]:
            self._receive(data[:room])
