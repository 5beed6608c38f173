"""ACPI's fixed registers: events, among them the power button, and switching off.

Source: ACPI Specification 6.5, 4.8.3.1 "PM1 Event Grouping", 4.8.3.2 "PM1 Control Grouping" and
4.8.2.2 "Power button"; on a PC they stand at ports 0x600 to 0x605, as the FADT says.

The machine is in ACPI mode from the start (SCI_EN is always 1), and of the sleeping states it has
S5 only: SLP_EN with another SLP_TYP does nothing, and the guest runs on.
"""

from __future__ import annotations

from _thread import RLock

from pykvm.bus import GuestPowerOff
from pykvm.bus.device import NamedDevice
from pykvm.clock import ticks_at, time_of
from pykvm.devices.line import Output
from pykvm.devices.pm_timer import PM_TIMER_HZ
from pykvm.layout import SLP_TYP_S5
from pykvm.typed import TYPE_CHECKING
from pykvm.values.state import State, expect

if TYPE_CHECKING:
    from pykvm.clock import Timer, TimerState, TimeSource
    from pykvm.devices.line import Lines
    from pykvm.memory import GuestMemory
    from pykvm.values.state import U16, U64

__all__ = ["AcpiPm", "AcpiPmState"]

# Bits of PM1_STS, to be cleared by writing 1, and of PM1_EN.
TMR = 1 << 0
GBL = 1 << 5
PWRBTN = 1 << 8
SLPBTN = 1 << 9
RTC = 1 << 10
ENABLES = TMR | GBL | PWRBTN | SLPBTN | RTC

# PM1_CNT.
SCI_EN = 1 << 0
BM_RLD = 1 << 1
SLP_TYP_SHIFT = 10
SLP_TYP = 7 << SLP_TYP_SHIFT
SLP_EN = 1 << 13

REGISTERS = 3
LENGTH = 2 * REGISTERS

# TMR_STS is set whenever this bit of the PM timer changes.
_TOP_BIT = 31


class AcpiPmState(State):
    """The registers, and of how many changes of the PM timer's top bit they know."""

    status: U16
    enabled: U16
    control: U16
    changes: U64
    sci: bool
    timer: TimerState | None


class AcpiPm(NamedDevice):
    """PM1_STS at offset 0, PM1_EN at 2 and PM1_CNT at 4: 16 bits each, in accesses of any size.

    The SCI is high while an event is there that the guest has enabled.  The button may be pressed
    from any thread.

    >>> pm = AcpiPm()
    >>> pm.press_power_button()
    >>> hex(pm.read(0, 2))
    '0x100'
    >>> pm.write(4, 2, 0x2000)
    Traceback (most recent call last):
    ...
    pykvm.bus.guest_end.GuestPowerOff: the guest powered itself off (ACPI S5)
    """

    length = LENGTH

    def __init__(self, name: str = "acpi-pm") -> None:
        self.name = name
        self._irq = Output()
        self._clock: TimeSource | None = None
        self._timer: Timer | None = None
        #: How often the PM timer's top bit has changed, as far as TMR_STS knows of it.
        self._changes = 0
        # Re-entrant: an interrupt line may well come back to this device.
        self._lock = RLock()
        self.reset()

    def reset(self) -> None:
        """The RESET input: no event, none enabled."""
        with self._lock:
            self._status = self._enabled = self._control = 0
            self._update()

    def attach(self, lines: Lines, memory: GuestMemory, clock: TimeSource | None) -> None:
        """See `Attaching`: the SCI, and the changes of the PM timer that counts by the clock."""
        with self._lock:
            self._irq.attach(lines)
            self._clock, self._timer = clock, None
            # A clock that is made later has counted from 0 as well.
            now = clock.now() if clock is not None and clock.made else 0
            self._changes = self._changes_by(now)
            self._update()

    def press_power_button(self) -> None:
        """Press and let go.  What comes of it is up to the guest."""
        with self._lock:
            self._status |= PWRBTN
            self._update()

    def state(self) -> AcpiPmState:
        """See `pykvm.values.state.Stateful`."""
        with self._lock:
            timer = self._timer.state() if self._timer is not None else None
            return AcpiPmState(
                self._status, self._enabled, self._control, self._changes, self._irq.state(), timer
            )

    def restore(self, state: AcpiPmState) -> None:
        """See `pykvm.values.state.Stateful`."""
        expect(state, AcpiPmState)
        with self._lock:
            self._status, self._enabled, self._control = state.status, state.enabled, state.control
            self._changes = state.changes
            self._irq.restore(state.sci)
            if state.timer is not None and self._timer is None and self._clock is not None:
                self._timer = self._clock.timer(self._due)
            if self._timer is not None:
                self._timer.restore(state.timer)

    @property
    def receives(self) -> bool:
        """Whether the power button would interrupt the guest."""
        return bool(self._enabled & PWRBTN)

    def read(self, offset: int, size: int) -> int:
        """`size` bytes of the registers; past them there is nothing."""
        if offset >= LENGTH:
            return (1 << 8 * size) - 1
        with self._lock:
            self._sync()
            control = self._control | SCI_EN
            value = self._status | self._enabled << 16 | control << 32
        return value >> 8 * offset & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Clear events, enable them, sleep.  Raises GuestPowerOff for S5."""
        if offset >= LENGTH:
            return
        touched = (1 << 8 * size) - 1 << 8 * offset
        value = value << 8 * offset & touched
        (status, _), (enabled, enables), (control, controls) = (
            (value >> 16 * number & 0xFFFF, touched >> 16 * number & 0xFFFF)
            for number in range(REGISTERS)
        )
        with self._lock:
            self._sync()
            self._status &= ~status
            self._enabled = (self._enabled & ~enables | enabled) & ENABLES
            self._control = (self._control & ~controls | control) & (BM_RLD | SLP_TYP)
            self._update()
            sleep_type = (self._control & SLP_TYP) >> SLP_TYP_SHIFT
        if control & SLP_EN and sleep_type == SLP_TYP_S5:
            raise GuestPowerOff("ACPI S5")

    @staticmethod
    def _changes_by(now: int) -> int:
        return ticks_at(now, PM_TIMER_HZ) >> _TOP_BIT

    def _sync(self) -> None:
        """Take in what the PM timer did up to now."""
        if self._clock is None or not self._clock.made:
            return
        changes = self._changes_by(self._clock.now())
        if changes != self._changes:
            self._changes = changes
            self._status |= TMR

    def _due(self, when: int) -> None:
        with self._lock:
            self._sync()
            self._update()

    def _update(self) -> None:
        """Drive the line to what the events say, and wait for the timer's next where it counts."""
        level = bool(self._status & self._enabled)
        self._irq.set(level)
        if self._enabled & ~self._status & TMR and self._clock is not None:
            if self._timer is None:
                self._timer = self._clock.timer(self._due)
            self._timer.arm(time_of(self._changes + 1 << _TOP_BIT, PM_TIMER_HZ))
        elif self._timer is not None:
            self._timer.cancel()

    def __str__(self) -> str:
        return (
            f"{self.name}: PM1_STS={self.read(0, 2):#06x} PM1_EN={self.read(2, 2):#06x} "
            f"PM1_CNT={self.read(4, 2):#06x}"
        )
