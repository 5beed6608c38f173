"""Devices of a machine that its user reaches by what they are."""

from __future__ import annotations

from pykvm.errors import ConfigError
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pykvm.bus import Device
    from pykvm.devices.acpi_pm import AcpiPm
    from pykvm.devices.stream import OutputLog
    from pykvm.devices.uart import Uart16550

__all__ = ["console", "first_serial", "power_button"]


def first_serial(devices: Mapping[str, Device]) -> Uart16550:
    """The first serial port.  Raises ConfigError without one."""
    from pykvm.devices.uart import Uart16550

    device = devices.get("com1")
    if not isinstance(device, Uart16550):
        raise ConfigError("this machine has no serial port named com1")
    return device


def console(devices: Mapping[str, Device], name: str) -> OutputLog:
    """The device of that name, which prints.  Raises ConfigError without one."""
    from pykvm.devices.stream import OutputLog

    device: object = devices.get(name)
    if isinstance(device, OutputLog):
        return device
    if device is not None:
        raise ConfigError(f"{name} is no console: it prints nothing")
    there = ", ".join(name for name, one in devices.items() if isinstance(one, OutputLog))
    if name == "com1":
        raise ConfigError("this machine has no serial port named com1")
    raise ConfigError(f"this machine has no console named {name}; it has {there or 'none'}")


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
