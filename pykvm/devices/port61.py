"""Port 0x61: the speaker, and what else a PC found no other place for.

Source: Intel ICH9 data sheet (316972), 13.7.1 "NMI_SC - NMI Status and Control Register".
"""

from __future__ import annotations

from pykvm.bus.device import NamedDevice
from pykvm.typed import TYPE_CHECKING
from pykvm.values.state import State, expect

if TYPE_CHECKING:
    from pykvm.clock import TimeSource
    from pykvm.devices.pit import Pit8254
    from pykvm.values.state import U4

__all__ = ["Port61", "Port61State"]

TIMER2_GATE = 0x01
SPEAKER_DATA = 0x02
WRITABLE = 0x0F  # with the two enables of error NMIs, which never come
REFRESH = 0x10
TIMER2_OUT = 0x20

#: Memory was refreshed every 15 us: 18 pulses of the timer, in nanoseconds.
REFRESH_NS = 15_085

SPEAKER = 2  # the timer's channel


class Port61State(State):
    """The bits that can be written.  The gate is the timer's to remember."""

    value: U4


class Port61(NamedDevice):
    """Bits 0 and 5 are channel 2's gate and output; bit 4 toggles with every memory refresh.

    Bit 1 lets the speaker hear channel 2; there is no speaker but `speaker`, which says whether
    there would be a tone.
    """

    width = 1

    def __init__(self, clock: TimeSource, pit: Pit8254, name: str = "port61") -> None:
        self.name = name
        self._clock = clock
        self._pit = pit
        self._value = 0

    def reset(self) -> None:
        """Return to the state at power-on: speaker and gate off."""
        self.write(0, 1, 0)

    def state(self) -> Port61State:
        """See `pykvm.values.state.Stateful`."""
        return Port61State(self._value)

    def restore(self, state: Port61State) -> None:
        """See `pykvm.values.state.Stateful`."""
        expect(state, Port61State)
        self._value = state.value

    @property
    def speaker(self) -> bool:
        """Whether the speaker is driven by a running channel 2."""
        both = TIMER2_GATE | SPEAKER_DATA
        return self._value & both == both and bool(self._pit.channels[SPEAKER].period)

    def read(self, offset: int, size: int) -> int:
        """The bits as written, and the two that follow time."""
        value = self._value
        if self._clock.now() // REFRESH_NS & 1:
            value |= REFRESH
        if self._pit.out(SPEAKER):
            value |= TIMER2_OUT
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """Set the four bits that can be written."""
        self._value = value & WRITABLE
        self._pit.set_gate(SPEAKER, bool(value & TIMER2_GATE))

    def __str__(self) -> str:
        return f"gate {self._value & TIMER2_GATE}, speaker {'on' if self.speaker else 'off'}"
