"""The high precision event timer of a PC.

Source: IA-PC HPET (High Precision Event Timers) Specification, revision 1.0a (October 2004),
section 2.3 "Register Definitions" and 2.4 "Theory of Operation".

The block has one main counter of 64 bits and three timers, each of 64 bits, able to be periodic,
and without FSB delivery.  The counter is a function of guest time; nothing here counts.  A timer
fires when the counter *equals* its comparator, in 32-bit mode in the low 32 bits, so a comparator
that was passed comes again when the counter has wrapped: after 43 s in 32-bit mode.

A periodic timer that is late coalesces: the guest gets one interrupt for all the periods that
went by, the comparator stands where it would stand anyway, and `missed` counts the others.  So do
periods that end while a level-triggered interrupt is still not cleared, and those shorter than
`SHORTEST`.  Interrupts plus `missed` is the exact number of periods.

What the specification leaves open: accesses other than aligned ones of 4 and 8 bytes (2.3.2) read
the bytes that lie there and write nothing.  Reserved registers and bits are 0.  A status bit exists
in level-triggered mode only.
"""

from __future__ import annotations

from _thread import RLock

from pykvm.bus.device import NamedDevice
from pykvm.bus.published import Counter, Rule
from pykvm.devices.line import InterruptLine, Unconnected, edge_of, restore_level
from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import integer
from pykvm.values.state import State, expect

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pykvm.bus.published import Published
    from pykvm.clock import TimerState, TimeSource
    from pykvm.values.state import S64, S128, U16, U32, U64

__all__ = ["SHORTEST", "TICK_NS", "TIMERS", "Hpet", "HpetState", "HpetTimerState"]

TIMERS = 3
#: Nanoseconds a tick of the main counter: 100 MHz.
TICK_NS = 10
#: The least time from one interrupt of a periodic timer to the next, in nanoseconds.
SHORTEST = 50_000

# Offsets (2.3.1); timer n's registers are n * TIMER_STRIDE further on.
CAPABILITIES = 0x000
CONFIGURATION = 0x010
STATUS = 0x020
COUNTER = 0x0F0
TIMER_CONFIGURATION = 0x100
TIMER_COMPARATOR = 0x108
TIMER_STRIDE = 0x20

# General capabilities and ID (2.3.4).
REVISION = 0x01
COUNT_SIZE_CAP = 1 << 13
LEG_RT_CAP = 1 << 15
VENDOR_ID = 0x8086 << 16
FEMTOSECONDS = 1_000_000  # a nanosecond

# General configuration (2.3.5).
ENABLE_CNF = 1 << 0
LEG_RT_CNF = 1 << 1

# Timer n configuration and capabilities (2.3.8).
INT_TYPE_CNF = 1 << 1  # level-triggered
INT_ENB_CNF = 1 << 2
TYPE_CNF = 1 << 3  # periodic
PER_INT_CAP = 1 << 4
SIZE_CAP = 1 << 5
VAL_SET_CNF = 1 << 6
MODE32_CNF = 1 << 8
ROUTE_SHIFT = 9
ROUTE_CNF = 0x1F << ROUTE_SHIFT
ROUTE_CAP_SHIFT = 32
_KEPT = INT_TYPE_CNF | INT_ENB_CNF | TYPE_CNF | MODE32_CNF

#: What legacy replacement gives timers 0 and 1, in place of the 8254 and the RTC (2.4.2.1).
LEGACY_IRQS = (0, 8)

# What guests read again and again, and reading has no effect on.
PUBLISHED = (CAPABILITIES, COUNTER)

_ONES32 = (1 << 32) - 1
_ONES64 = (1 << 64) - 1


class HpetTimerState(State):
    """A timer's registers, up to where its matches are dealt with, and when it is due."""

    config: U16
    comparator: U64
    period: U64
    status: bool
    settled: S128
    fired_at: S64
    missed: U64
    due: TimerState | None


class HpetState(State):
    """The registers; `high` are the lines that are driven high, as bits.

    Guest time in ticks plus `bias` is the counter; while it is halted, `halted_at` is.
    """

    config: U16
    bias: S128
    halted_at: S128 | None
    high: U32
    timers: tuple[HpetTimerState, ...]


