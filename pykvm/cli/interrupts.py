"""The signals that end a run: SIGINT, SIGTERM, SIGHUP and SIGQUIT."""

from __future__ import annotations

import os

from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from typing import Any

    from pykvm.result import Result
else:
    # The part of it in C: the other one makes enumerations, and takes longer than a small guest.
    import _signal as signal

__all__ = ["Interrupts"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Interrupts:
    """While entered, these signals end the run in an orderly way instead of killing the process.

    At first, while things are being set up, a signal raises KeyboardInterrupt.  After `hold` it is
    only remembered.  During `run` it stops the run; a second one that comes while the first has had
    no effect yet (a device that waits for something) raises KeyboardInterrupt out of it.

    Where the guest owns the terminal, Ctrl-C is for it: `passes` is asked at each SIGINT of a run,
    and what it takes does not end the run.

    Signals that are ignored when the program starts, as under nohup, stay ignored.
    """

    def __init__(self, stop: Callable[[], bool]) -> None:
        """`stop` ends the run in progress, and returns False if there is none."""
        self._stop = stop
        self._raising = True
        self._running = False
        self._before: dict[int, Any] = {}
        #: Asked in the signal handler whether a SIGINT is for the guest.
        self.passes: Callable[[], bool] | None = None
        #: The first signal that came, or None.
        self.received: int | None = None
        #: How many came.
        self.signals = 0
        # Readable from the first signal on: every wait includes it.
        self.fd, self._write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def __enter__(self) -> Interrupts:
        for number in _SIGNALS:
            before = signal.getsignal(number)
            if before != signal.SIG_IGN:
                self._before[number] = before
                signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        self._raising = False
        for number, before in self._before.items():
            signal.signal(number, before)
        os.close(self.fd)
        os.close(self._write_fd)

    def hold(self) -> None:
        """From now on nothing is raised but out of `run`: there are things to put back."""
        self._raising = False

    def run(self, run: Callable[[], Result]) -> Result:
        """Call `run` so that a signal at any moment, before or during it, ends it."""
        self._running = True
        try:
            if self.received is not None:
                raise KeyboardInterrupt
            return run()
        finally:
            self._running = False

    def _take(self, number: int, frame: object) -> None:
        again = self.received is not None
        asked = number == signal.SIGINT and self._running and not again
        if asked and self.passes is not None and self.passes():
            return
        self.signals += 1
        if not again:
            self.received = number
            os.write(self._write_fd, b"!")
        if self._raising or (self._running and (not self._stop() or again)):
            # Once only: what is left to do then is putting things back.
            self._raising = self._running = False
            raise KeyboardInterrupt
