"""For a person who waits at a terminal: why a Linux kernel has printed nothing yet."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress

from pykvm.boot.linux import UNPACKS_ITSELF
from pykvm.cli.report import say
from pykvm.machine.known_devices import first_serial
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.machine import Machine

__all__ = ["PATIENCE", "Silence", "is_watched"]

#: After so many seconds without output a person begins to wonder.
PATIENCE = 2.0

_STDERR = 2


def is_watched() -> bool:
    """Whether a terminal reads stderr."""
    return os.isatty(_STDERR)


class Silence:
    """While entered: says once what the kernel does, if it has printed nothing for a while."""

    def __init__(self, machine: Machine, *, patience: float = PATIENCE) -> None:
        self._machine = machine
        self._patience = patience
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._wait, name="silence", daemon=True)

    def __enter__(self) -> None:
        # Where no thread is to be had, the run matters more than this line.
        with suppress(RuntimeError):
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _wait(self) -> None:
        # They are for the main thread, which may be in the guest.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        if self._over.wait(self._patience) or self._has_printed():
            return
        first = "unpacks itself" if self._unpacks_itself() else "sets up its memory"
        say(f"no output yet: the kernel {first} before it can print", until=0.0)

    def _unpacks_itself(self) -> bool:
        machine = self._machine
        asked_to = machine.config.boot in ("linux32", "linux64")
        return asked_to or any(UNPACKS_ITSELF in note for note in machine.notes)

    def _has_printed(self) -> bool:
        devices = self._machine.devices
        return "com1" not in devices or first_serial(devices).printed > 0
