"""Port 0x92 of a PC since the PS/2: the fast way to the A20 gate and to a reset.

Sources: IBM, Personal System/2 Hardware Interface Technical Reference, "System Control Port A";
Intel ICH9 data sheet, 13.7.3 "PORT92: Fast A20 and Init Register".
"""

from __future__ import annotations

from pykvm.bus import GuestReset
from pykvm.bus.device import NamedDevice
from pykvm.typed import TYPE_CHECKING
from pykvm.values.state import State, expect

if TYPE_CHECKING:
    from pykvm.values.state import U8

__all__ = ["Port92", "Port92State"]

_INIT_NOW = 0x01
_ALT_A20_GATE = 0x02


class Port92State(State):
    """What was written last."""

    value: U8


class Port92(NamedDevice):
    """One register: what is written to it is read back.

    Bit 0 going from 0 to 1 resets the machine.  Bit 1 is the A20 gate, open from the start as
    firmware leaves it; it gates nothing: address line 20 is always there.

    >>> port = Port92()
    >>> port.read(0, 1)
    2
    >>> port.write(0, 1, 0x03)
    Traceback (most recent call last):
    ...
    pykvm.bus.guest_end.GuestReset: the guest reset the machine (port 0x92)
    """

    length = 1
    width = 1

    def __init__(self, name: str = "port92") -> None:
        self.name = name
        self.reset()

    def reset(self) -> None:
        """Return to the state in which firmware hands the machine over."""
        self._value = _ALT_A20_GATE

    def state(self) -> Port92State:
        """See `pykvm.values.state.Stateful`."""
        return Port92State(self._value)

    def restore(self, state: Port92State) -> None:
        """See `pykvm.values.state.Stateful`."""
        expect(state, Port92State)
        self._value = state.value

    def read(self, offset: int, size: int) -> int:
        """What was written last."""
        return self._value

    def write(self, offset: int, size: int, value: int) -> None:
        """Set the register.  Raises GuestReset."""
        before, self._value = self._value, value & 0xFF
        if value & ~before & _INIT_NOW:
            self._value &= ~_INIT_NOW
            raise GuestReset("port 0x92")

    def __str__(self) -> str:
        return f"{self.name}: {self._value:#04x}"
