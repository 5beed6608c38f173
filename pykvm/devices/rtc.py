"""The MC146818 real-time clock of a PC, with its RAM.

Source: Motorola MC146818A data sheet (advance information ADI856R2), "Update cycle", "Interrupts"
and "Registers"; for the ports, Intel ICH9 data sheet (316972), 13.6 "Real time clock registers".

The clock and its flags follow from guest time whenever they are read; the host need not be on
time for them to be right.  Timers run only for interrupts that the guest enabled and has not got
yet.  A periodic interrupt that comes while the last one is not acknowledged (by reading register
C) is coalesced with it, as on the chip, and counted in `Rtc146818.missed`.

An update takes 1,984 us on the chip, and the update-in-progress bit warns of it 244 us ahead.  Here
the registers change all at once when the update ends, so that reading them is safe at any time.

What boards do without is left out: the square-wave output and the daylight saving bit are only
stored, and with any time base but the 32,768 Hz crystal the clock stands still.
"""

from __future__ import annotations

import time
from _thread import RLock

from pykvm.bus.device import NamedDevice
from pykvm.bus.published import WRITTEN, Published, Rule
from pykvm.devices.line import InterruptLine, Output
from pykvm.devices.rtc_calendar import DAY, WEEKDAY, Format, civil, until_alarm
from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import integer
from pykvm.values.state import State, expect

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from pykvm.bus.published import Access
    from pykvm.clock import TimerState, TimeSource
    from pykvm.values.state import S64, U8, U64

__all__ = ["Rtc146818", "Rtc146818State"]

REGISTER_A, REGISTER_B, REGISTER_C, REGISTER_D = range(10, 14)
SIZE = 128

# Register A.
A_UPDATING = 0x80
A_DIVIDER = 0x70
A_RATE = 0x0F
DIVIDER_32768_HZ = 0x20

# Register B.
B_SET = 0x80
B_SQUARE_WAVE = 0x08
B_BINARY = 0x04
B_24_HOURS = 0x02

# Enables in register B, flags in register C.
PERIODIC = 0x40
ALARM = 0x20
UPDATE_ENDED = 0x10
INTERRUPTS = PERIODIC | ALARM | UPDATE_ENDED

C_REQUEST = 0x80

D_VALID = 0x80

# Port 0x70.
NMI_MASK = 0x80

SECOND = 1_000_000_000
#: A cycle of the crystal is 1,953,125 / 64 ns, exactly.
CYCLE = (1_953_125, 64)
#: How long before the end of an update A_UPDATING is set: t_BUC + t_UC (table 4).
UPDATE_WARNING = (244 + 1984) * 1000
#: When the divider is released, the first update is half a second away ("Divider control").
RELEASED_AT = SECOND // 2


# Offsets.
INDEX, DATA = range(2)


def _period(rate: int) -> int:
    """Cycles of the crystal between periodic interrupts (table 5); 0 for none."""
    if rate == 0:
        return 0
    return 1 << (rate - 1 if rate > 2 else rate + 6)


class Rtc146818State(State):
    """The registers, and where in its second the clock is.

    `seen` is the guest time up to which events are in the registers, `phase` one at which the
    divider was at 0.
    """

    nvram: bytes
    index: U8
    nmi_masked: bool
    phase: S64
    seen: U64
    missed: U64
    irq: bool
    timer: TimerState | None


class _Ram(bytearray):
    """The bytes of the RAM; `changed` is called before one of them is set."""

    changed: Callable[[], None] | None = None

    def __setitem__(self, index: Any, value: Any) -> None:
        if self.changed is not None:
            self.changed()
        super().__setitem__(index, value)


