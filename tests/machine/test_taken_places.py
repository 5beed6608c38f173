"""A place that is taken is refused: devices, memory, and what KVM answers itself."""

from __future__ import annotations

import pytest

from pykvm import BusConflict, GuestMemory, Machine, Mode, Placement, Space
from support.guest import MakeGuest
from support.irqchips import IRQCHIPS
from support.odd import Sensor

pytestmark = pytest.mark.kvm

HALT = b"\xfa\xf4"


def test_a_device_over_memory_is_refused_with_both_names_and_all_numbers() -> None:
    memory = GuestMemory()
    memory.add_ram(0, 0x10000)
    memory.add_rom(0xF0000, HALT, name="firmware")
    with Machine(memory=memory) as machine:
        for first, length, other in (
            (0x2000, 4, "ram (addresses 0x0-0xffff)"),
            (0xFFFF, 2, "ram (addresses 0x0-0xffff)"),
            (0xF0000, 1, "firmware (addresses 0xf0000-0xf0fff)"),
            (0, 1 << 20, "ram (addresses 0x0-0xffff)"),
        ):
            with pytest.raises(BusConflict) as raised:
                machine.add(Sensor(), mmio=first, length=length)
            last = first + length - 1
            assert (
                raised.value.message == f"sensor (addresses {first:#x}-{last:#x}) overlaps {other}"
            )
        # Beside it, and over what was memory, it may stand.
        machine.add(Sensor(), mmio=0x10000, length=0x1000)
        memory.remove(memory.regions[0])
        machine.add(Sensor(name="lower"), mmio=0x2000, length=4)


def test_memory_over_a_device_is_refused_and_nothing_is_added() -> None:
    with Machine(memory="1M") as machine:
        machine.add(Sensor(), mmio=0xD0001000, length=4)
        before = machine.memory.regions
        for ram in (True, False):
            with pytest.raises(BusConflict) as raised:
                if ram:
                    machine.memory.add_ram(0xD0000000, 0x2000, name="more")
                else:
                    machine.memory.add_rom(0xD0000000, bytes(0x2000), name="more")
            assert raised.value.message == (
                "more (addresses 0xd0000000-0xd0001fff) overlaps sensor "
                "(addresses 0xd0001000-0xd0001003)"
            )
        assert machine.memory.regions == before
        machine.remove("sensor")
        machine.memory.add_ram(0xD0000000, 0x2000)


def test_what_takes_only_writes_shares_a_place_with_a_rom(guest: MakeGuest) -> None:
    """A flash chip's commands: the guest reads the ROM, and its writes go to the device."""

    class Flash:
        name = "flash"

        def __init__(self) -> None:
            self.commands: list[tuple[int, int]] = []

        def write(self, offset: int, size: int, value: int) -> None:
            self.commands.append((offset, value))

    machine = guest(
        """
        A0 03 00 00 D0       mov al, [0xd0000003]
        A2 05 00 00 D0       mov [0xd0000005], al
        E6 F4                out 0xf4, al
        """,
        mode=Mode.PROTECTED,
    )
    flash = Flash()
    machine.memory.add_rom(0xD0000000, bytes(range(16)))
    machine.add(flash, mmio=0xD0000000, length=0x1000)
    assert machine.run(timeout=10).exit_code == 3
    assert flash.commands == [(5, 3)]
    machine.add(flash, mmio=0xD0010000, length=0x1000)
    machine.memory.add_rom(0xD0010000, bytes(16))
    with pytest.raises(BusConflict):
        machine.add(flash, mmio=0x2000, length=1)


@pytest.mark.parametrize(
    ("irqchip", "place", "other"),
    [
        ("user", {"mmio": 0xFEE00000}, "overlaps lapic (addresses 0xfee00000-0xfee00fff)"),
        ("user", {"pio": 0x20}, "overlaps pic-master (ports 0x20-0x21)"),
        ("kernel", {"mmio": 0xFEE00FFF}, "overlaps KVM's local APIC (addresses 0xfee00000-0x"),
        ("split", {"mmio": 0xFEE00000}, "overlaps KVM's local APIC (addresses 0xfee00000-0x"),
        ("kernel", {"mmio": 0xFEC00000}, "overlaps KVM's I/O APIC (addresses 0xfec00000-0x"),
        ("kernel", {"pio": 0x21}, "overlaps KVM's 8259 (ports 0x20-0x21)"),
        ("kernel", {"pio": 0x43}, "overlaps KVM's 8254 (ports 0x40-0x43)"),
        ("kernel", {"pio": 0x61}, "overlaps KVM's speaker port (ports 0x61-0x61)"),
    ],
)
def test_where_interrupt_controllers_answer(
    irqchip: str, place: dict[str, int], other: str
) -> None:
    with Machine(memory="1M", irqchip=irqchip) as machine:
        with pytest.raises(BusConflict) as raised:
            machine.add(Sensor(), length=1, **place)
        assert other in raised.value.message


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_memory_over_interrupt_controllers_is_refused(irqchip: str) -> None:
    memory = GuestMemory()
    memory.add_ram(0xFEE00000, 0x1000, name="low")
    with pytest.raises(BusConflict, match="low"):
        Machine(memory=memory, irqchip=irqchip)
    # Without them it is memory like any other.
    memory = GuestMemory()
    memory.add_ram(0xFEE00000, 0x1000)
    Machine(memory=memory, irqchip="none").close()


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_a_device_of_the_users_stands_where_a_clock_would(irqchip: str) -> None:
    devices = [Placement(Sensor(), Space.PIO, 0x71, 1)]
    with Machine(irqchip=irqchip, devices=devices) as machine:
        assert machine.bus.read(Space.PIO, 0x71, 1) == 7
        assert machine.bus.read(Space.PIO, 0x608, 4) is not None, "the PM timer has its place"
        assert "rtc" not in machine.devices
