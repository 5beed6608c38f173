"""The device by which a guest ends a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.guest import STOP_PORT
from pykvm.bus import GuestExit

if TYPE_CHECKING:
    from pykvm import Machine


class Stop:
    """Ends the run when the guest has done a batch."""

    name = "stop"

    def write(self, offset: int, size: int, value: int) -> None:
        raise GuestExit(value)


def add_stop(machine: Machine) -> None:
    machine.add(Stop(), pio=STOP_PORT, length=1)
