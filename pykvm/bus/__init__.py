"""Ports and addresses, and the devices that answer there."""

from pykvm.bus.bus import Area, Bus, Range, check_free
from pykvm.bus.device import (
    Device,
    Placement,
    PostedDevice,
    Readable,
    Space,
    Writable,
    check_device,
    check_irq,
    check_placement,
    odd_answer,
    placed,
)
from pykvm.bus.guest_end import GuestEnd, GuestExit, GuestPanic, GuestPowerOff, GuestReset

__all__ = [
    "Area",
    "Bus",
    "Device",
    "GuestEnd",
    "GuestExit",
    "GuestPanic",
    "GuestPowerOff",
    "GuestReset",
    "Placement",
    "PostedDevice",
    "Range",
    "Readable",
    "Space",
    "Writable",
    "check_device",
    "check_free",
    "check_irq",
    "check_placement",
    "odd_answer",
    "placed",
]