class Rtc146818(NamedDevice):
    """An MC146818A: index at offset 0 (port 0x70), data at offset 1.

    `line` is driven with the IRQ output.  At guest time 0 the clock shows `epoch`, in seconds since
    1970 in UTC; by default it shows the host's time.  It starts in BCD with 24 hours.

    >>> from pykvm.clock import Clock
    >>> clock = Clock("warp")
    >>> rtc = Rtc146818(clock, epoch=1_700_000_000)
    >>> clock.warp_to(5 * 10**9)
    >>> rtc.write(0, 1, 0x00)
    >>> f"{rtc.read(1, 1):02x} seconds of {rtc}"
    '25 seconds of 2023-11-14 22:13:25, BCD 24 h, A=26 B=02 C=50, alarm 00:00:00'
    """

    width = 1

    def __init__(
        self,
        clock: TimeSource,
        line: InterruptLine | None = None,
        name: str = "rtc",
        *,
        epoch: float | None = None,
    ) -> None:
        self.name = name
        #: How many periodic interrupts the guest did not get, as the one before was still pending.
        self.missed = 0
        self._clock = clock
        self._irq = Output(line)
        self._timer = clock.timer(self._due)
        # Re-entrant: an interrupt line may well come back to this device.
        self._lock = RLock()
        self._published: Published | None = None
        # The registers of which C knows what they read.
        self._known: set[int] = set()
        #: All 128 bytes.  Those from 14 on are the guest's to keep, and may be read and written
        #: here; the others are the registers as they were when last looked at.
        self.nvram = _Ram(SIZE)
        #: What the clock showed at guest time 0, in ns since 1970.
        self._origin = time.time_ns() - clock.now() if epoch is None else round(epoch * SECOND)
        self.power_on()

    def power_on(self) -> None:
        """Be as if made now.  The interrupt is off, without driving the line."""
        with self._lock:
            self.nvram[:] = bytes(SIZE)
            self.nvram[REGISTER_A] = DIVIDER_32768_HZ | 6
            self.nvram[REGISTER_B] = B_24_HOURS
            self.nvram[REGISTER_D] = D_VALID
            self.missed = 0
            now = self._clock.now()
            start = self._origin + now
            # The guest time at which the divider was at 0, and that up to which events are in.
            self._phase = now - start % SECOND
            self._seen = now
            self._show(start // SECOND, start // SECOND // DAY + 4)
            self._irq.restore(False)
            self.reset()

    # What needs no Python

    def publish(self, published: Published) -> None:
        """See `pykvm.bus.published.Publishing`.

        The index is posted, and chooses a bank; in each of them a register is published once it has
        been read, until it may change.
        """
        with self._lock:
            if self._published is not None:
                self._published.withdraw()
            published.lay_out([(INDEX, 1), (DATA, 1)], banks=SIZE, always=(INDEX,))
            published.set(INDEX, Rule(posts=True, after_write=WRITTEN))
            published.choose(self._index)
            self._published = published
            self._known.clear()
            self.nvram.changed = self._forget

    def replay(self, accesses: Sequence[Access]) -> None:
        """See `pykvm.bus.published.Replaying`: all of them are of the index."""
        with self._lock:
            self._choose(accesses[-1][3])

    def _choose(self, value: int) -> None:
        self._index = value & 0x7F
        self.nmi_masked = bool(value & NMI_MASK)

    def _forget(self) -> None:
        """What was published may not be so any more."""
        if self._published is not None:
            for index in self._known:
                self._published.set(DATA, None, bank=index)
            self._known.clear()

    def _tell(self, index: int, value: int, now: int) -> None:
        """Publish what a register reads until the clock goes on."""
        published = self._published
        if index == REGISTER_C or published is None or not published.knows(self._clock):
            return
        until = now + SECOND - (now - self._phase) % SECOND
        if index == REGISTER_A:
            until -= UPDATE_WARNING
        if now < until:
            published.set(DATA, Rule(reads=value, until=until), bank=index)
            self._known.add(index)

    def reset(self) -> None:
        """The RESET input: no interrupts.  Time and RAM live on the battery."""
        with self._lock:
            self._index = 0
            if self._published is not None:
                self._published.choose(0)
            #: Bit 7 of port 0x70: the board is to keep NMIs from the processor.
            self.nmi_masked = False
            self._sync()
            self.nvram[REGISTER_B] &= ~(INTERRUPTS | B_SQUARE_WAVE)
            self.nvram[REGISTER_C] = 0
            self._update()

    def state(self) -> Rtc146818State:
        """See `pykvm.values.state.Stateful`."""
        with self._lock:
            return Rtc146818State(
                bytes(self.nvram),
                self._index,
                self.nmi_masked,
                self._phase,
                self._seen,
                self.missed,
                self._irq.state(),
                self._timer.state(),
            )

    def restore(self, state: Rtc146818State) -> None:
        """See `pykvm.values.state.Stateful`."""
        expect(state, Rtc146818State)
        integer(f"{self.name}: bytes of RAM", len(state.nvram), SIZE, SIZE)
        integer(f"{self.name}: the time that it has seen", state.seen, 0, self._clock.now())
        with self._lock:
            self.nvram[:] = state.nvram
            self._index, self.nmi_masked = state.index & 0x7F, state.nmi_masked
            self._phase, self._seen, self.missed = state.phase, state.seen, state.missed
            self._irq.restore(state.irq)
            self._timer.restore(state.timer)
            if self._published is not None:
                self._published.choose(self._index)

    @property
    def time(self) -> int:
        """What the clock shows: seconds since 1970 if the guest keeps it in UTC."""
        with self._lock:
            self._sync()
            return self._format.time(self.nvram)

    # The guest's side

    def read(self, offset: int, size: int) -> int:
        """The register that was chosen; the choice itself cannot be read."""
        if not offset & 1:
            return 0xFF
        with self._lock:
            now = self._sync()
            index = self._index
            value = self.nvram[index]
            if index == REGISTER_A:
                value |= A_UPDATING * self._updating(now)
            elif index == REGISTER_C:
                value |= C_REQUEST * self._requests()
                self.nvram[REGISTER_C] = 0
            if self.nvram[REGISTER_B] & INTERRUPTS:
                self._update()
            self._tell(index, value, now)
            return value

    def write(self, offset: int, size: int, value: int) -> None:
        """Choose a register, or write the one that was chosen."""
        value &= 0xFF
        with self._lock:
            if not offset & 1:
                self._choose(value)
                if self._published is not None:
                    self._published.choose(self._index)
                return
            now = self._sync()
            if self._index == REGISTER_A:
                self._write_a(value, now)
            elif self._index == REGISTER_B:
                # Setting SET clears the enable of the update-ended interrupt.
                self.nvram[REGISTER_B] = value & ~UPDATE_ENDED if value & B_SET else value
            elif self._index not in (REGISTER_C, REGISTER_D):
                self.nvram[self._index] = value
            if self._index <= REGISTER_D:
                self._update()

    def _write_a(self, value: int, now: int) -> None:
        ran = self._running
        self.nvram[REGISTER_A] = value & ~A_UPDATING
        if self._running and not ran:
            self._phase = now - RELEASED_AT

    # Time

    @property
    def _format(self) -> Format:
        control = self.nvram[REGISTER_B]
        return Format(bool(control & B_BINARY), 24 if control & B_24_HOURS else 12)

    @property
    def _running(self) -> bool:
        """Whether the divider counts."""
        return self.nvram[REGISTER_A] & A_DIVIDER == DIVIDER_32768_HZ

    @property
    def _updates(self) -> bool:
        """Whether the clock goes on every second."""
        return self._running and not self.nvram[REGISTER_B] & B_SET

    def _updating(self, now: int) -> bool:
        return self._updates and (now - self._phase) % SECOND >= SECOND - UPDATE_WARNING

    def _cycle(self, now: int) -> int:
        return (now - self._phase) * CYCLE[1] // CYCLE[0]

    def _sync(self) -> int:
        """Take in what happened up to now, and return the time."""
        now, before = self._clock.now(), self._seen
        self._seen = now
        if now == before or not self._running:
            return now
        period = _period(self.nvram[REGISTER_A] & A_RATE)
        if period:
            self._periodic(self._cycle(now) // period - self._cycle(before) // period)
        updates = (now - self._phase) // SECOND - (before - self._phase) // SECOND
        if updates and self._updates:
            self._go_on(updates)
        return now

    def _periodic(self, edges: int) -> None:
        if not edges:
            return
        if self.nvram[REGISTER_B] & PERIODIC:
            self.missed += edges - (not self.nvram[REGISTER_C] & PERIODIC)
        self.nvram[REGISTER_C] |= PERIODIC

    def _go_on(self, seconds: int) -> None:
        """Let the clock go on by `seconds` updates."""
        shown = self._format.time(self.nvram)
        alarm = self._format.alarm(self.nvram)
        if alarm is not None and until_alarm(shown, alarm) <= seconds:
            self.nvram[REGISTER_C] |= ALARM
        self.nvram[REGISTER_C] |= UPDATE_ENDED
        midnights = (shown + seconds) // DAY - shown // DAY
        # The day of the week is a counter of its own, which is not checked against the date.
        self._show(shown + seconds, self.nvram[WEEKDAY] - 1 + midnights if midnights else None)

    def _show(self, shown: int, weekday: int | None) -> None:
        for register, byte in self._format.registers(shown):
            self.nvram[register] = byte
        if weekday is not None:
            self.nvram[WEEKDAY] = weekday % 7 + 1

    # Interrupts

    def _requests(self) -> bool:
        return bool(self.nvram[REGISTER_C] & self.nvram[REGISTER_B] & INTERRUPTS)

    def _due(self, when: int) -> None:
        with self._lock:
            self._sync()
            self._update()

    def _update(self) -> None:
        """Drive the line to what the flags say, and wait for the next flag that would change it."""
        level = self._requests()
        self._irq.set(level)
        when = None if level else self._next_request()
        if when is None:
            self._timer.cancel()
        else:
            self._timer.arm(when)

    def _next_request(self) -> int | None:
        """When the next interrupt that is enabled comes; None for never."""
        enabled = self.nvram[REGISTER_B]
        second = (self._seen - self._phase) // SECOND
        times = []
        period = _period(self.nvram[REGISTER_A] & A_RATE)
        if enabled & PERIODIC and period and self._running:
            cycle = (self._cycle(self._seen) // period + 1) * period
            times.append(-(-cycle * CYCLE[0] // CYCLE[1]))
        if enabled & UPDATE_ENDED and self._updates:
            times.append((second + 1) * SECOND)
        alarm = self._format.alarm(self.nvram)
        if enabled & ALARM and alarm is not None and self._updates:
            shown = self._format.time(self.nvram)
            times.append((second + until_alarm(shown, alarm)) * SECOND)
        return self._phase + min(times) if times else None

    def __str__(self) -> str:
        with self._lock:
            shown = self.time
            form, (a, b, c) = self._format, self.nvram[REGISTER_A:REGISTER_D]
        year, month, day = civil(shown // DAY)
        second = shown % DAY
        clock = f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
        return (
            f"{year:04}-{month:02}-{day:02} {clock}, {'binary' if form.binary else 'BCD'} "
            f"{form.hours} h, A={a:02x} B={b:02x} C={c:02x}, "
            f"alarm {form.alarm(self.nvram) or 'never'}"
        )
