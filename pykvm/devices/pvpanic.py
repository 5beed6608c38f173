"""pvpanic: a port by which a guest reports that it has died.

Source: QEMU, docs/specs/pvpanic.rst; Linux, include/uapi/misc/pvpanic.h.
"""

from __future__ import annotations

from pykvm.bus import GuestPanic, GuestPowerOff
from pykvm.bus.device import NamedDevice
from pykvm.typed import TYPE_CHECKING
from pykvm.values.state import State, expect

if TYPE_CHECKING:
    from pykvm.values.state import U64

__all__ = ["PvPanic", "PvPanicState"]

PANICKED = 1 << 0
CRASH_LOADED = 1 << 1
SHUTDOWN = 1 << 2


class PvPanicState(State):
    """How many crashes the guest's own crash kernel took."""

    crashes_handled: U64


class PvPanic(NamedDevice):
    """One byte, on a PC at port 0x505: reading gives the events that it takes, writing is one.

    A panic ends the run as a crash, a shutdown as a power-off.  A panic that the guest's own crash
    kernel deals with is only counted, in `crashes_handled`: the guest runs on.

    >>> PvPanic().write(0, 1, 1)
    Traceback (most recent call last):
    ...
    pykvm.bus.guest_end.GuestPanic: guest panic: it said so by pvpanic
    """

    width = 1
    length = 1

    def __init__(self, name: str = "pvpanic") -> None:
        self.name = name
        self.crashes_handled = 0

    def state(self) -> PvPanicState:
        """See `pykvm.values.state.Stateful`."""
        return PvPanicState(self.crashes_handled)

    def restore(self, state: PvPanicState) -> None:
        """See `pykvm.values.state.Stateful`."""
        expect(state, PvPanicState)
        self.crashes_handled = state.crashes_handled

    def read(self, offset: int, size: int) -> int:
        """The events that are known here."""
        return PANICKED | CRASH_LOADED | SHUTDOWN

    def write(self, offset: int, size: int, value: int) -> None:
        """An event.  Raises GuestPanic or GuestPowerOff; those it does not know are ignored."""
        if value & PANICKED:
            raise GuestPanic("it said so by pvpanic")
        if value & CRASH_LOADED:
            self.crashes_handled += 1
        if value & SHUTDOWN:
            raise GuestPowerOff("pvpanic")
