"""fw_cfg by its ports and by DMA: items, files, ends, and everything that is no such thing."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.bus import Bus, Placement, Space
from pykvm.devices.fw_cfg import DATA, DMA_ADDRESS, SELECTOR, Contents, FwCfg, Key, check_files
from pykvm.errors import ConfigError
from pykvm.memory import GuestMemory

ERROR, READ, SKIP, SELECT, WRITE = 1, 2, 4, 8, 16
RAM = 0x1_0000
ROM_AT = 0x2_0000
ACCESS = 0x100
TARGET = 0x200

CONTENTS = Contents(
    {Key.NB_CPUS: b"\x02\0", 0x8002: b"local", Key.KERNEL_DATA: bytes(range(200))},
    {"opt/org.x/b": b"second", "opt/org.x/a": b"first", "etc/empty": b""},
)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory() as memory:
        memory.add_ram(0, RAM)
        memory.add_rom(ROM_AT, bytes(0x1000))
        yield memory


@pytest.fixture
def device(memory: GuestMemory) -> FwCfg:
    return FwCfg(lambda: CONTENTS, memory)


def ports(device: FwCfg, key: int, length: int) -> bytes:
    """Read an item as a guest does, byte by byte."""
    device.write(SELECTOR, 2, key)
    return bytes(device.read(DATA, 1) for _ in range(length))


def dma(device: FwCfg, memory: GuestMemory, control: int, length: int, target: int = TARGET) -> int:
    """Carry out one access; returns the control word that it leaves."""
    memory.write(ACCESS, struct.pack(">IIQ", control, length, target))
    device.write(DMA_ADDRESS + 4, 4, int.from_bytes(ACCESS.to_bytes(4, "big"), "little"))
    return int.from_bytes(memory.read(ACCESS, 4), "big")


class TestPorts:
    def test_the_signature_comes_first(self, device: FwCfg) -> None:
        assert bytes(device.read(DATA, 1) for _ in range(5)) == b"QEMU\0"

    def test_an_item_and_then_zeros(self, device: FwCfg) -> None:
        assert ports(device, Key.NB_CPUS, 4) == b"\x02\0\0\0"
        assert ports(device, 0x8002, 6) == b"local\0"

    def test_selecting_goes_back_to_the_start(self, device: FwCfg) -> None:
        assert ports(device, Key.KERNEL_DATA, 3) == ports(device, Key.KERNEL_DATA, 3) == b"\0\1\2"

    def test_the_write_channel_bit_changes_nothing(self, device: FwCfg) -> None:
        assert ports(device, 0x4000 | Key.NB_CPUS, 2) == b"\x02\0"

    @pytest.mark.parametrize("key", [0x0D, 0x1F, 0x23, 0x3FFF, 0x8000, 0xFFFF])
    def test_an_absent_item_is_zeros(self, device: FwCfg, key: int) -> None:
        assert ports(device, key, 8) == bytes(8)

    def test_wide_reads_are_substrings(self, device: FwCfg) -> None:
        device.write(SELECTOR, 2, Key.KERNEL_DATA)
        assert device.read(DATA, 4) == 0x03020100
        assert device.read(DATA, 1) == 4

    def test_writes_of_data_are_ignored(self, device: FwCfg) -> None:
        device.write(SELECTOR, 2, Key.NB_CPUS)
        device.write(DATA, 1, 9)
        device.write(SELECTOR, 1, Key.ID)
        assert device.read(DATA, 1) == 2

    def test_a_string_is_many_reads(self, device: FwCfg) -> None:
        device.write(SELECTOR, 2, Key.KERNEL_DATA)
        assert device.read_string(DATA, 1, 150) == bytes(range(150))
        assert device.read_string(DATA, 2, 40) == bytes(range(150, 200)) + bytes(30)

    def test_reset_selects_the_signature(self, device: FwCfg) -> None:
        ports(device, Key.NB_CPUS, 1)
        device.reset()
        assert device.read(DATA, 1) == ord("Q")

    def test_without_memory_there_is_no_dma(self, memory: GuestMemory) -> None:
        device = FwCfg(lambda: CONTENTS)
        assert ports(device, Key.ID, 4) == b"\1\0\0\0"
        assert device.read(DMA_ADDRESS, 4) == 0xFFFFFFFF
        device.write(DMA_ADDRESS + 4, 4, 0)

    def test_without_contents_there_is_an_empty_directory(self) -> None:
        assert ports(FwCfg(), Key.FILE_DIR, 8) == bytes(8)

    def test_contents_are_made_once_and_only_when_asked_for(self) -> None:
        asked = []

        def contents() -> Contents:
            asked.append(1)
            return CONTENTS

        device = FwCfg(contents)
        device.write(SELECTOR, 2, Key.NB_CPUS)
        assert not asked
        for _ in range(3):
            ports(device, Key.NB_CPUS, 2)
        assert asked == [1]


class TestFiles:
    def test_the_directory_names_them_in_order(self, device: FwCfg) -> None:
        directory = ports(device, Key.FILE_DIR, 4 + 3 * 64)
        assert directory[:4] == b"\0\0\0\3"
        entries = [struct.unpack_from(">IHH56s", directory, 4 + 64 * n) for n in range(3)]
        assert [(size, key, zero, name.rstrip(b"\0")) for size, key, zero, name in entries] == [
            (0, 0x20, 0, b"etc/empty"),
            (5, 0x21, 0, b"opt/org.x/a"),
            (6, 0x22, 0, b"opt/org.x/b"),
        ]

    def test_each_is_an_item(self, device: FwCfg) -> None:
        assert ports(device, 0x21, 6) == b"first\0"
        assert ports(device, 0x22, 6) == b"second"

    @pytest.mark.parametrize("name", ["", "x" * 56, "grüße", "a\0b", "a\nb"])
    def test_names_that_no_file_has(self, name: str) -> None:
        with pytest.raises(ConfigError, match="cannot name a file"):
            check_files({name: b""})

    def test_the_longest_name(self) -> None:
        check_files({"x" * 55: b""})

    def test_what_is_no_file(self) -> None:
        with pytest.raises(ConfigError, match="opt/a is to be bytes, not str"):
            check_files({"opt/a": "text"})  # type: ignore[dict-item]
        with pytest.raises(ConfigError, match="12289 files"):
            check_files(dict.fromkeys(map(str, range(0x3001)), b""))
        check_files(dict.fromkeys(map(str, range(0x3000)), b""))


class TestDma:
    def test_it_says_that_it_is_there(self, device: FwCfg) -> None:
        assert ports(device, Key.ID, 4) == b"\3\0\0\0"
        read = [device.read(DMA_ADDRESS + 4 * half, 4).to_bytes(4, "little") for half in (0, 1)]
        assert b"".join(read) == b"QEMU CFG"

    def test_an_item_at_once(self, device: FwCfg, memory: GuestMemory) -> None:
        control = Key.KERNEL_DATA << 16 | SELECT | READ
        assert dma(device, memory, control, 200) == 0
        assert memory.read(TARGET, 200) == bytes(range(200))

    def test_it_goes_on_where_the_last_one_ended(self, device: FwCfg, memory: GuestMemory) -> None:
        dma(device, memory, Key.KERNEL_DATA << 16 | SELECT | READ, 10)
        dma(device, memory, SKIP, 20)
        dma(device, memory, READ, 5)
        assert memory.read(TARGET, 5) == bytes(range(30, 35))
        assert device.read(DATA, 1) == 35

    def test_past_the_end_come_zeros(self, device: FwCfg, memory: GuestMemory) -> None:
        memory.fill(TARGET, 16, 0xAA)
        dma(device, memory, 0x21 << 16 | SELECT | READ, 12)
        assert memory.read(TARGET, 16) == b"first" + bytes(7) + b"\xaa" * 4

    def test_nothing_can_be_written(self, device: FwCfg, memory: GuestMemory) -> None:
        assert dma(device, memory, Key.NB_CPUS << 16 | SELECT | WRITE, 2) == ERROR
        assert ports(device, Key.NB_CPUS, 2) == b"\2\0"

    def test_an_item_can_be_selected_and_left(self, device: FwCfg, memory: GuestMemory) -> None:
        assert dma(device, memory, Key.NB_CPUS << 16 | SELECT, 0) == 0
        assert device.read(DATA, 1) == 2

    @pytest.mark.parametrize("target", [RAM, RAM - 4, ROM_AT, 1 << 40, (1 << 64) - 1])
    @pytest.mark.parametrize("key", [Key.KERNEL_DATA, 0x1F])
    def test_a_target_that_is_not_ram(
        self, device: FwCfg, memory: GuestMemory, target: int, key: int
    ) -> None:
        before = memory.read(RAM - 4, 4)
        assert dma(device, memory, key << 16 | SELECT | READ, 8, target) == ERROR
        assert memory.read(RAM - 4, 4) == before

    def test_more_than_there_is_memory(self, device: FwCfg, memory: GuestMemory) -> None:
        assert dma(device, memory, 0x21 << 16 | SELECT | READ, 0xFFFFFFFF) == ERROR
        assert memory.read(TARGET, 5) == bytes(5)

    def test_an_address_above_4_gib_comes_in_two_halves(self) -> None:
        with GuestMemory(overcommit=True) as memory:
            memory.add_ram(1 << 32, 0x1000)
            device = FwCfg(lambda: CONTENTS, memory)
            access = struct.pack(">IIQ", 0x21 << 16 | SELECT | READ, 5, (1 << 32) + 0x80)
            memory.write(1 << 32, access)
            device.write(DMA_ADDRESS, 4, 0x0100_0000)
            device.write(DMA_ADDRESS + 4, 4, 0)
            assert memory.read((1 << 32) + 0x80, 5) == b"first"
            # The register is 0 again: the next one is at address 0, where there is nothing.
            memory.write((1 << 32) + 0x80, bytes(5))
            device.write(DMA_ADDRESS + 4, 4, 0)
            assert memory.read((1 << 32) + 0x80, 5) == bytes(5)

    def test_a_structure_over_itself(self, device: FwCfg, memory: GuestMemory) -> None:
        assert dma(device, memory, Key.KERNEL_DATA << 16 | SELECT | READ, 16, ACCESS) == 0
        assert memory.read(ACCESS + 4, 4) == b"\4\5\6\7"

    @pytest.mark.parametrize("address", [RAM - 8, RAM, ROM_AT, 0xFFFFFFFF])
    def test_a_structure_that_is_not_in_ram(self, device: FwCfg, address: int) -> None:
        device.write(DMA_ADDRESS + 4, 4, int.from_bytes(address.to_bytes(4, "big"), "little"))


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(0, 11), st.sampled_from([1, 2, 4])),
        st.tuples(
            st.just("write"),
            st.integers(0, 11),
            st.sampled_from([1, 2, 4]),
            st.integers(0, 0xFFFFFFFF),
        ),
        st.tuples(
            st.just("dma"),
            st.integers(0, 0xFFFFFFFF),
            st.integers(0, 0xFFFFFFFF) | st.integers(0, 300),
            st.integers(0, (1 << 64) - 1) | st.integers(0, 0x2000),
        ),
        st.tuples(st.just("string"), st.sampled_from([1, 2, 4]), st.integers(1, 4096)),
    ),
    max_size=20,
)


@given(OPERATIONS)
def test_nothing_that_a_guest_does_gets_out(operations: list[tuple[str, ...]]) -> None:
    with GuestMemory() as memory:
        memory.add_ram(0, 0x1000)
        memory.add_rom(0x1000, bytes(0x1000))
        device = FwCfg(lambda: CONTENTS, memory)
        bus = Bus()
        bus.add_all(
            [
                Placement(device, Space.PIO, 0x510, 2),
                Placement(device, Space.PIO, 0x514, 8, offset=4),
            ]
        )
        for kind, *numbers in operations:
            first, second, *rest = map(int, numbers)
            if kind == "read":
                value = bus.read(Space.PIO, 0x510 + first, second)
                assert value is None or 0 <= value < 1 << 8 * second
            elif kind == "write":
                bus.write(Space.PIO, 0x510 + first, second, rest[0] % (1 << 8 * second))
            elif kind == "dma":
                dma(device, memory, first, second, rest[0])
            else:
                assert len(bus.read_string(0x511, first, second) or b"") in (0, first * second)
        assert memory.read(0x1000, 0x1000) == bytes(0x1000)
        assert str(device).startswith("fw-cfg: item ")
