"""The 8254 programmable interval timer of a PC.

Source: Intel 8254 Programmable Interval Timer data sheet (order number 231164); on a PC channel 0
drives IRQ 0, channel 1 once refreshed the memory, and channel 2 drives the speaker, its gate and
its output being bits of port 0x61 (`pykvm.devices.port61`).

Every register is a function of guest time, so reads are right to the pulse however late the host
is.  Interrupts are not: they come when the host finds the time.  What channel 0 has risen and not
yet told is owed, and made up for one interrupt at a time, no sooner after each other than half a
period and `SHORTEST` nanoseconds; so a guest that counts interrupts to know the time stays right.
More than a second's worth is not made up for but counted in `Pit8254.missed`, and so is what the
guest had not got yet when it programmed the channel anew.

A counter that was read is lent to C (`pykvm.bus.published`), one at a time: it latches it and gives
its two bytes until the guest does anything else to the chip.

The line to the interrupt controller shows each rise of OUT.  In the modes where OUT is high at
rest it falls just before the rise, not when OUT does: controllers look at the rise alone.
"""

from __future__ import annotations

from _thread import RLock
from functools import lru_cache

from pykvm.bus.device import NamedDevice
from pykvm.bus.published import CAPTURED, Counter, Rule
from pykvm.clock import ticks_at, time_of
from pykvm.devices.line import InterruptLine, Output
from pykvm.devices.pit_channel import CONTROL_RW_SHIFT, Channel
from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import integer
from pykvm.values.state import State, expect

if TYPE_CHECKING:
    from pykvm.bus.published import Published
    from pykvm.clock import TimerState, TimeSource
    from pykvm.devices.pit_channel import ChannelState, Counting
    from pykvm.values.state import S64, U64

__all__ = ["PIT_HZ", "SHORTEST", "Pit8254", "Pit8254State"]

#: CLK pulses a second: a third of the NTSC colour carrier, as every PC has it.
PIT_HZ = 1_193_182

#: The least time from one interrupt to the next, in nanoseconds: no guest can ask for a storm.
SHORTEST = 50_000

SECOND = 1_000_000_000  # ns

CONTROL = 3

# The control word and the read-back command ("Programming the 8254").
SELECT_SHIFT = 6
READ_BACK = 3
READ_BACK_NO_COUNT = 0x20
READ_BACK_NO_STATUS = 0x10

# Banks of what is published: nothing; and of the counter that is lent, whether its count was
# latched and which of its bytes is read next.
ASKS, COUNT_LOW, COUNT_HIGH, LATCHED_LOW, LATCHED_HIGH = range(5)
BANKS = 5


class Pit8254State(State):
    """The counters, and of channel 0's rises how many the line has shown, and when the last."""

    channels: tuple[ChannelState, ChannelState, ChannelState]
    shown: U64
    shown_at: S64
    missed: U64
    irq: bool
    timer: TimerState | None