class _Output:
    """An IRQ: the level of one line, by the timers and by another device that shares it."""

    __slots__ = ("cut_off", "edge", "held", "input", "irq", "level", "line")

    def __init__(self, irq: int, line: InterruptLine) -> None:
        self.irq = irq
        self.line = line
        self.edge = edge_of(line)
        self.level = False
        #: What the device drives it to whose interrupt legacy replacement takes away.
        self.input = False
        #: Whether it does so now.
        self.cut_off = False
        #: Whether a timer holds it high.
        self.held = False

    def drive(self, level: bool) -> None:
        if level != self.level:
            self.level = level
            self.line.set(level)

    def follow(self) -> None:
        """Drive it to what the timers and the device that shares it make of it."""
        self.drive(self.held or (self.input and not self.cut_off))


class _LegacyInput:
    """The line that the 8254 or the RTC drives."""

    def __init__(self, hpet: Hpet, output: _Output) -> None:
        self._hpet = hpet
        self._output = output

    def set(self, level: bool) -> None:
        """Drive it; it comes through unless legacy replacement has the IRQ."""
        with self._hpet.lock:
            self._output.input = level
            self._output.follow()

    def edge(self) -> None:
        """See `pykvm.devices.line.edge_of`."""
        output = self._output
        with self._hpet.lock:
            output.input = True
            if output.level and not (output.held or output.cut_off):
                output.edge()
            else:
                output.follow()

    def restore(self, level: bool) -> None:
        """Have that level.  What comes of it is the HPET's own state."""
        self._output.input = level


