"""The port that ends the run, after QEMU's isa-debug-exit."""

from __future__ import annotations

from pykvm.bus import GuestExit
from pykvm.bus.device import NamedDevice

__all__ = ["DebugExit"]


class DebugExit(NamedDevice):
    """Whatever is written ends the run with that exit code, so 0 can mean success."""

    stateless = True

    def __init__(self, name: str = "debug-exit") -> None:
        self.name = name

    def write(self, offset: int, size: int, value: int) -> None:
        """End the run.  Raises GuestExit."""
        raise GuestExit(value)