class Pit8254(NamedDevice):
    """An 8254: counters at offsets 0 to 2, control word at offset 3.

    `line` is driven with channel 0's output.  At power-on no channel counts, and every OUT is
    high; the data sheet promises nothing.

    >>> from pykvm.clock import Clock
    >>> clock = Clock("warp")
    >>> pit = Pit8254(clock)
    >>> pit.write(3, 1, 0x30)  # channel 0, both bytes, mode 0
    >>> pit.write(0, 1, 0xA9), pit.write(0, 1, 0x04)  # 1193: 1 ms
    (None, None)
    >>> clock.warp_to(500_000)
    >>> pit.read(0, 1) | pit.read(0, 1) << 8
    598
    """

    width = 1

    def __init__(
        self, clock: TimeSource, line: InterruptLine | None = None, name: str = "pit"
    ) -> None:
        self.name = name
        #: How many interrupts of channel 0 the guest will never get, as it was too late.
        self.missed = 0
        self._clock = clock
        self._irq = Output(line)
        self._timer = clock.timer(self._due)
        # Re-entrant: an interrupt line may well come back to this device.
        self._lock = RLock()
        self._published: Published | None = None
        #: The counter that is lent to C, and how it was published last.
        self._lent: Channel | None = None
        self._published_as: tuple[int, Counting] | None = None
        self.reset()

    def reset(self) -> None:
        """Return to the state at power-on."""
        with self._lock:
            self._take_back()
            tick = self._tick()
            self.channels = (
                Channel(tick=tick),
                Channel(tick=tick),
                Channel(gate=False, tick=tick),
            )
            # How many of channel 0's rises the line has shown, and when it showed the last.
            self._shown = 0
            self._shown_at = -SHORTEST
            self._timer.cancel()
            self._irq.set(False)

    # What is saved

    def state(self) -> Pit8254State:
        """See `pykvm.values.state.Stateful`."""
        with self._lock:
            self._take_back()
            low, middle, high = (channel.state() for channel in self.channels)
            return Pit8254State(
                (low, middle, high),
                self._shown,
                self._shown_at,
                self.missed,
                self._irq.state(),
                self._timer.state(),
            )

    def restore(self, state: Pit8254State) -> None:
        """See `pykvm.values.state.Stateful`."""
        expect(state, Pit8254State)
        now = self._clock.now()
        integer(f"{self.name}: interrupts", state.shown, 0, state.channels[0].rises)
        integer(f"{self.name}: the last interrupt", state.shown_at, -SHORTEST, now)
        with self._lock:
            self._take_back()
            for channel, saved in zip(self.channels, state.channels, strict=True):
                channel.restore(saved, ticks_at(now, PIT_HZ))
            self._shown, self._shown_at = state.shown, state.shown_at
            self.missed = state.missed
            self._irq.restore(state.irq)
            self._timer.restore(state.timer)

    # What needs no Python

    def publish(self, published: Published) -> None:
        """See `pykvm.bus.published.Publishing`."""
        with self._lock:
            self._take_back()
            if self._published is not None:
                self._published.withdraw()
            published.lay_out([(offset, 1) for offset in range(4)], banks=BANKS)
            self._published = published
            self._published_as = None

    def _lend(self, number: int) -> None:
        """Let C answer what is read of this counter, if its count is easily told."""
        published, channel = self._published, self.channels[number]
        if published is None or not published.knows(self._clock):
            return
        counting = channel.counting
        if counting is None:
            return
        if (number, counting) != self._published_as:
            self._published_as = None
            _set_rules(published, number, counting)
            self._published_as = number, counting
        self._lent = channel
        published.choose(COUNT_LOW)

    def _take_back(self) -> None:
        """Have the device asked again, in the state to which C has brought it."""
        channel, published = self._lent, self._published
        if channel is None or published is None:
            return
        bank, captured = published.exchange(ASKS)
        self._lent = None
        latched = bank in (LATCHED_LOW, LATCHED_HIGH)
        channel.take_reads(
            high=bank in (COUNT_HIGH, LATCHED_HIGH), latched=captured if latched else None
        )

    # The guest's side

    def read(self, offset: int, size: int) -> int:
        """The next byte of a counter; the control word cannot be read."""
        offset &= 3
        if offset == CONTROL:
            return 0xFF
        with self._lock:
            self._take_back()
            value = self.channels[offset].read(self._tick())
            self._lend(offset)
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a byte of a counter's count, or a control word."""
        offset &= 3
        value &= 0xFF
        with self._lock:
            self._take_back()
            if offset != CONTROL:
                self._program(offset, value)
            elif value >> SELECT_SHIFT == READ_BACK:
                self._read_back(value)
            elif value >> CONTROL_RW_SHIFT & 3:
                self._program(value >> SELECT_SHIFT, value, control=True)
            else:
                self.channels[value >> SELECT_SHIFT].latch_count(self._tick())

    def _read_back(self, command: int) -> None:
        tick = self._tick()
        for number, channel in enumerate(self.channels):
            if command >> 1 & 1 << number:
                if not command & READ_BACK_NO_COUNT:
                    channel.latch_count(tick)
                if not command & READ_BACK_NO_STATUS:
                    channel.latch_status(tick)

    def _program(self, number: int, value: int, *, control: bool = False) -> None:
        now = self._clock.now()
        tick = ticks_at(now, PIT_HZ)
        channel = self.channels[number]
        channel.advance(tick)
        if number == 0 and (control or not channel.period):
            self._settle(now)
        if control:
            channel.control(tick, value)
        else:
            channel.write(tick, value)
        if number == 0:
            # In the modes where OUT is low at rest, the line follows it.
            if not channel.mode.idle and not channel.out:
                self._irq.set(False)
            self._serve(now)

    # The board's side

    def out(self, number: int) -> bool:
        """The OUT output of a channel."""
        with self._lock:
            channel = self.channels[number]
            channel.advance(self._tick())
            return channel.out

    def set_gate(self, number: int, level: bool) -> None:
        """Drive the GATE input of a channel.  On a PC that of channel 2 alone is not tied high."""
        with self._lock:
            self._take_back()
            now = self._clock.now()
            self.channels[number].set_gate(ticks_at(now, PIT_HZ), level)
            if number == 0:
                self._serve(now)

    # Interrupts

    def _tick(self) -> int:
        return ticks_at(self._clock.now(), PIT_HZ)

    def _due(self, when: int) -> None:
        with self._lock:
            now = self._clock.now()
            self.channels[0].advance(ticks_at(now, PIT_HZ))
            self._serve(now)

    def _settle(self, now: int) -> None:
        """Show one of the rises that are owed, and forget the others."""
        owed = self.channels[0].rises - self._shown
        if owed:
            self.missed += owed - 1
            self._shown += owed - 1
            self._show(now)

    def _serve(self, now: int) -> None:
        """Show a rise if one is owed and it is time, and see to it that the next is shown."""
        channel = self.channels[0]
        period = channel.period
        owed = channel.rises - self._shown
        if owed > 1:
            excess = max(owed - (PIT_HZ // period if period else 1), 0)
            self.missed += excess
            self._shown += excess
            owed -= excess
        gap = _gap(period)
        if owed and now >= self._shown_at + gap:
            self._show(now)
            owed -= 1
        rise = channel.next_rise()
        if owed:
            self._timer.arm(self._shown_at + gap)
        elif rise is not None:
            self._timer.arm(max(time_of(rise, PIT_HZ), self._shown_at + gap))
        else:
            self._timer.cancel()

    def _show(self, now: int) -> None:
        self._shown += 1
        self._shown_at = now
        self._irq.rise()

    def __str__(self) -> str:
        with self._lock:
            tick = self._tick()
            lines = []
            for number, channel in enumerate(self.channels):
                channel.advance(tick)
                lines.append(f"channel {number}: {channel}")
            owed = self.channels[0].rises - self._shown
        return "\n".join([*lines, f"interrupts owed {owed}, missed {self.missed}"])


@lru_cache(maxsize=64)
def _gap(period: int) -> int:
    """The least time, in ns, from one interrupt to the next that was late: half a period."""
    return max(SHORTEST, time_of(period, PIT_HZ) // 2)


def _set_rules(published: Published, number: int, counting: Counting) -> None:
    """What holds for counter `number` while it goes on like that, and nothing for the others."""
    for other in {0, 1, 2} - {number}:
        published.set(other, None)
    start, modulo, base, step = counting
    count = Rule(Counter(PIT_HZ, SECOND, start, modulo, base, step), mask=0xFFFF)
    latched = Rule(CAPTURED)
    # A counter latch command: the counter's number and otherwise zeros that matter.
    others = bytes(byte for byte in range(256) if byte >> CONTROL_RW_SHIFT != number << 2)
    latch = Rule(takes=True, prompt=others)
    latches = latch._replace(captures=number, after_write=LATCHED_LOW)
    for bank, rule, after, command in (
        (COUNT_LOW, count, COUNT_HIGH, latches),
        (COUNT_HIGH, count._replace(shift=8), COUNT_LOW, latches),
        (LATCHED_LOW, latched, LATCHED_HIGH, latch),
        (LATCHED_HIGH, latched._replace(shift=8), COUNT_LOW, latch),
    ):
        published.set(number, rule._replace(after_read=after), bank=bank)
        published.set(CONTROL, command, bank=bank)
