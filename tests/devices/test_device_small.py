"""The small devices: debug console, exit and POST ports, both resets, the standard set."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.bus import Bus, GuestExit, GuestReset, Space
from pykvm.devices import (
    DebugConsole,
    DebugExit,
    KeyboardController,
    OutputLog,
    PostPort,
    ResetControl,
    Uart16550,
    standard_devices,
)
from pykvm.errors import ConfigError

DATA, STATUS, COMMAND = 0, 4, 4


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
    console.sink([(0, 1, byte) for byte in b"hello "])
    console.sink([(0, 1, byte) for byte in b"world"])
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
    port.sink([(0, 1, code) for code in (1, 2, 3, 4)])
    port.sink([(0, 1, 5)])
    assert (port.code, port.history) == (5, (3, 4, 5))


class TestKeyboardController:
    def ask(self, controller: KeyboardController, command: int) -> int:
        controller.write(COMMAND, 1, command)
        assert controller.read(STATUS, 1) & 1, "an answer waits"
        answer = controller.read(DATA, 1)
        assert not controller.read(STATUS, 1) & 1
        return answer

    @pytest.mark.parametrize("command", [0xFE, 0xF0, 0xFC])
    def test_pulsing_line_0_resets(self, command: int) -> None:
        with pytest.raises(GuestReset, match=f"keyboard controller command {command:#x}"):
            KeyboardController().write(COMMAND, 1, command)

    @pytest.mark.parametrize("command", [0xFF, 0xF1, 0xFD])
    def test_pulsing_other_lines_does_not(self, command: int) -> None:
        KeyboardController().write(COMMAND, 1, command)

    def test_output_port(self) -> None:
        controller = KeyboardController()
        controller.write(COMMAND, 1, 0xD1)
        controller.write(DATA, 1, 0xDD)
        assert self.ask(controller, 0xD0) == 0xDD
        controller.write(COMMAND, 1, 0xD1)
        with pytest.raises(GuestReset, match="output port"):
            controller.write(DATA, 1, 0xFE)

    def test_a20(self) -> None:
        controller = KeyboardController()
        assert self.ask(controller, 0xD0) & 2
        controller.write(COMMAND, 1, 0xDD)
        assert not self.ask(controller, 0xD0) & 2
        controller.write(COMMAND, 1, 0xDF)
        assert self.ask(controller, 0xD0) & 2

    @pytest.mark.parametrize(
        ("command", "answer"), [(0xAA, 0x55), (0xAB, 0), (0xA9, 0), (0xC0, 0x80)]
    )
    def test_tests_pass(self, command: int, answer: int) -> None:
        assert self.ask(KeyboardController(), command) == answer

    def test_the_self_test_alone_sets_the_system_flag(self) -> None:
        controller = KeyboardController()
        self.ask(controller, 0xAB)
        assert not controller.read(STATUS, 1) & 4
        self.ask(controller, 0xAA)
        assert controller.read(STATUS, 1) & 4

    @pytest.mark.parametrize("command", [0xD2, 0xD3])
    def test_echo_into_the_output_buffer(self, command: int) -> None:
        controller = KeyboardController()
        controller.write(COMMAND, 1, command)
        controller.write(DATA, 1, 0x5A)
        assert controller.read(STATUS, 1) & 1
        assert controller.read(DATA, 1) == 0x5A
        controller.write(DATA, 1, 0x77)
        assert not controller.read(STATUS, 1) & 1, "one byte per command"

    def test_mode_is_kept_and_its_system_flag_shows(self) -> None:
        controller = KeyboardController()
        assert not controller.read(STATUS, 1) & 4
        controller.write(COMMAND, 1, 0x60)
        controller.write(DATA, 1, 0x47)
        assert self.ask(controller, 0x20) == 0x47
        assert controller.read(STATUS, 1) & 4

    def test_status_tells_command_from_data(self) -> None:
        controller = KeyboardController()
        controller.write(COMMAND, 1, 0xAD)
        assert controller.read(STATUS, 1) == 0x18
        controller.write(DATA, 1, 0xF4)
        assert controller.read(STATUS, 1) == 0x10, "no keyboard: nothing answers"

    def test_it_never_looks_busy(self) -> None:
        controller = KeyboardController()
        for command in (*range(0xF0), 0xF1):
            controller.write(COMMAND, 1, command)
            assert not controller.read(STATUS, 1) & 2


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
        control = ResetControl()
        *before, last = writes
        for value in before:
            control.write(1, 1, value)
            assert control.read(1, 1) == value
        with pytest.raises(GuestReset, match=how):
            control.write(1, 1, last)
        assert control.read(1, 1) == 0

    def test_other_bits_do_nothing(self) -> None:
        control = ResetControl()
        control.write(1, 1, 0xFB)
        assert control.read(1, 1) == 0x0A

    def test_selecting_a_pci_register_resets_nothing(self) -> None:
        bus = Bus()
        bus.add_pio(0xCF8, 4, ResetControl())
        assert bus.write(Space.PIO, 0xCF8, 4, 0x8000_0600)
        assert bus.write(Space.PIO, 0xCF9, 2, 0x0606)
        assert bus.read(Space.PIO, 0xCF8, 4) == 0xFFFF_FFFF, "no PCI here"
        with pytest.raises(GuestReset):
            bus.write(Space.PIO, 0xCF9, 1, 6)


class TestStandardDevices:
    def test_where_they_stand(self) -> None:
        bus = Bus()
        for placement in standard_devices():
            bus.add(placement)
        assert [str(range_) for range_ in bus.ranges] == [
            "i8042 (ports 0x60-0x60)",
            "i8042 (ports 0x64-0x64)",
            "post (ports 0x80-0x80)",
            "debugcon (ports 0xe9-0xe9)",
            "debug-exit (ports 0xf4-0xf7)",
            "com2 (ports 0x2f8-0x2ff)",
            "com1 (ports 0x3f8-0x3ff)",
            "reset-control (ports 0xcf8-0xcfb)",
        ]
        assert [range_.name for range_ in bus.ranges if range_.sink] == ["post", "debugcon"]
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


SPANS = [(p.address, p.length) for p in standard_devices()]
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
    for placement in standard_devices():
        bus.add(placement)
    for is_write, port, size, value in accesses:
        if is_write:
            with suppress(GuestExit, GuestReset):
                bus.write(Space.PIO, port, size, value)
        else:
            answer = bus.read(Space.PIO, port, size)
            assert answer is None or 0 <= answer < 1 << (8 * size)


@given(st.lists(st.tuples(st.integers(0, 1 << 64), st.integers(1, 8), st.integers(0, 1 << 64))))
def test_devices_take_any_offset_and_value(accesses: list[tuple[int, int, int]]) -> None:
    for device in (Uart16550(), KeyboardController(), ResetControl(), DebugExit()):
        for offset, size, value in accesses:
            with suppress(GuestExit, GuestReset):
                device.write(offset, size, value)
    for sink in (DebugConsole(limit=16), PostPort(limit=16)):
        sink.sink(accesses)
    for reader in (Uart16550(), KeyboardController(), ResetControl(), DebugConsole()):
        for offset, size, _ in accesses:
            assert 0 <= reader.read(offset, size) < 1 << (8 * size)


def test_what_a_guest_makes_a_device_keep_is_bounded() -> None:
    console, port, uart = DebugConsole(limit=1000), PostPort(), Uart16550(limit=1000)
    uart.write(2, 1, 1)
    for _ in range(50):
        console.sink([(0, 1, 65)] * 1000)
        port.sink([(0, 1, 65)] * 1000)
    for step in range(5000):
        uart.write(4, 1, 0x10 if step % 2 else 0)
        uart.write(0, 1, 65)
    assert len(console._kept) <= 2000
    assert len(port.history) == 256
    assert len(uart._kept) <= 2000
    assert len(uart._received) == 16
