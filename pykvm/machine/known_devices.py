"""Devices of a machine that its user reaches by what they are."""

from __future__ import annotations

from pykvm.errors import ConfigError
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pykvm.bus import Device
    from pykvm.devices.acpi_pm import AcpiPm
    from pykvm.devices.uart import Uart16550

__all__ = ["first_serial", "power_button"]


def first_serial(devices: Mapping[str, Device]) -> Uart16550:
    """The first serial port.  Raises ConfigError without one."""
    from pykvm.devices.uart import Uart16550

    device = devices.get("com1")
    if not isinstance(device, Uart16550):
        raise ConfigError("this machine has no serial port named com1")
    return device


def power_button(devices: Mapping[str, Device]) -> AcpiPm:
    """The device with the power button.  Raises ConfigError without one."""
    from pykvm.devices.acpi_pm import AcpiPm

    power = devices.get("acpi-pm")
    if not isinstance(power, AcpiPm):
        raise ConfigError(
            "this machine has no power button",
            hint="those of kernels have; for others: devices=standard_devices() + pc_devices()",
        )
    return power
