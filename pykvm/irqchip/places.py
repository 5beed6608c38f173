"""Where interrupt controllers and clocks stand on the bus, whichever half of them is KVM's."""

from __future__ import annotations

from pykvm.bus import Placement, Space
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pykvm.bus import Device

__all__ = ["PLACES", "placements"]

#: (space, address, length) by the device's name.
PLACES = {
    "pic-master": (Space.PIO, 0x20, 2),
    "pit": (Space.PIO, 0x40, 4),
    "port61": (Space.PIO, 0x61, 1),
    "rtc": (Space.PIO, 0x70, 2),
    "pic-slave": (Space.PIO, 0xA0, 2),
    "pic-elcr": (Space.PIO, 0x4D0, 2),
    "pm-timer": (Space.PIO, 0x608, 4),
    "ioapic": (Space.MMIO, 0xFEC00000, 0x1000),
    "hpet": (Space.MMIO, 0xFED00000, 0x400),
    "lapic": (Space.MMIO, 0xFEE00000, 0x1000),
}


def placements(devices: Mapping[str, Device], others: Sequence[Placement]) -> list[Placement]:
    """Each of the devices, which are named as in `PLACES`, in its place.

    But not one whose place a device among the `others` has any part of: that one was put there to
    be in its stead.
    """
    return [
        Placement(device, space, address, length)
        for name, device in devices.items()
        for space, address, length in (PLACES[name],)
        if not any(
            other.space is space
            and other.address < address + length
            and address < other.address + other.length
            for other in others
        )
    ]
