"""QEMU's pc-testdev: ports and memory that keep their bytes, and lines for the guest to drive."""

from __future__ import annotations

from itertools import product

import pytest

from pykvm.bus import Bus, Placement, Space
from pykvm.devices import DebugConsole, standard_devices
from pykvm.devices.pc_testdev import KeptMemory, KeptPorts, LinePorts, pc_testdev
from support.attach import isa_lines
from support.lines import Line

PIO, MMIO = Space.PIO, Space.MMIO


@pytest.fixture
def bus() -> Bus:
    bus = Bus()
    bus.add_all([*standard_devices(), *pc_testdev()])
    return bus


class TestPorts:
    @pytest.mark.parametrize(
        ("port", "size", "value"),
        [
            *((0xE0 + at, 1, 0x44332211 >> 8 * at & 0xFF) for at in range(4)),
            (0xE0, 2, 0x2211),
            (0xE2, 2, 0x4433),
            (0xE0, 4, 0x44332211),
            (0xE8, 1, 0x11),
            (0xEA, 2, 0x4433),
        ],
    )
    def test_read_in_any_width(self, bus: Bus, port: int, size: int, value: int) -> None:
        bus.write(PIO, 0xE0, 4, 0x44332211)
        assert bus.read(PIO, port, size) == value

    def test_written_in_any_width(self, bus: Bus) -> None:
        bus.write(PIO, 0xE0, 4, 0)
        bus.write(PIO, 0xE1, 1, 0xAA)
        bus.write(PIO, 0xE2, 2, 0xCCBB)
        bus.write(PIO, 0xE8, 1, 0x99)
        assert bus.read(PIO, 0xE0, 4) == 0xCCBBAA99

    def test_the_debug_console_stays_where_it_is(self, bus: Bus) -> None:
        bus.write(PIO, 0xE0, 4, 0)
        bus.write(PIO, 0xE8, 4, 0x44_33_41_11)
        console = bus.find(PIO, 0xE9)
        assert console is not None
        assert isinstance(console.device, DebugConsole)
        assert console.device.text == "A"
        assert bus.read(PIO, 0xE0, 4) == 0x44330011
        assert bus.read(PIO, 0xE8, 4) == 0x4433E911

    def test_a_page_to_forget_is_taken_and_leaves_the_rest_alone(self, bus: Bus) -> None:
        bus.write(PIO, 0xE0, 4, 0x44332211)
        assert bus.write(PIO, 0xE4, 4, 0xFFFFF000)
        assert bus.read(PIO, 0xE4, 4) == 0
        assert bus.read(PIO, 0xE0, 4) == 0x44332211

    def test_no_access_makes_it_keep_more_than_four_bytes(self) -> None:
        for offset, size in product(range(12), (1, 2, 4, 8)):
            ports = KeptPorts()
            ports.write(offset, size, (1 << 8 * size) - 1)
            assert len(ports._data) == 4, (offset, size)
            assert 0 <= ports.read(offset, size) < 1 << 8 * size, (offset, size)


class TestIrqLines:
    def test_a_byte_drives_its_line(self, bus: Bus) -> None:
        wires: dict[int, Line] = {}
        lines = bus.find(PIO, 0x2000)
        assert lines is not None
        assert isinstance(lines.device, LinePorts)
        isa_lines(lines.device, lambda irq: wires.setdefault(irq, Line()))
        for port, value in ((0x200E, 1), (0x200E, 0), (0x2000, 0x80), (0x200E, 2)):
            bus.write(PIO, port, 1, value)
        assert {irq: wire.changes for irq, wire in wires.items()} == {
            14: [True, False, True],
            0: [True],
        }
        assert bus.read(PIO, 0x200E, 1) == 0

    @pytest.mark.parametrize(("offset", "size"), [(2, 1), (16, 1), (23, 1), (4, 2), (4, 4)])
    def test_what_drives_none(self, offset: int, size: int) -> None:
        wires: dict[int, Line] = {}
        lines = LinePorts()
        isa_lines(lines, lambda irq: wires.setdefault(irq, Line()))
        lines.write(offset, size, 1)
        assert wires == {}

    def test_without_an_interrupt_controller_nothing_happens(self) -> None:
        LinePorts().write(5, 1, 1)


class TestKeptMemory:
    def test_keeps_what_is_written_in_any_width(self, bus: Bus) -> None:
        bus.write(MMIO, 0xFF00_0000, 8, 0x8877665544332211)
        bus.write(MMIO, 0xFF00_0002, 1, 0xAA)
        assert bus.read(MMIO, 0xFF00_0000, 4) == 0x44AA2211
        assert bus.read(MMIO, 0xFF00_0004, 2) == 0x6655
        assert bus.read(MMIO, 0xFF00_FFFF, 1) == 0

    def test_ends_after_64_kib(self, bus: Bus) -> None:
        bus.write(MMIO, 0xFF00_FFFF, 1, 0x55)
        assert bus.read(MMIO, 0xFF00_FFFF, 1) == 0x55
        assert bus.read(MMIO, 0xFF01_0000, 1) is None
        memory = KeptMemory()
        memory.write(0xFFFC, 4, 1)
        assert len(memory._data) == 0x10000


def test_it_can_be_taken_away(bus: Bus) -> None:
    for name in ("pc-testdev", "pc-testdev-irq", "pc-testdev-memory"):
        bus.remove(name)
    assert bus.read(PIO, 0xE0, 4) is None
    bus.add(Placement(KeptPorts("mine"), PIO, 0xE0, 4))
