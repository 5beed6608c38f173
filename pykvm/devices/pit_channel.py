"""One counter of an 8254, as a function of how many CLK pulses have passed.

Source: Intel 8254 Programmable Interval Timer data sheet (order number 231164), "Programming the
8254", "Mode definitions" and "Operation common to all modes".

Nothing here counts: a counter is the count it was loaded with and the pulses since, and whatever a
guest can ask for (the value, OUT, how often OUT has risen, when it rises next) follows from these
two.  So a counter costs nothing while it is not read, however fast it runs.
"""

from __future__ import annotations

from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import integer
from pykvm.values.frozen import NamedTuple
from pykvm.values.state import State

if TYPE_CHECKING:
    from pykvm.values.state import U8, U16, U24, U64

__all__ = ["MODES", "Channel", "ChannelState", "Counting", "Mode"]

# The control word ("Control word format"); bits 6 and 7 choose the counter.
CONTROL_BCD = 0x01
CONTROL_RW_SHIFT = 4
RW_LOW = 1
RW_HIGH = 2
RW_BOTH = 3

# The status byte ("Read-back command"); its low six bits are the control word's.
STATUS_NULL = 0x40
STATUS_OUT = 0x80


class Mode(NamedTuple):
    """How the six modes differ ("Mode definitions" and figure 21, gate operations)."""

    #: OUT between the control word and the first count.
    idle: bool
    #: Counts round and round; otherwise it counts to 0 once, and on without effect.
    periodic: bool
    #: OUT is low for one pulse at the end, not all the way.
    strobe: bool
    #: A low GATE holds the count.
    gate_enables: bool
    #: A rising GATE loads the count.
    gate_triggers: bool


class Counting(NamedTuple):
    """What CE holds at pulse t: `base` + `step` * ((`start` + t) % `modulo`), in 16 bits."""

    start: int
    modulo: int
    base: int
    step: int


_SIX = (
    Mode(idle=False, periodic=False, strobe=False, gate_enables=True, gate_triggers=False),
    Mode(idle=True, periodic=False, strobe=False, gate_enables=False, gate_triggers=True),
    Mode(idle=True, periodic=True, strobe=True, gate_enables=True, gate_triggers=True),
    Mode(idle=True, periodic=True, strobe=False, gate_enables=True, gate_triggers=True),
    Mode(idle=True, periodic=False, strobe=True, gate_enables=True, gate_triggers=False),
    Mode(idle=True, periodic=False, strobe=True, gate_enables=False, gate_triggers=True),
)
#: By number; the last two are other names of modes 2 and 3.
MODES = (*_SIX, *_SIX[2:4])


class ChannelState(State):
    """A counter: what CE holds and since when, and what the CPU has half written or half read.

    `tick` is the pulse up to which it has counted; 0 where nothing counts.
    """

    control: U8
    gate: bool
    rises: U64
    tick: U64
    loaded: U24
    elapsed: U64
    held: U16
    count: U24
    load_at: U64 | None
    armed: bool
    null: bool
    low_byte: U8 | None
    read_high: bool
    latched_count: U16 | None
    latched_status: U8 | None


