"""The small devices: debug console, exit, POST, reset and panic ports, and the sets of devices."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.bus import Bus, GuestExit, GuestPanic, GuestPowerOff, GuestReset, Space
from pykvm.devices import (
    DebugConsole,
    DebugExit,
    KeyboardController,
    OutputLog,
    PciConfig,
    Port92,
    PostPort,
    Uart16550,
    standard_devices,
)
from pykvm.devices.acpi_pm import AcpiPm
from pykvm.devices.pc import pc_devices
from pykvm.devices.pc_testdev import KeptMemory, KeptPorts, LinePorts
from pykvm.devices.pvpanic import PvPanic
from pykvm.errors import ConfigError


class TestOutputLog:
    def test_keeps_the_last_bytes_and_counts_the_rest(self) -> None:
        log = OutputLog(limit=10)
        printed = bytes(range(65, 91)) * 3
        for start in range(0, len(printed), 7):
            log.emit(printed[start : start + 7])
            so_far = min(start + 7, len(printed))
            assert log.output == printed[max(so_far - 10, 0) : so_far]
            assert log.dropped == max(so_far - 10, 0)
        assert len(log._kept) <= 20

    def test_text_survives_what_is_no_utf_8(self) -> None:
        log = OutputLog(limit=4)
        log.emit("aé€".encode())
        assert log.text == "�€"

    def test_a_limit_of_nothing(self) -> None:
        log = OutputLog(limit=0)
        log.emit(b"abc")
        assert (log.output, log.dropped) == (b"", 3)

    def test_subscribers_are_called_in_order_and_can_stop(self) -> None:
        log = OutputLog()
        heard: list[tuple[str, bytes]] = []
        stop = log.on_output(lambda data: heard.append(("first", data)))
        log.on_output(lambda data: heard.append(("second", data)))
        log.emit(b"1")
        stop()
        stop()
        log.emit(b"2")
        assert heard == [("first", b"1"), ("second", b"1"), ("second", b"2")]


def test_debug_console() -> None:
    console = DebugConsole()
    heard: list[bytes] = []
    console.on_output(heard.append)
    assert console.read(0, 1) == 0xE9
    console.posted([(0, 1, byte) for byte in b"hello "])
    console.posted([(0, 1, byte) for byte in b"world"])
    assert console.text == "hello world"
    assert heard == [b"hello ", b"world"], "handed over in bulk"


@pytest.mark.parametrize("value", [0, 1, 0x31, 0xFFFF_FFFF])
def test_debug_exit(value: int) -> None:
    with pytest.raises(GuestExit) as caught:
        DebugExit().write(0, 4, value)
    assert caught.value.code == value


def test_post_port() -> None:
    port = PostPort(limit=3)
    assert (port.code, port.history) == (None, ())
    port.posted([(0, 1, code) for code in (1, 2, 3, 4)])
    port.posted([(0, 1, 5)])
    assert (port.code, port.history) == (5, (3, 4, 5))


class TestResetControl:
    @pytest.mark.parametrize(
        ("writes", "how"),
        [
            ([0x02, 0x06], "warm, hard reset"),
            ([0x02, 0x0E], "cold, power cycle"),
            ([0x06], "warm, hard reset"),
            ([0x00, 0x04], "soft, INIT"),
        ],
    )
    def test_the_edge_of_bit_2_resets(self, writes: list[int], how: str) -> None:
        control = PciConfig()
        *before, last = writes
        for value in before:
            control.write(1, 1, value)
            assert control.read(1, 1) == value
        with pytest.raises(GuestReset, match=how):
            control.write(1, 1, last)
        assert control.read(1, 1) == 0

    def test_other_bits_do_nothing(self) -> None:
        control = PciConfig()
        control.write(1, 1, 0xFB)
        assert control.read(1, 1) == 0x0A

    def test_selecting_a_pci_register_resets_nothing(self) -> None:
        bus = Bus()
        bus.add_pio(0xCF8, PciConfig.length, PciConfig())
        assert bus.write(Space.PIO, 0xCF8, 4, 0x8000_0600)
        assert bus.write(Space.PIO, 0xCF9, 2, 0x0606)
        assert bus.read(Space.PIO, 0xCF8, 4) == 0x8000_0600
        with pytest.raises(GuestReset):
            bus.write(Space.PIO, 0xCF9, 1, 6)

    def test_pci_configuration_is_there_and_finds_no_device(self) -> None:
        bus = Bus()
        bus.add_pio(0xCF8, PciConfig.length, PciConfig())
        bus.write(Space.PIO, 0xCFB, 1, 1)
        assert bus.read(Space.PIO, 0xCF8, 4) == 0
        bus.write(Space.PIO, 0xCF8, 4, 0x8000_0000)
        assert bus.read(Space.PIO, 0xCF8, 4) == 0x8000_0000
        bus.write(Space.PIO, 0xCF8, 4, 0xFFFF_FFFF)
        assert bus.read(Space.PIO, 0xCF8, 4) == 0x80FF_FFFC
        for port, size in ((0xCFC, 4), (0xCFC, 2), (0xCFE, 2), (0xCFF, 1)):
            bus.write(Space.PIO, port, size, 0)
            assert bus.read(Space.PIO, port, size) == (1 << 8 * size) - 1

    def test_the_address_is_written_as_a_dword_or_not_at_all(self) -> None:
        control = PciConfig()
        control.write(0, 2, 0xFFFF)
        control.write(0, 1, 0xFF)
        assert control.read(0, 4) == 0
        assert (control.read(0, 1), control.read(0, 2)) == (0xFF, 0xFFFF)


class TestPvPanic:
    def test_it_knows_three_events(self) -> None:
        assert PvPanic().read(0, 1) == 0b111

    def test_a_panic_is_one_whatever_else_is_said(self) -> None:
        for value in (0b001, 0b111):
            with pytest.raises(GuestPanic, match="by pvpanic"):
                PvPanic().write(0, 1, value)

    def test_a_shutdown_is_no_panic(self) -> None:
        with pytest.raises(GuestPowerOff, match="pvpanic"):
            PvPanic().write(0, 1, 0b100)

    def test_a_crash_kernel_is_left_to_work(self) -> None:
        device = PvPanic()
        device.write(0, 1, 0b010)
        device.write(0, 1, 0xF8)
        assert device.crashes_handled == 1


class TestPort92:
    def test_what_is_written_is_read_back(self) -> None:
        port = Port92()
        assert port.read(0, 1) == 0x02, "the A20 gate is open"
        for value in (0x00, 0xFE, 0x02):
            port.write(0, 1, value)
            assert port.read(0, 1) == value

    def test_a_reset_by_bit_0_as_it_rises(self) -> None:
        port = Port92()
        with pytest.raises(GuestReset, match="port 0x92"):
            port.write(0, 1, port.read(0, 1) | 1)
        assert not port.read(0, 1) & 1
        port.write(0, 1, 0xFE)
        with pytest.raises(GuestReset):
            port.write(0, 1, 0x01)


class TestStandardDevices:
    def test_where_they_stand(self) -> None:
        bus = Bus()
        for placement in standard_devices():
            bus.add(placement)
        assert [str(range_) for range_ in bus.ranges] == [
            "i8042 (ports 0x60-0x60)",
            "i8042 (ports 0x64-0x64)",
            "post (ports 0x80-0x80)",
            "port92 (ports 0x92-0x92)",
            "debugcon (ports 0xe9-0xe9)",
            "debug-exit (ports 0xf4-0xf7)",
            "com2 (ports 0x2f8-0x2ff)",
            "com1 (ports 0x3f8-0x3ff)",
            "pci-config (ports 0xcf8-0xcff)",
        ]
        assert [range_.name for range_ in bus.ranges if range_.posted] == ["post", "debugcon"]
        assert bus.read(Space.PIO, 0xE9, 1) == 0xE9
        with pytest.raises(GuestReset):
            bus.write(Space.PIO, 0x64, 1, 0xFE)

    def test_every_call_makes_new_ones(self) -> None:
        first, second = standard_devices(), standard_devices()
        assert not {id(p.device) for p in first} & {id(p.device) for p in second}

    def test_leaving_out_and_replacing(self) -> None:
        bus = Bus()
        for placement in standard_devices(without=("com1", "i8042")):
            bus.add(placement)
        mine = Uart16550("mine")
        bus.add_pio(0x3F8, 8, mine)
        bus.write(Space.PIO, 0x3F8, 1, ord("x"))
        assert mine.text == "x"
        assert bus.find(Space.PIO, 0x60) is None

    def test_leaving_out_what_is_not_there(self) -> None:
        with pytest.raises(ConfigError, match="no standard device 'com3'; there is com1, com2"):
            standard_devices(without=["com3"])

    def test_those_of_a_pc_stand_beside_them(self) -> None:
        bus = Bus()
        bus.add_all(standard_devices() + pc_devices())
        added = {placement.name for placement in pc_devices()}
        assert [str(range_) for range_ in bus.ranges if range_.name in added] == [
            "pc-testdev (ports 0xe0-0xe8)",
            "pc-testdev (ports 0xea-0xeb)",
            "pvpanic (ports 0x505-0x505)",
            "fw-cfg (ports 0x510-0x511)",
            "fw-cfg (ports 0x514-0x51b)",
            "acpi-pm (ports 0x600-0x605)",
            "pc-testdev-irq (ports 0x2000-0x2017)",
            "pc-testdev-memory (addresses 0xff000000-0xff00ffff)",
        ]


ALL = (GuestExit, GuestReset, GuestPowerOff, GuestPanic)
SPANS = [(p.address, p.length) for p in standard_devices() + pc_devices() if p.space is Space.PIO]
PORT = st.sampled_from(SPANS).flatmap(lambda span: st.integers(span[0] - 3, sum(span)))


@given(
    st.lists(
        st.tuples(st.booleans(), PORT, st.sampled_from([1, 2, 4]), st.integers(0, (1 << 32) - 1)),
        max_size=80,
    )
)
def test_a_hostile_guest_can_only_end_or_reset_itself(
    accesses: list[tuple[bool, int, int, int]],
) -> None:
    bus = Bus()
    bus.add_all(standard_devices() + pc_devices())
    for is_write, port, size, value in accesses:
        if is_write:
            with suppress(*ALL):
                bus.write(Space.PIO, port, size, value % (1 << 8 * size))
        else:
            answer = bus.read(Space.PIO, port, size)
            assert answer is None or 0 <= answer < 1 << (8 * size)


@given(st.lists(st.tuples(st.integers(0, 1 << 64), st.integers(1, 8), st.integers(0, 1 << 64))))
def test_devices_take_any_offset_and_value(accesses: list[tuple[int, int, int]]) -> None:
    kinds = (
        *(Uart16550, KeyboardController, Port92, PciConfig, AcpiPm, PvPanic),
        *(KeptPorts, LinePorts, KeptMemory),
    )
    for device in (DebugExit(), *(kind() for kind in kinds)):
        for offset, size, value in accesses:
            with suppress(*ALL):
                device.write(offset, size, value)
    for posted in (DebugConsole(limit=16), PostPort(limit=16)):
        posted.posted(accesses)
    for reader in (DebugConsole(), *(kind() for kind in kinds)):
        for offset, size, _ in accesses:
            assert 0 <= reader.read(offset, size) < 1 << (8 * size)


def test_what_a_guest_makes_a_device_keep_is_bounded() -> None:
    console, port, uart = DebugConsole(limit=1000), PostPort(), Uart16550(limit=1000)
    uart.write(2, 1, 1)
    for _ in range(50):
        console.posted([(0, 1, 65)] * 1000)
        port.posted([(0, 1, 65)] * 1000)
    for step in range(5000):
        uart.write(4, 1, 0x10 if step % 2 else 0)
        uart.write(0, 1, 65)
    assert len(console._kept) <= 2000
    assert len(port.history) == 256
    assert len(uart._kept) <= 2000
    assert len(uart._registers.received) == 16
