"""The devices that every machine has unless told otherwise, and where they stand."""

from __future__ import annotations

from pykvm import layout
from pykvm.bus import Placement, Space
from pykvm.devices.debug_exit import DebugExit
from pykvm.devices.debugcon import DebugConsole
from pykvm.devices.i8042 import KeyboardController
from pykvm.devices.pci_config import PciConfig
from pykvm.devices.port92 import Port92
from pykvm.devices.post import PostPort
from pykvm.devices.uart import Uart16550
from pykvm.errors import ConfigError
from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import words

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["standard_devices"]


def standard_devices(*, without: Collection[str] = ()) -> list[Placement]:
    """New standard devices in their places, those named in `without` left out.

    The names are ``com1``, ``com2``, ``debugcon``, ``debug-exit``, ``post``, ``i8042``, ``port92``
    and ``pci-config``.  To replace one, leave it out and add a `Placement` of your own.

    Raises ConfigError for a name that is none of these.

    >>> [placement.name for placement in standard_devices(without=["com2", "i8042"])]
    ['com1', 'debugcon', 'debug-exit', 'post', 'port92', 'pci-config']
    """
    keyboard = KeyboardController()
    placements = [
        Placement(Uart16550("com1"), Space.PIO, layout.COM1, 8, irq=layout.COM1_IRQ),
        Placement(Uart16550("com2"), Space.PIO, layout.COM2, 8, irq=layout.COM2_IRQ),
        Placement(DebugConsole(), Space.PIO, layout.DEBUGCON, 1),
        Placement(DebugExit(), Space.PIO, layout.DEBUG_EXIT, 4),
        Placement(PostPort(), Space.PIO, layout.POST, 1),
        # Ports 0x61 to 0x63 belong to others (0x61: NMI and speaker).
        Placement(keyboard, Space.PIO, layout.KEYBOARD_DATA, 1, irq=layout.KEYBOARD_IRQ),
        Placement(keyboard, Space.PIO, layout.KEYBOARD_COMMAND, 1, offset=4),
        Placement(Port92(), Space.PIO, layout.PORT_92, 1),
        Placement(PciConfig(), Space.PIO, layout.PCI_CONFIG, 8),
    ]
    names = list(dict.fromkeys(placement.name for placement in placements))
    for name in words("without", without):
        if name not in names:
            raise ConfigError(f"no standard device {name!r}; there is {', '.join(names)}")
    return [placement for placement in placements if placement.name not in without]
