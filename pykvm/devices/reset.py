"""The two ways a PC resets itself: the keyboard controller and the chipset's port 0xcf9."""

from __future__ import annotations

from pykvm.bus import GuestReset

__all__ = ["KeyboardController", "ResetControl"]

# Status register (IBM PS/2 Technical Reference, "Keyboard and Auxiliary Device Controller").
_OUTPUT_FULL = 0x01
_SYSTEM_FLAG = 0x04
_LAST_WAS_COMMAND = 0x08
_UNLOCKED = 0x10

_SELF_TEST_PASSED = 0x55
_TEST_PASSED = 0x00
_INPUT_PORT = 0x80  # not locked

# Output port.
_NOT_RESET = 0x01
_A20 = 0x02


class KeyboardController:
    """An Intel 8042 with nothing plugged in: data at offset 0, status and commands at offset 4.

    Pulsing output line 0 (command 0xfe) resets the machine, and so does writing the output port
    with bit 0 clear.  The A20 gate can be set and read back, and gates nothing.
    """

    width = 1

    def __init__(self, name: str = "i8042") -> None:
        self.name = name
        self.reset()

    def reset(self) -> None:
        """Return to the state at power-on."""
        self._status = _UNLOCKED
        self._mode = 0
        self._output_port = _NOT_RESET | _A20
        self._answer = 0
        self._awaiting = 0

    def read(self, offset: int, size: int) -> int:
        """The status at offset 4; elsewhere the answer to the last command."""
        if offset == 4:
            return self._status | (self._mode & _SYSTEM_FLAG)
        self._status &= ~_OUTPUT_FULL
        return self._answer

    def write(self, offset: int, size: int, value: int) -> None:
        """Take a command at offset 4, data elsewhere.  Raises GuestReset."""
        value &= 0xFF
        if offset == 4:
            self._status |= _LAST_WAS_COMMAND
            self._command(value)
        else:
            self._status &= ~_LAST_WAS_COMMAND
            command, self._awaiting = self._awaiting, 0
            self._data(command, value)

    def _command(self, command: int) -> None:
        self._awaiting = command if command in (0x60, 0xD1, 0xD2, 0xD3, 0xD4) else 0
        answers = {
            0x20: self._mode,
            0xA9: _TEST_PASSED,
            0xAA: _SELF_TEST_PASSED,
            0xAB: _TEST_PASSED,
            0xC0: _INPUT_PORT,
            0xD0: self._output_port,
        }
        if command in answers:
            self._say(answers[command])
        if command == 0xAA:
            self._mode |= _SYSTEM_FLAG
        elif command == 0xDD:
            self._output_port &= ~_A20
        elif command == 0xDF:
            self._output_port |= _A20
        elif command >= 0xF0 and not command & 1:
            raise GuestReset(f"keyboard controller command {command:#x}")

    def _data(self, command: int, value: int) -> None:
        """Take `value`, which completes `command`; without one it is for the absent keyboard."""
        if command == 0x60:
            self._mode = value
        elif command == 0xD1:
            self._output_port = value | _NOT_RESET
            if not value & _NOT_RESET:
                raise GuestReset("keyboard controller output port")
        elif command in (0xD2, 0xD3):
            self._say(value)

    def _say(self, answer: int) -> None:
        self._answer = answer
        self._status |= _OUTPUT_FULL


_SYS_RST = 0x02
_RST_CPU = 0x04
_FULL_RST = 0x08


class ResetControl:
    """The reset control register of PIIX and ICH chipsets: port 0xcf9, at offset 1 from 0xcf8.

    RST_CPU (bit 2) going from 0 to 1 resets the machine: with FULL_RST and SYS_RST by a power
    cycle, with SYS_RST alone by a hard reset, else by INIT to the processors.

    It stands at all four ports from 0xcf8 on and heeds only byte accesses.  A dword written to
    0xcf8 selects a PCI register, and its second byte must not reset anything
    (Intel ICH9 data sheet, 13.7.5; PCI Local Bus 3.0, 3.2.2.3.2).
    """

    def __init__(self, name: str = "reset-control") -> None:
        self.name = name
        self._value = 0

    def read(self, offset: int, size: int) -> int:
        """The register as last written; all ones for any other access."""
        return self._value if (offset, size) == (1, 1) else (1 << (8 * size)) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Set the register.  Raises GuestReset."""
        if (offset, size) != (1, 1):
            return
        before, self._value = self._value, value & (_SYS_RST | _RST_CPU | _FULL_RST)
        if not self._value & ~before & _RST_CPU:
            return
        kind = _reset_kind(self._value)
        self._value = 0
        raise GuestReset(f"port 0xcf9: {kind}")


def _reset_kind(value: int) -> str:
    if not value & _SYS_RST:
        return "soft, INIT"
    return "cold, power cycle" if value & _FULL_RST else "warm, hard reset"
