"""The keyboard controller of a PC, to which no keyboard is attached.

Sources: IBM, Personal System/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary
Device Controller" (status, commands, time-outs); Intel UPI-41A/41AH/42/42AH User's Manual.
"""

from __future__ import annotations

from pykvm.bus import GuestReset
from pykvm.bus.device import NamedDevice
from pykvm.devices.line import Output
from pykvm.typed import TYPE_CHECKING
from pykvm.values.state import State, expect

if TYPE_CHECKING:
    from pykvm.clock import TimeSource
    from pykvm.devices.line import Lines
    from pykvm.memory import GuestMemory
    from pykvm.values.state import U8

__all__ = ["KeyboardController", "KeyboardControllerState"]

# Status register.
_OUTPUT_FULL = 0x01
_SYSTEM_FLAG = 0x04
_LAST_WAS_COMMAND = 0x08
_UNLOCKED = 0x10
_AUXILIARY = 0x20  # what is in the output buffer comes from the auxiliary device
_TIME_OUT = 0x40

# Mode ("command byte").
_KEYBOARD_INTERRUPTS = 0x01
_KEYBOARD_DISABLED = 0x10
_AUXILIARY_DISABLED = 0x20

_SELF_TEST_PASSED = 0x55
_TEST_PASSED = 0x00
_CLOCK_STUCK_LOW = 0x01
_INPUT_PORT = 0x80  # not locked
_RESEND = 0xFE

# Output port.
_NOT_RESET = 0x01
_A20 = 0x02

_READ_MODE = 0x20
_WRITE_MODE = 0x60
_WRITE_OUTPUT_PORT = 0xD1
_ECHO = (0xD2, 0xD3)  # as if it came from the keyboard, from the auxiliary device
_TO_AUXILIARY = 0xD4
_TAKE_DATA = (_WRITE_MODE, _WRITE_OUTPUT_PORT, *_ECHO, _TO_AUXILIARY)

# What a command changes in the mode and in the output port: (bits, whether it sets them).
_MODE_COMMANDS = {
    0xA7: (_AUXILIARY_DISABLED, True),
    0xA8: (_AUXILIARY_DISABLED, False),
    0xAA: (_SYSTEM_FLAG, True),
    0xAD: (_KEYBOARD_DISABLED, True),
    0xAE: (_KEYBOARD_DISABLED, False),
}
_OUTPUT_PORT_COMMANDS = {0xDD: (_A20, False), 0xDF: (_A20, True)}


class KeyboardControllerState(State):
    """The registers; `awaiting` is the command whose data byte is to come, or 0."""

    status: U8
    mode: U8
    output_port: U8
    answer: U8
    awaiting: U8
    irq: bool


class KeyboardController(NamedDevice):
    """An Intel 8042 with nothing plugged in: data at offset 0, status and commands at offset 4.

    Pulsing output line 0 (command 0xfe) resets the machine, and so does writing the output port
    with bit 0 clear.  The A20 gate can be set and read back, and gates nothing.

    What is sent to a keyboard finds none: as after the time that a real one has to answer, 0xfe
    comes back at once, with the time-out bit set.  A driver so gives up without waiting.  The test
    of the auxiliary interface fails, and its echo bears no mark: there is no such interface.

    Its line is high while a byte waits and the mode has interrupts on.
    """

    width = 1
    #: No key is ever pressed.
    receives = False

    def __init__(self, name: str = "i8042") -> None:
        self.name = name
        self._irq = Output()
        self.reset()

    def attach(self, lines: Lines, memory: GuestMemory, clock: TimeSource | None) -> None:
        """See `Attaching`."""
        self._irq.attach(lines)

    def reset(self) -> None:
        """Return to the state at power-on."""
        self._status = _UNLOCKED
        self._mode = 0
        self._output_port = _NOT_RESET | _A20
        self._answer = 0
        self._awaiting = 0
        self._update()

    def state(self) -> KeyboardControllerState:
        """See `pykvm.values.state.Stateful`."""
        return KeyboardControllerState(
            self._status,
            self._mode,
            self._output_port,
            self._answer,
            self._awaiting,
            self._irq.state(),
        )

    def restore(self, state: KeyboardControllerState) -> None:
        """See `pykvm.values.state.Stateful`."""
        expect(state, KeyboardControllerState)
        self._status = state.status
        self._mode = state.mode
        self._output_port = state.output_port
        self._answer = state.answer
        self._awaiting = state.awaiting
        self._irq.restore(state.irq)

    def read(self, offset: int, size: int) -> int:
        """The status at offset 4; elsewhere the answer to the last command."""
        if offset == 4:
            return self._status | (self._mode & _SYSTEM_FLAG)
        self._status &= ~(_OUTPUT_FULL | _AUXILIARY | _TIME_OUT)
        self._update()
        return self._answer

    def write(self, offset: int, size: int, value: int) -> None:
        """Take a command at offset 4, data elsewhere.  Raises GuestReset."""
        value &= 0xFF
        if offset == 4:
            self._status |= _LAST_WAS_COMMAND
            self._awaiting = value if value in _TAKE_DATA else 0
            self._command(value)
        else:
            self._status &= ~_LAST_WAS_COMMAND
            command, self._awaiting = self._awaiting, 0
            self._data(command, value)
        self._update()

    def _command(self, command: int) -> None:
        answers = {
            _READ_MODE: self._mode,
            0xA9: _CLOCK_STUCK_LOW,
            0xAA: _SELF_TEST_PASSED,
            0xAB: _TEST_PASSED,
            0xC0: _INPUT_PORT,
            0xD0: self._output_port,
        }
        if command in answers:
            self._say(answers[command])
        self._mode = _changed(self._mode, _MODE_COMMANDS.get(command))
        self._output_port = _changed(self._output_port, _OUTPUT_PORT_COMMANDS.get(command))
        if command >= 0xF0 and not command & 1:
            raise GuestReset(f"keyboard controller command {command:#x}")

    def _data(self, command: int, value: int) -> None:
        """Take `value`, which completes `command`; without one it is for the absent keyboard."""
        if command == _WRITE_MODE:
            self._mode = value
        elif command == _WRITE_OUTPUT_PORT:
            self._output_port = value | _NOT_RESET
            if not value & _NOT_RESET:
                raise GuestReset("keyboard controller output port")
        elif command in _ECHO:
            self._say(value)
        elif command == _TO_AUXILIARY:
            self._say(_RESEND, _TIME_OUT | _AUXILIARY)
        else:
            self._say(_RESEND, _TIME_OUT)

    def _say(self, answer: int, flags: int = 0) -> None:
        self._answer = answer
        self._status &= ~(_AUXILIARY | _TIME_OUT)
        self._status |= _OUTPUT_FULL | flags

    def _update(self) -> None:
        full = self._status & (_OUTPUT_FULL | _AUXILIARY) == _OUTPUT_FULL
        self._irq.set(full and bool(self._mode & _KEYBOARD_INTERRUPTS))


def _changed(value: int, change: tuple[int, bool] | None) -> int:
    if change is None:
        return value
    bits, sets = change
    return value | bits if sets else value & ~bits