class Channel:
    """A counter: its GATE input, its OUT output, and the registers that the CPU sees.

    Times are counts of CLK pulses; each method that takes one first lets the pulses up to it pass,
    and `out` and `rises` hold for the last.  A pulse that comes with a write comes before it.

    The data sheet leaves open what a counter holds before its first count: here, what it held
    before.  Where it forbids a count of 1 (modes 2 and 3), 1 counts as 2; digits above 9 in BCD
    are worth what they say; and a strobe of mode 4 that a falling GATE catches lasts as long as
    GATE is low.

    >>> channel = Channel()
    >>> channel.control(0, 0x34)  # mode 2, both bytes, binary
    >>> channel.write(0, 100), channel.write(0, 0)
    (None, None)
    >>> channel.advance(1000)  # loaded at pulse 1, and again at 101, 201 ...
    >>> channel.value, channel.rises, channel.next_rise()
    (1, 9, 1001)
    """

    __slots__ = (
        "_armed",
        "_control",
        "_count",
        "_elapsed",
        "_held",
        "_latched_count",
        "_latched_status",
        "_load_at",
        "_loaded",
        "_low_byte",
        "_read_high",
        "_tick",
        "gate",
        "mode",
        "null",
        "rises",
    )

    def __init__(self, *, gate: bool = True, tick: int = 0) -> None:
        #: The level of the GATE input.
        self.gate = gate
        #: How often OUT went from low to high.
        self.rises = 0
        self._tick = tick
        # The count that CE was loaded with and the pulses counted since; while nothing was loaded,
        # or the sequence was broken off, `_loaded` is 0 and CE holds `_held`.
        self._loaded = 0
        self._elapsed = 0
        self._held = 0
        self._program(3 << 1 | RW_BOTH << CONTROL_RW_SHIFT)

    def _program(self, control: int) -> None:
        self._control = control & 0x3F
        self.mode = MODES[control >> 1 & 7]
        self._held %= self._modulus
        #: A count was written that CE has not taken yet, or none was ("null count").
        self.null = True
        self._count = 0
        #: The pulse at which CE takes the count.
        self._load_at: int | None = None
        # Whether a count was written, so that a trigger has something to load.
        self._armed = False
        self._low_byte: int | None = None
        self._read_high = False
        self._latched_count: int | None = None
        self._latched_status: int | None = None

    # The CPU's side

    def control(self, tick: int, word: int) -> None:
        """Take a control word: the counter forgets everything but the value it holds."""
        self.advance(tick)
        before = self.out
        self._break_off()
        self._program(word)
        self.rises += self.out and not before

    def write(self, tick: int, byte: int) -> None:
        """Take a byte of the count, as the control word said it would come."""
        self.advance(tick)
        rw = self._control >> CONTROL_RW_SHIFT
        if rw == RW_LOW:
            self._take_count(byte)
        elif rw == RW_HIGH:
            self._take_count(byte << 8)
        elif self._low_byte is not None:
            low, self._low_byte = self._low_byte, None
            self._take_count(low | byte << 8)
        else:
            self._low_byte = byte
            if self.mode is MODES[0]:
                self._break_off()
                self._load_at = None

    def read(self, tick: int) -> int:
        """The next byte: of the latched status, of the latched count, or of the count as it is.

        A latched count is read from its low byte on, whatever was read before.
        """
        self.advance(tick)
        if self._latched_status is not None:
            status, self._latched_status = self._latched_status, None
            return status
        latched = self._latched_count
        value = self.value_read if latched is None else latched
        rw = self._control >> CONTROL_RW_SHIFT
        high = rw == RW_HIGH or (rw == RW_BOTH and self._read_high)
        if rw == RW_BOTH:
            self._read_high = not self._read_high
        if high or rw == RW_LOW:
            self._latched_count = None
        return value >> 8 if high else value & 0xFF

    def latch_count(self, tick: int) -> None:
        """Keep the count for the next reads; one that is kept already stays."""
        self.advance(tick)
        if self._latched_count is None:
            self._latched_count = self.value_read
            self._read_high = False

    def latch_status(self, tick: int) -> None:
        """Keep the status for the next read; one that is kept already stays."""
        self.advance(tick)
        if self._latched_status is None:
            self._latched_status = self._control | STATUS_NULL * self.null | STATUS_OUT * self.out

    # What is saved

    def state(self) -> ChannelState:
        """See `pykvm.values.state.Stateful`."""
        still = not self._loaded and self._load_at is None
        return ChannelState(
            self._control,
            self.gate,
            self.rises,
            0 if still else self._tick,
            self._loaded,
            self._elapsed,
            self._held,
            self._count,
            self._load_at,
            self._armed,
            self.null,
            self._low_byte,
            self._read_high,
            self._latched_count,
            self._latched_status,
        )

    def restore(self, state: ChannelState, tick: int) -> None:
        """See `pykvm.values.state.Stateful`; pulse `tick` is now.

        Raises ConfigError for pulses that have not been, and for counts that there are not.
        """
        mode = MODES[state.control >> 1 & 7]
        integer("the pulse that a counter is at", state.tick, 0, tick)
        if state.load_at is not None:
            integer("the pulse that loads a counter", state.load_at, state.tick + 1)
        if state.loaded:
            integer("what a counter was loaded with", state.loaded, 1 + mode.periodic, 0x10000)
        integer("the count of a counter", state.count, 0, 0x10000)
        self._control = state.control & 0x3F
        self.mode = mode
        self.gate = state.gate
        self.rises = state.rises
        self._tick = state.tick
        self._loaded = state.loaded
        self._elapsed = state.elapsed
        self._held = state.held
        self._count = state.count
        self._load_at = state.load_at
        self._armed = state.armed
        self.null = state.null
        self._low_byte = state.low_byte
        self._read_high = state.read_high
        self._latched_count = state.latched_count
        self._latched_status = state.latched_status

    # What may answer for it

    @property
    def counting(self) -> Counting | None:
        """How CE continues without interference, if the next reads are of a count as it is.

        None where a few numbers cannot say that: no count is loaded, or another one will be, it
        does not count or not in binary, or an odd count in mode 3; or where the CPU reads one byte
        only, or is in the middle of something.
        """
        loaded = self._loaded
        between = self._latched_count is None and self._latched_status is None
        if not (between and not self._read_high and self._control >> CONTROL_RW_SHIFT == RW_BOTH):
            return None
        if not (loaded and self._load_at is None and self._counting):
            return None
        if self._control & CONTROL_BCD:
            return None
        elapsed = self._elapsed - self._tick
        if not self.mode.periodic:
            return Counting(elapsed % 0x10000, 0x10000, loaded, -1)
        if self.mode.strobe:
            return Counting(elapsed % loaded, loaded, loaded, -1)
        return None if loaded % 2 else Counting(elapsed % (loaded // 2), loaded // 2, loaded, -2)

    def take_reads(self, *, high: bool, latched: int | None) -> None:
        """The CPU has read elsewhere what `counting` describes.

        Now the high byte is next, if `high`, of what was `latched` meanwhile or of the count.
        """
        self._read_high = high
        self._latched_count = latched

    # The board's side

    def set_gate(self, tick: int, level: bool) -> None:
        """Drive the GATE input."""
        self.advance(tick)
        if level == self.gate:
            return
        before = self.out
        self.gate = level
        if self.mode.gate_triggers and level and self._armed:
            self._load_at = tick + 1
        elif self.mode.periodic and not level and self._loaded:
            # It holds its value, with OUT high, until a trigger.
            self._break_off()
            self._load_at = None
        self.rises += self.out and not before

    @property
    def out(self) -> bool:
        """The level of the OUT output."""
        return self._out(self._loaded, self._elapsed)

    @property
    def value(self) -> int:
        """What CE holds, as a number."""
        loaded = self._loaded
        if not loaded:
            return self._held
        if not self.mode.periodic:
            return (loaded - self._elapsed) % self._modulus
        place = self._elapsed % loaded
        if self.mode.strobe:
            return (loaded - place) % self._modulus
        # By two, and twice in a period; an odd count is one pulse longer high than low.
        half = (loaded + 1) // 2
        return (loaded // 2 * 2 - 2 * (place - half if place >= half else place)) % self._modulus

    @property
    def value_read(self) -> int:
        """`value` in the 16 bits that the CPU reads."""
        if not self._control & CONTROL_BCD:
            return self.value & 0xFFFF
        return int(str(self.value % 10_000), 16)

    @property
    def period(self) -> int:
        """How many pulses lie between two rises of OUT; 0 in the modes that end by themselves."""
        return self._loaded if self.mode.periodic else 0

    def advance(self, tick: int) -> None:
        """Let the pulses up to `tick` pass."""
        load = self._load_at
        if load is not None and load <= tick:
            # In the modes that end by themselves the pulse that loads does not count, too.
            self._pass(load if self.mode.periodic else load - 1)
            self._tick = load
            self._load(load)
        self._pass(tick)

    def next_rise(self) -> int | None:
        """The pulse at which OUT will rise next without interference, or None for never."""
        loaded, load = self._loaded, self._load_at
        if loaded and (self.gate or not self.mode.gate_enables):
            rise = self._tick + self._until_rise(loaded, self._elapsed)
            if rise > self._tick and (load is None or rise <= load):
                return rise
        if load is None or not (self.gate or not self.mode.gate_enables):
            return None
        count = self._count_to_load
        # With a sequence under way that is not its end: mode 3 then takes the count half-way.
        done = (count + 1) // 2 if loaded and self.mode is MODES[3] else 0
        return load + self._until_rise(count, done)

    # Inside

    @property
    def _modulus(self) -> int:
        return 10_000 if self._control & CONTROL_BCD else 0x10000

    @property
    def _counting(self) -> bool:
        return self.gate or not self.mode.gate_enables

    @property
    def _count_to_load(self) -> int:
        return max(self._count, 2) if self.mode.periodic else self._count

    def _out(self, loaded: int, elapsed: int) -> bool:
        mode = self.mode
        if not loaded:
            return mode.idle
        if mode.periodic:
            place = elapsed % loaded
            return place != loaded - 1 if mode.strobe else place < (loaded + 1) // 2
        return elapsed != loaded if mode.strobe else elapsed >= loaded

    def _until_rise(self, loaded: int, elapsed: int) -> int:
        """How many pulses it is to the next rise; not positive if there is none."""
        if self.mode.periodic:
            return loaded - elapsed % loaded
        return loaded + self.mode.strobe - elapsed

    def _pass(self, tick: int) -> None:
        """Let the pulses up to `tick` pass, of which none loads a new count."""
        pulses, self._tick = tick - self._tick, tick
        loaded, mode = self._loaded, self.mode
        if not (pulses and loaded and (self.gate or not mode.gate_enables)):
            return
        before = self._elapsed
        self._elapsed = after = before + pulses
        if mode.periodic:
            self.rises += after // loaded - before // loaded
        else:
            self.rises += before < loaded + mode.strobe <= after

    def _break_off(self) -> None:
        """Let CE hold its value, and OUT go to what it is without a count."""
        self._held = self.value
        self._loaded = 0

    def _take_count(self, raw: int) -> None:
        """Take a whole count.  When CE takes it over depends on the mode."""
        if self._control & CONTROL_BCD:
            raw = sum((raw >> 4 * digit & 15) * 10**digit for digit in range(4)) % 10_000
        self._count = raw or self._modulus
        self.null = True
        first, self._armed = not self._armed, True
        if self.mode is MODES[0]:
            self._break_off()
        if not self.mode.gate_triggers or (first and self.mode.periodic):
            self._load_at = self._tick + 1
        elif self.mode.periodic and self._loaded:
            self._load_at = self._tick + self._until_reload()

    def _until_reload(self) -> int:
        """How many pulses a periodic mode counts before it looks at the count again."""
        place = self._elapsed % self._loaded
        half = (self._loaded + 1) // 2
        if not self.mode.strobe and place < half:
            return half - place
        return self._loaded - place

    def _load(self, tick: int) -> None:
        before = self.out
        self.null = False
        self._load_at = None
        self._loaded = self._count_to_load
        # Mode 3 takes a new count at either end of its square wave.
        half_way = self.mode is MODES[3] and not before
        self._elapsed = (self._loaded + 1) // 2 if half_way else 0
        if self.mode.periodic and not self.gate:
            self._break_off()
        self.rises += self.out and not before

    def __str__(self) -> str:
        number = MODES.index(self.mode)
        digits = "BCD" if self._control & CONTROL_BCD else "binary"
        count = self._loaded or "none"
        return (
            f"mode {number} {digits}, count {count}, value {self.value}, "
            f"out {self.out:d}, gate {self.gate:d}{', null count' * self.null}"
        )