class HpetTimer:
    """One of the block's timers: its registers, and which of its matches were dealt with."""

    __slots__ = (
        "comparator",
        "config",
        "fired_at",
        "legacy_irq",
        "missed",
        "number",
        "period",
        "settled",
        "status",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        #: Periods that had no interrupt of their own.
        self.missed = 0
        self.legacy_irq = LEGACY_IRQS[number] if number < len(LEGACY_IRQS) else None
        self.reset()

    def reset(self) -> None:
        """The state at power-on (3.1)."""
        self.config = 0
        self.comparator = _ONES64
        #: What was written last to the comparator register: in periodic mode, what is added.
        self.period = 0
        self.status = False
        #: Matches up to this value of the counter, which does not wrap here, are dealt with.
        self.settled = -1
        #: Guest time of the last interrupt.
        self.fired_at = -SHORTEST

    @property
    def ones(self) -> int:
        """The largest value of the comparator."""
        return _ONES32 if self.config & MODE32_CNF else _ONES64

    @property
    def periodic(self) -> bool:
        """Whether the comparator moves on after a match."""
        return bool(self.config & TYPE_CNF)

    @property
    def interrupts(self) -> bool:
        """Whether the next match causes an interrupt, as far as the timer itself goes."""
        return bool(self.config & INT_ENB_CNF) and not self.status

    def next_match(self) -> int:
        """The value of the counter, not wrapped, at the next match."""
        after = self.settled + 1
        return after + (self.comparator - after & self.ones)

    def settle(self, counter: int) -> int:
        """Go on to `counter`, and return how many matches there were on the way."""
        ahead = counter - self.next_match()
        self.settled = counter
        if ahead < 0:
            return 0
        step = self.period & self.ones if self.periodic else 0
        matches = ahead // (step or self.ones + 1) + 1
        self.comparator = self.comparator + matches * step & self.ones
        return matches

    def set_config(self, value: int, routes: int) -> None:
        """Write the low half of the configuration register; `routes` is Tn_INT_ROUTE_CAP."""
        route = (value if routes >> (value >> ROUTE_SHIFT & 0x1F) & 1 else self.config) & ROUTE_CNF
        self.config = value & _KEPT | route
        if value & TYPE_CNF:
            self.config |= value & VAL_SET_CNF
        if not value & INT_TYPE_CNF:
            self.status = False
        self.comparator &= self.ones

    def set_comparator(self, value: int, lanes: int) -> None:
        """Write those bits of the comparator register that are set in `lanes` (2.3.9)."""
        self.period = (self.period & ~lanes | value & lanes) & _ONES64
        if not self.periodic or self.config & VAL_SET_CNF:
            self.comparator = (self.comparator & ~lanes | value & lanes) & self.ones
        self.config &= ~VAL_SET_CNF

    def state(self, due: TimerState | None) -> HpetTimerState:
        """What `restore` takes."""
        return HpetTimerState(
            self.config,
            self.comparator,
            self.period,
            self.status,
            self.settled,
            self.fired_at,
            self.missed,
            due,
        )

    def restore(self, state: HpetTimerState) -> None:
        """Be that again."""
        self.config = state.config & (_KEPT | ROUTE_CNF | VAL_SET_CNF)
        self.comparator = state.comparator & self.ones
        self.period = state.period
        self.status = state.status
        self.settled = state.settled
        self.fired_at = state.fired_at
        self.missed = state.missed

    def __str__(self) -> str:
        config = self.config
        words = [
            f"timer {self.number}:",
            "periodic" if self.periodic else "one-shot",
            "32-bit" if config & MODE32_CNF else "64-bit",
            "level" if config & INT_TYPE_CNF else "edge",
            f"irq {config >> ROUTE_SHIFT & 0x1F}",
            "enabled" if config & INT_ENB_CNF else "masked",
            f"comparator {self.comparator:#x}",
        ]
        if self.periodic:
            words.append(f"period {self.period & self.ones:#x}")
        if self.status:
            words.append("active")
        if self.missed:
            words.append(f"missed {self.missed}")
        return " ".join(words)


class Hpet(NamedDevice):
    """An event timer block of 1 KiB, on a PC at 0xfed00000.

    `lines` are the interrupt lines by IRQ number, below 32.  With both 0 and 8 among them the
    block offers legacy replacement; to all others the timers can be routed.  `legacy_input` gives
    the lines that the 8254 and the RTC have to drive instead of these two.

    >>> from pykvm.clock import Clock
    >>> clock = Clock("warp")
    >>> hpet = Hpet(clock)
    >>> hpet.read(CAPABILITIES + 4, 4)  # femtoseconds a tick
    10000000
    >>> hpet.write(CONFIGURATION, 8, ENABLE_CNF)
    >>> clock.warp_to(1_000_000)
    >>> hpet.read(COUNTER, 8)
    100000
    """

    def __init__(
        self,
        clock: TimeSource,
        lines: Mapping[int, InterruptLine] | None = None,
        name: str = "hpet",
    ) -> None:
        self.name = name
        self._clock = clock
        # Re-entrant: an interrupt line may well come back to this device.
        self.lock = RLock()
        lines = lines or {}
        self._outputs = {irq: _Output(irq, line) for irq, line in lines.items()}
        self._legacy_capable = all(irq in lines for irq in LEGACY_IRQS)
        self._routes = sum(1 << irq for irq in lines if irq not in LEGACY_IRQS)
        self.timers = tuple(HpetTimer(number) for number in range(TIMERS))
        self._deadlines = tuple(clock.timer(self._due) for _ in self.timers)
        # Guest time in ticks plus `_bias` is the counter; while halted, `_halted_at`.
        self._bias = 0
        self._halted_at: int | None = 0
        self._published: Published | None = None
        self.reset()

    def publish(self, published: Published) -> None:
        """See `pykvm.bus.published.Publishing`."""
        with self.lock:
            if self._published is not None:
                self._published.withdraw()
            published.lay_out([(offset, 8) for offset in PUBLISHED])
            self._published = published
            for number, offset in enumerate(PUBLISHED[:-1]):
                published.set(number, Rule(self._register(offset)))
            self._publish_counter()

    def _publish_counter(self) -> None:
        if self._published is None:
            return
        rule = None
        if self._halted_at is not None:
            rule = Rule(self.counter)
        elif self._published.knows(self._clock):
            rule = Rule(Counter(1, TICK_NS, self._bias))
        self._published.set(PUBLISHED.index(COUNTER), rule)

    def legacy_input(self, irq: int) -> InterruptLine:
        """The line for the device that legacy replacement cuts off: 0 for the 8254, 8 for the RTC.

        It leads to that line of `lines` while timers 0 and 1 do not have it, or to nowhere.
        """
        output = self._outputs.get(irq)
        return Unconnected() if output is None else _LegacyInput(self, output)

    def reset(self) -> None:
        """Return to the state at power-on (3.1)."""
        with self.lock:
            self._config = 0
            self._halted_at = 0
            for timer in self.timers:
                timer.reset()
            self._follow()

    def state(self) -> HpetState:
        """See `pykvm.values.state.Stateful`."""
        with self.lock:
            return HpetState(
                self._config,
                self._bias,
                self._halted_at,
                sum(output.level << irq for irq, output in self._outputs.items()),
                tuple(
                    timer.state(deadline.state())
                    for timer, deadline in zip(self.timers, self._deadlines, strict=True)
                ),
            )

    def restore(self, state: HpetState) -> None:
        """See `pykvm.values.state.Stateful`."""
        self._check(expect(state, HpetState))
        with self.lock:
            self._config = state.config & (ENABLE_CNF | LEG_RT_CNF * self._legacy_capable)
            self._bias, self._halted_at = state.bias, state.halted_at
            for timer, deadline, saved in zip(
                self.timers, self._deadlines, state.timers, strict=True
            ):
                timer.restore(saved)
                deadline.restore(saved.due)
            for irq, output in self._outputs.items():
                output.level = bool(state.high >> irq & 1)
                restore_level(output.line, output.level)
            self._route()
            self._publish_counter()

    def _check(self, state: HpetState) -> None:
        """Raise ConfigError for a counter or a time that there has not been."""
        integer(f"{self.name}: timers", len(state.timers), TIMERS, TIMERS)
        now = self._clock.now()
        counter = now // TICK_NS + state.bias if state.halted_at is None else state.halted_at
        integer(f"{self.name}: the counter", counter, 0)
        for timer in state.timers:
            integer(f"{self.name}: matches dealt with", timer.settled, -1, counter)
            integer(f"{self.name}: the last interrupt", timer.fired_at, -SHORTEST, now)

    @property
    def missed(self) -> int:
        """How many periods of all timers had no interrupt of their own."""
        return sum(timer.missed for timer in self.timers)

    @property
    def legacy(self) -> bool:
        """Whether timers 0 and 1 have IRQ 0 and 8, and the 8254 and the RTC are cut off (2.3.5)."""
        return self._config & (ENABLE_CNF | LEG_RT_CNF) == ENABLE_CNF | LEG_RT_CNF

    @property
    def counter(self) -> int:
        """The main counter."""
        return self._counter() & _ONES64

    def __str__(self) -> str:
        with self.lock:
            state = "running" if self._halted_at is None else "halted"
            legacy = ", legacy replacement" if self.legacy else ""
            lines = [f"{self.name}: {state} at {self.counter:#x}{legacy}"]
            return "\n  ".join(lines + [str(timer) for timer in self.timers])

    def read(self, offset: int, size: int) -> int:
        """`size` bytes at `offset`; reserved ones are 0."""
        with self.lock:
            at = offset & 7
            value = self._register(offset - at)
            if at + size > 8:
                value |= self._register(offset - at + 8) << 64
        return value >> 8 * at & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register or, with 4 bytes, half of it."""
        if size not in (4, 8) or offset % size:
            return
        shift = 8 * (offset & 7)
        lanes = (1 << 8 * size) - 1 << shift
        value = value << shift & lanes
        register = offset & ~7
        with self.lock:
            if register == COUNTER:
                self._write_counter(self.counter & ~lanes | value)
            elif register == CONFIGURATION and not shift:
                self._write_config(value)
            elif register == STATUS and not shift:
                self._write_status(value)
            elif TIMER_CONFIGURATION <= register < TIMER_CONFIGURATION + TIMERS * TIMER_STRIDE:
                number, register = divmod(register - TIMER_CONFIGURATION, TIMER_STRIDE)
                self._write_timer(self.timers[number], register, value, lanes)

    def _register(self, offset: int) -> int:
        """All 64 bits of the register at `offset`."""
        if offset == COUNTER:
            return self.counter
        if offset == CONFIGURATION:
            return self._config
        if offset == STATUS:
            self._settle()
            return sum(timer.status << timer.number for timer in self.timers)
        if offset == CAPABILITIES:
            value = TICK_NS * FEMTOSECONDS << 32 | VENDOR_ID | COUNT_SIZE_CAP | REVISION
            return value | TIMERS - 1 << 8 | LEG_RT_CAP * self._legacy_capable
        if TIMER_CONFIGURATION <= offset < TIMER_CONFIGURATION + TIMERS * TIMER_STRIDE:
            number, register = divmod(offset - TIMER_CONFIGURATION, TIMER_STRIDE)
            timer = self.timers[number]
            if register == 0:
                return timer.config | PER_INT_CAP | SIZE_CAP | self._routes << ROUTE_CAP_SHIFT
            if register == TIMER_COMPARATOR - TIMER_CONFIGURATION:
                self._settle()
                return timer.comparator
        return 0

    def _write_counter(self, value: int) -> None:
        """The main counter (2.3.7); what it equals at once matches at once."""
        self._settle()
        if self._halted_at is None:
            self._bias = value - self._ticks()
        else:
            self._halted_at = value
        for timer in self.timers:
            timer.settled = value - 1
        self._follow()

    def _write_config(self, value: int) -> None:
        self._settle()
        if value & ENABLE_CNF:
            if self._halted_at is not None:
                self._bias = self._halted_at - self._ticks()
                self._halted_at = None
        else:
            self._halted_at = self._counter()
        self._config = value & (ENABLE_CNF | LEG_RT_CNF * self._legacy_capable)
        self._follow()

    def _write_status(self, value: int) -> None:
        """A 1 clears (2.3.6)."""
        self._settle()
        for timer in self.timers:
            if value >> timer.number & 1:
                timer.status = False
        self._follow()

    def _write_timer(self, timer: HpetTimer, register: int, value: int, lanes: int) -> None:
        self._settle()
        if register == 0 and lanes & 1:
            timer.set_config(value, self._routes)
        elif register == TIMER_COMPARATOR - TIMER_CONFIGURATION:
            timer.set_comparator(value, lanes)
            timer.settled = self._counter() - 1
        self._follow()

    def _ticks(self) -> int:
        return self._clock.now() // TICK_NS

    def _counter(self) -> int:
        """The main counter as if it had no end."""
        return self._ticks() + self._bias if self._halted_at is None else self._halted_at

    def _output(self, timer: HpetTimer) -> _Output | None:
        """Where a timer's interrupts go (2.4.2)."""
        if self.legacy and timer.legacy_irq is not None:
            return self._outputs[timer.legacy_irq]
        irq = timer.config >> ROUTE_SHIFT & 0x1F
        return self._outputs[irq] if self._routes >> irq & 1 else None

    def _due(self, when: int) -> None:
        with self.lock:
            self._settle()
            self._follow()

    def _settle(self) -> None:
        """Deal with the matches up to now; nothing matches while the counter is halted."""
        if self._halted_at is not None:
            return
        now = self._clock.now()
        for timer in self.timers:
            matches = timer.settle(now // TICK_NS + self._bias)
            if matches:
                self._fire(timer, matches, now)

    def _fire(self, timer: HpetTimer, matches: int, now: int) -> None:
        level = timer.config & INT_TYPE_CNF
        merged = matches if timer.status else matches - 1
        output = self._output(timer)
        timer.status = bool(level)
        if not timer.config & INT_ENB_CNF or output is None:
            return
        timer.missed += merged
        if merged < matches:
            timer.fired_at = now
        if level:
            self.update()
        elif not output.level:
            output.drive(True)
            output.drive(False)

    def _follow(self) -> None:
        """Arm the deadlines and drive the lines as the registers now say."""
        self._publish_counter()
        for timer, deadline in zip(self.timers, self._deadlines, strict=True):
            if self._halted_at is not None or not timer.interrupts or self._output(timer) is None:
                deadline.cancel()
                continue
            when = (timer.next_match() - self._bias) * TICK_NS
            if timer.periodic:
                when = max(when, timer.fired_at + SHORTEST)
            if when != deadline.when:
                deadline.arm(when)
        self.update()

    def update(self) -> None:
        """Drive every line to what the timers and the devices that share them make of it."""
        with self.lock:
            self._route()
            for output in self._outputs.values():
                output.follow()

    def _route(self) -> None:
        """Say of every line what the timers make of it."""
        legacy, high = self.legacy, self._high()
        for output in self._outputs.values():
            output.cut_off = legacy and output.irq in LEGACY_IRQS
            output.held = output in high

    def _high(self) -> list[_Output | None]:
        """The outputs that timers hold high."""
        if self._halted_at is not None:
            return []
        return [
            self._output(timer)
            for timer in self.timers
            if timer.status and timer.config & INT_ENB_CNF
        ]
