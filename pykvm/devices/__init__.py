"""What a guest finds on the bus: one file per device.

A device knows offsets, an interrupt line and its host side; it never knows KVM or its own address.
Nothing that a guest does to one raises anything but `GuestExit` and its siblings of `pykvm.bus`, or
makes it keep more than a fixed amount of memory.
"""

from __future__ import annotations

from pykvm.devices.debug_exit import DebugExit
from pykvm.devices.debugcon import DebugConsole
from pykvm.devices.i8042 import KeyboardController
from pykvm.devices.line import InterruptLine
from pykvm.devices.pci_config import PciConfig
from pykvm.devices.port92 import Port92
from pykvm.devices.post import PostPort
from pykvm.devices.standard import standard_devices
from pykvm.devices.stream import OutputLog
from pykvm.devices.uart import Uart16550

__all__ = [
    "DebugConsole",
    "DebugExit",
    "InterruptLine",
    "KeyboardController",
    "OutputLog",
    "PciConfig",
    "Port92",
    "PostPort",
    "Uart16550",
    "standard_devices",
]
