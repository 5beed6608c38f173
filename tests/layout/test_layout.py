"""The PC's map: written once, and without two things in one place."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from pykvm import layout
from pykvm.bus import Bus
from pykvm.devices.pc import firmware_devices, pc_devices
from pykvm.devices.standard import standard_devices
from pykvm.irqchip.places import PLACES, placements

if TYPE_CHECKING:
    from pathlib import Path


class Stand:
    """Takes the place of a device."""

    def __init__(self, name: str) -> None:
        self.name = name

    def read(self, offset: int, size: int) -> int:
        return 0


def test_nothing_overlaps() -> None:
    devices = [*standard_devices(), *pc_devices()]
    irqchip = placements({name: Stand(name) for name in PLACES}, [])
    bus = Bus()
    bus.add_all([*devices, *irqchip])
    assert len(bus.ranges) == len(devices) + len(irqchip)
    Bus().add_all([*firmware_devices(), *irqchip])


def test_an_isa_interrupt_has_a_pin_of_its_own() -> None:
    pins = [layout.gsi_of(irq) for irq in layout.DEVICE_IRQS]
    assert len(pins) == len(set(pins)) == layout.ISA_IRQS - 1
    assert layout.gsi_of(layout.PIT_IRQ) == layout.CASCADE_IRQ
    assert all(0 <= pin < layout.IOAPIC_PINS for pin in pins)


# Numbers that mean a place of the PC wherever they stand.  Doctests and prose may have them.
PLACED = (
    *("COM1", "COM2", "FIRMWARE_LOG", "PIC_ELCR", "PVPANIC", "FW_CFG", "PM_TIMER"),
    *("PCI_CONFIG", "IOAPIC", "HPET", "EBDA_START"),
)


#: The same number, of something else: IA32_MCG_EXT_CTL, and IA32_MC0_ADDR.
NOT_OF_THE_PC = {
    ("PIC_ELCR", "pykvm/vcpu/msr_list.py"),
    ("PIC_ELCR", "pykvm/x86/msr_names.py"),
    ("FIRMWARE_LOG", "pykvm/x86/msr_names.py"),
}


@pytest.mark.parametrize("name", PLACED)
def test_it_is_written_once(name: str, root: Path) -> None:
    value: int = getattr(layout, name)
    number = re.compile(rf"0x0*{value:x}(?![0-9a-f])", re.IGNORECASE)
    found = []
    for path in sorted((root / "pykvm").rglob("*.py")):
        code = re.sub(r'""".*?"""|#[^\n]*|"[^"\n]*"', "", path.read_text(), flags=re.DOTALL)
        place = path.relative_to(root).as_posix()
        if path.name != "layout.py" and (name, place) not in NOT_OF_THE_PC and number.search(code):
            found.append(place)
    assert found == []
