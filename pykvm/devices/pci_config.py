"""The ports of a PC's PCI configuration, without PCI, and the reset register among them."""

from __future__ import annotations

from pykvm.bus import GuestReset
from pykvm.bus.device import NamedDevice
from pykvm.typed import TYPE_CHECKING
from pykvm.values.state import State, expect

if TYPE_CHECKING:
    from pykvm.values.state import U8, U32

__all__ = ["PciConfig", "PciConfigState"]

_SYS_RST = 0x02
_RST_CPU = 0x04
_FULL_RST = 0x08

_RESET_REGISTER = (1, 1)
_ADDRESS_REGISTER = (0, 4)
# CONFIG_ADDRESS: enable, bus, device, function, register; the other bits read 0.
_ADDRESS_BITS = 0x80FFFFFC


class PciConfigState(State):
    """Both registers as last written."""

    control: U8
    address: U32


class PciConfig(NamedDevice):
    """Ports 0xcf8 to 0xcff, with the reset control register of PIIX and ICH chipsets at 0xcf9.

    RST_CPU (bit 2) going from 0 to 1 resets the machine: with FULL_RST and SYS_RST by a power
    cycle, with SYS_RST alone by a hard reset, else by INIT to the processors.

    That register heeds only byte accesses: a dword written to 0xcf8 selects a PCI register, and
    its second byte must not reset anything.  It can be read back, as guests do to find out whether
    there is PCI; in the register that it selects, at 0xcfc, there is no device: all ones
    (Intel ICH9 data sheet, 13.7.5; PCI Local Bus 3.0, 3.2.2.3.2 and 6.1).
    """

    length = 8

    def __init__(self, name: str = "pci-config") -> None:
        self.name = name
        self._value = 0
        self._address = 0

    def state(self) -> PciConfigState:
        """See `pykvm.values.state.Stateful`."""
        return PciConfigState(self._value, self._address)

    def restore(self, state: PciConfigState) -> None:
        """See `pykvm.values.state.Stateful`."""
        expect(state, PciConfigState)
        self._value, self._address = state.control, state.address

    def read(self, offset: int, size: int) -> int:
        """Either register as last written; all ones for any other access."""
        if (offset, size) == _RESET_REGISTER:
            return self._value
        if (offset, size) == _ADDRESS_REGISTER:
            return self._address
        return (1 << (8 * size)) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Set a register.  Raises GuestReset."""
        if (offset, size) == _ADDRESS_REGISTER:
            self._address = value & _ADDRESS_BITS
        if (offset, size) != _RESET_REGISTER:
            return
        before, self._value = self._value, value & (_SYS_RST | _RST_CPU | _FULL_RST)
        if not self._value & ~before & _RST_CPU:
            return
        kind = _reset_kind(self._value)
        self._value = 0
        raise GuestReset(f"port 0xcf9: {kind}")


def _reset_kind(value: int) -> str:
    if not value & _SYS_RST:
        return "soft, INIT"
    return "cold, power cycle" if value & _FULL_RST else "warm, hard reset"
