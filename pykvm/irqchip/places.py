"""Where interrupt controllers and clocks stand on the bus, whichever half of them is KVM's."""

from __future__ import annotations

from pykvm import layout
from pykvm.bus import Placement, Space
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pykvm.bus import Device

__all__ = ["PLACES", "placements"]

#: (space, address, length) by the device's name.
PLACES = {
    "pic-master": (Space.PIO, layout.PIC_MASTER, 2),
    "pit": (Space.PIO, layout.PIT, 4),
    "port61": (Space.PIO, layout.PORT_61, 1),
    "rtc": (Space.PIO, layout.RTC, 2),
    "pic-slave": (Space.PIO, layout.PIC_SLAVE, 2),
    "pic-elcr": (Space.PIO, layout.PIC_ELCR, 2),
    "pm-timer": (Space.PIO, layout.PM_TIMER, 4),
    "ioapic": (Space.MMIO, layout.IOAPIC, 0x1000),
    "hpet": (Space.MMIO, layout.HPET, 0x400),
    "lapic": (Space.MMIO, layout.LOCAL_APIC, 0x1000),
}


def placements(devices: Mapping[str, Device], others: Sequence[Placement]) -> list[Placement]:
    """Each of the devices, which are named as in `PLACES`, in its place.

    But not one whose place a device among the `others` has any part of: that one was put there to
    be in its stead.
    """
    return [
        Placement(device, space, address, length, 0, None)
        for name, device in devices.items()
        for space, address, length in (PLACES[name],)
        if not any(
            other.space is space
            and other.address < address + length
            and address < other.address + other.length
            for other in others
        )
    ]
