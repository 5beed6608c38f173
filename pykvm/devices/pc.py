"""What a kernel expects around it on a PC beside the standard devices."""

from __future__ import annotations

from pykvm.bus import Placement, Space
from pykvm.devices.acpi_pm import AcpiPm
from pykvm.devices.pvpanic import PvPanic
from pykvm.tables import ports

__all__ = ["pc_devices"]


def pc_devices() -> list[Placement]:
    """New devices in their places: ``acpi-pm`` and ``pvpanic``.

    >>> [placement.name for placement in pc_devices()]
    ['acpi-pm', 'pvpanic']
    """
    return [
        Placement(AcpiPm(), Space.PIO, ports.PM1A_EVT, AcpiPm.length),
        Placement(PvPanic(), Space.PIO, ports.PVPANIC, PvPanic.length),
    ]
