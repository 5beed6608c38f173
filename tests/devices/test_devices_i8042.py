"""The keyboard controller, to which nothing is attached."""

from __future__ import annotations

import pytest

from pykvm.bus import GuestReset
from pykvm.devices import KeyboardController
from support.attach import attach
from support.lines import Line

DATA, STATUS, COMMAND = 0, 4, 4
FULL, AUXILIARY, TIME_OUT = 0x01, 0x20, 0x40


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

    @pytest.mark.parametrize(("command", "answer"), [(0xAA, 0x55), (0xAB, 0), (0xC0, 0x80)])
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
        assert controller.read(DATA, 1) == 0xFE, "one byte per command"

    def test_mode_is_kept_and_its_system_flag_shows(self) -> None:
        controller = KeyboardController()
        assert not controller.read(STATUS, 1) & 4
        controller.write(COMMAND, 1, 0x60)
        controller.write(DATA, 1, 0x47)
        assert self.ask(controller, 0x20) == 0x47
        assert controller.read(STATUS, 1) & 4

    def test_status_distinguishes_command_from_data(self) -> None:
        controller = KeyboardController()
        controller.write(COMMAND, 1, 0xAD)
        assert controller.read(STATUS, 1) == 0x18
        controller.write(DATA, 1, 0xF4)
        assert not controller.read(STATUS, 1) & 8

    def test_it_never_looks_busy(self) -> None:
        controller = KeyboardController()
        for command in (*range(0xF0), 0xF1):
            controller.write(COMMAND, 1, command)
            assert not controller.read(STATUS, 1) & 2

    @pytest.mark.parametrize(
        ("off", "on", "bit"),
        [(0xA7, 0xA8, 0x20), (0xAD, 0xAE, 0x10)],
        ids=["auxiliary", "keyboard"],
    )
    def test_an_interface_is_switched_off_and_on(self, off: int, on: int, bit: int) -> None:
        controller = KeyboardController()
        controller.write(COMMAND, 1, off)
        assert self.ask(controller, 0x20) == bit
        controller.write(COMMAND, 1, on)
        assert self.ask(controller, 0x20) == 0

    def test_no_keyboard_answers_and_the_guest_is_told_so_at_once(self) -> None:
        controller = KeyboardController()
        controller.write(DATA, 1, 0xF2)
        assert controller.read(STATUS, 1) & (FULL | AUXILIARY | TIME_OUT) == FULL | TIME_OUT
        assert controller.read(DATA, 1) == 0xFE
        assert not controller.read(STATUS, 1) & (FULL | TIME_OUT)

    def test_no_mouse_answers(self) -> None:
        controller = KeyboardController()
        controller.write(COMMAND, 1, 0xD4)
        controller.write(DATA, 1, 0xF2)
        flags = FULL | AUXILIARY | TIME_OUT
        assert controller.read(STATUS, 1) & flags == flags
        assert controller.read(DATA, 1) == 0xFE
        assert not controller.read(STATUS, 1) & flags

    def test_the_auxiliary_interface_is_none(self) -> None:
        """What drivers ask: the test fails, and the echo does not come from there."""
        controller = KeyboardController()
        assert self.ask(controller, 0xA9) not in (0x00, 0xFA, 0xFF)
        controller.write(COMMAND, 1, 0xD3)
        controller.write(DATA, 1, 0x5A)
        assert not controller.read(STATUS, 1) & AUXILIARY

    def test_an_answer_forgets_the_time_out_before(self) -> None:
        controller = KeyboardController()
        controller.write(DATA, 1, 0xFF)
        controller.write(COMMAND, 1, 0xAA)
        assert controller.read(STATUS, 1) & (FULL | TIME_OUT) == FULL
        assert controller.read(DATA, 1) == 0x55

    def test_a_byte_interrupts_if_the_mode_says_so(self) -> None:
        controller, line = KeyboardController(), Line()
        attach(controller, line)
        controller.write(DATA, 1, 0xF2)
        assert line.changes == []
        controller.write(COMMAND, 1, 0x60)
        controller.write(DATA, 1, 0x01)
        assert line.changes == [True]
        controller.read(DATA, 1)
        assert line.changes == [True, False]
        controller.write(COMMAND, 1, 0xD4)
        controller.write(DATA, 1, 0xF2)
        assert line.changes == [True, False], "a mouse's would be another line"

    def test_a_line_that_comes_late_learns_the_level(self) -> None:
        controller, line = KeyboardController(), Line()
        controller.write(COMMAND, 1, 0x60)
        controller.write(DATA, 1, 0x01)
        controller.write(DATA, 1, 0xF2)
        attach(controller, line)
        assert line.changes == [True]
        controller.reset()
        assert line.changes == [True, False]
