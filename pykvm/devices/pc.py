"""What a kernel expects around it on a PC beside the standard devices."""

from __future__ import annotations

from pykvm import layout
from pykvm.bus import Placement, Space
from pykvm.devices.acpi_pm import AcpiPm
from pykvm.devices.fw_cfg import DMA_ADDRESS, FwCfg
from pykvm.devices.pc_testdev import pc_testdev
from pykvm.devices.pvpanic import PvPanic
from pykvm.devices.standard import standard_devices

__all__ = ["firmware_devices", "pc_devices"]


def pc_devices() -> list[Placement]:
    """New devices in their places: ``acpi-pm``, ``pvpanic``, ``fw-cfg`` and QEMU's ``pc-testdev``.

    >>> list(dict.fromkeys(placement.name for placement in pc_devices()))
    ['acpi-pm', 'pvpanic', 'fw-cfg', 'pc-testdev', 'pc-testdev-irq', 'pc-testdev-memory']
    """
    fw_cfg = FwCfg()
    return [
        Placement(AcpiPm(), Space.PIO, layout.PM1A_EVT, AcpiPm.length, irq=layout.SCI_IRQ),
        Placement(PvPanic(), Space.PIO, layout.PVPANIC, PvPanic.length),
        Placement(fw_cfg, Space.PIO, layout.FW_CFG, 2),
        Placement(fw_cfg, Space.PIO, layout.FW_CFG + DMA_ADDRESS, 8, offset=DMA_ADDRESS),
        *pc_testdev(),
    ]


def firmware_devices() -> list[Placement]:
    """New devices for firmware: the standard ones, those of a PC, and two that firmware uses.

    A PCI host bridge takes the place of ``pci-config``; ``firmware-log`` has the log of SeaBIOS
    or OVMF.
    """
    from pykvm.devices.debugcon import DebugConsole
    from pykvm.devices.pci_host import PciHost

    return [
        *standard_devices(without=["pci-config"]),
        *pc_devices(),
        Placement(PciHost(), Space.PIO, layout.PCI_CONFIG, PciHost.length),
        Placement(DebugConsole("firmware-log"), Space.PIO, layout.FIRMWARE_LOG, 1),
    ]
