"""The bytes that a BIOS keeps for itself: its data areas, and the RAM of the clock."""

from __future__ import annotations

import pytest
from tables.acpi_reader import Memory

from pykvm.tables import Hardware, build
from pykvm.tables.cmos import cmos

MIB = 1 << 20
GIB = 1 << 30


class TestBiosData:
    def test_where_the_ebda_and_the_serial_ports_are(self) -> None:
        memory = Memory(build(Hardware(devices=frozenset(["com1", "com2"]))).pieces)
        assert memory.unpack("4H", 0x400) == (0x3F8, 0x2F8, 0, 0)
        assert memory.unpack("H", 0x40E) == (0x9FC0,)
        assert memory.unpack("H", 0x410) == (2 << 9,)
        assert memory.unpack("H", 0x413) == (639,)
        assert memory.bytes[0x9FC00] == 1, "KiB"

    def test_a_port_that_is_missing_leaves_no_gap(self) -> None:
        memory = Memory(build(Hardware(devices=frozenset(["com2"]))).pieces)
        assert memory.unpack("4H", 0x400) == (0x2F8, 0, 0, 0)


class TestCmos:
    @staticmethod
    def number(content: dict[int, int], index: int, size: int = 2) -> int:
        return int.from_bytes(bytes(content[index + step] for step in range(size)), "little")

    @pytest.mark.parametrize(
        ("ram", "base", "extended", "above_16", "above_4g"),
        [
            ([(0, 512 << 10)], 512, 0, 0, 0),
            ([(0, 2 * MIB)], 640, 1024, 0, 0),
            ([(0, 64 * MIB)], 640, 64512, 768, 0),
            ([(0, 3 * GIB)], 640, 65535, (3 * GIB - 16 * MIB) >> 16, 0),
            ([(0, 3 * GIB), (4 * GIB, 6 * GIB)], 640, 65535, 48896, 2 * GIB >> 16),
            ([(4 * GIB, 5 * GIB), (0, 2 * MIB), (2 * MIB, 3 * MIB)], 640, 2048, 0, GIB >> 16),
            ([(MIB, 64 * MIB)], 0, 0, 0, 0),
            ([(0, 6 * GIB)], 640, 65535, 65280, 2 * GIB >> 16),
            ([(0, 1 << 45)], 640, 65535, 65280, 0xFFFFFF),
        ],
    )
    def test_sizes(
        self,
        ram: list[tuple[int, int]],
        base: int,
        extended: int,
        above_16: int,
        above_4g: int,
    ) -> None:
        content = cmos(ram, 1)
        assert self.number(content, 0x15) == base
        assert self.number(content, 0x17) == self.number(content, 0x30) == extended
        assert self.number(content, 0x34) == above_16
        assert self.number(content, 0x5B, 3) == above_4g

    @pytest.mark.parametrize(("vcpus", "byte"), [(1, 0), (4, 3), (256, 255), (257, 0), (300, 0)])
    def test_processors(self, vcpus: int, byte: int) -> None:
        assert cmos([(0, MIB)], vcpus)[0x5F] == byte

    def test_the_checksum_has_its_high_byte_first(self) -> None:
        content = cmos([(0, 64 * MIB)], 1)
        total = sum(content.get(index, 0) for index in range(0x10, 0x2E))
        assert total > 0xFF
        assert content[0x2E] << 8 | content[0x2F] == total

    def test_nothing_is_said_of_the_clock(self) -> None:
        assert not set(cmos([(0, MIB)], 1)) & ({*range(0xE), 0x32})
