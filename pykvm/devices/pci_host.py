"""A PCI bus with its host bridge and nothing else, for firmware that looks for the board it is on.

Sources: PCI Local Bus 3.0, 3.2.2.3.2 (configuration mechanism #1) and 6.1 (header); Intel 82441FX
data sheet (290549), 3.2 "PCI configuration space mapped registers"; QEMU, docs/specs/pci-ids.rst.

SeaBIOS takes the subsystem id to mean that there is fw_cfg, and knows by the device id how to make
its own shadow writable: by the PAM registers.  Here all of the first MiB is RAM whatever they say.
"""

from __future__ import annotations

import struct

from pykvm.devices.pci_config import PciConfig, PciConfigState
from pykvm.values.checks import integer
from pykvm.values.state import expect

__all__ = ["PciHost", "PciHostState"]

# Offsets from port 0xcf8.
CONFIG_ADDRESS = 0
CONFIG_DATA = 4

_ENABLE = 1 << 31
_FUNCTION_MASK = 0xFF_FF00

_PAM = range(0x59, 0x60)
_SPACE_SIZE = 256


class PciHostState(PciConfigState):
    """Those, and the PAM registers."""

    pam: bytes


class PciHost(PciConfig):
    """What PciConfig is, with a host bridge as device 0 of bus 0; every other slot is empty.

    >>> host = PciHost()
    >>> host.write(CONFIG_ADDRESS, 4, 0x8000_0000)
    >>> hex(host.read(CONFIG_DATA, 4))
    '0x12378086'
    >>> host.write(CONFIG_ADDRESS, 4, 0x8000_0800)
    >>> hex(host.read(CONFIG_DATA, 2))
    '0xffff'
    """

    def __init__(self, name: str = "pci-config") -> None:
        super().__init__(name)
        self._bridge = _host_bridge()

    def state(self) -> PciHostState:
        """See `pykvm.values.state.Stateful`."""
        return PciHostState(self._value, self._address, bytes(self._bridge[at] for at in _PAM))

    def restore(self, state: PciConfigState) -> None:
        """See `pykvm.values.state.Stateful`."""
        pam = expect(state, PciHostState).pam
        integer("PAM registers", len(pam), len(_PAM), len(_PAM))
        super().restore(state)
        self._bridge[_PAM.start : _PAM.stop] = pam

    def read(self, offset: int, size: int) -> int:
        """`size` bytes of the bridge's configuration space, if the address selects it."""
        register = self._register(offset)
        if register is None:
            return super().read(offset, size)
        return int.from_bytes(self._bridge[register : register + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Set what can be set.  Raises GuestReset."""
        register = self._register(offset)
        if register is None:
            super().write(offset, size, value)
            return
        for at, byte in enumerate(value.to_bytes(size, "little"), register):
            if at in _PAM:
                self._bridge[at] = byte

    def _register(self, offset: int) -> int | None:
        """Which of the bridge's registers data at `offset` is; None if it is none."""
        selected = self._address & _ENABLE and not self._address & _FUNCTION_MASK
        if offset < CONFIG_DATA or not selected:
            return None
        return (self._address & 0xFC) + offset - CONFIG_DATA


def _host_bridge() -> bytearray:
    """The configuration space of a 440FX at reset, on a board of QEMU's."""
    space = bytearray(_SPACE_SIZE)
    # Vendor, device, command (memory, master), status (fast), revision, class (host bridge).
    struct.pack_into("<HHHHB3s", space, 0, 0x8086, 0x1237, 0x0006, 0x0280, 2, b"\0\0\6")
    struct.pack_into("<HH", space, 0x2C, 0x1AF4, 0x1100)
    return space
