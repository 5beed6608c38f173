"""The 16550A UART: the PC's serial port.

Sources: National Semiconductor PC16550D data sheet (1995), section 8 "Registers"; Texas Instruments
TL16C550C data sheet, "Principles of operation".

The line has no speed.  A byte leaves the moment it is written, so THRE and TEMT are always set; a
byte from the host arrives when the receiver has room (`pykvm.devices.incoming` says when exactly),
so input never overruns, and the character timeout is due whenever fewer characters wait than the
trigger level.  All eight bits travel whatever the word length says: a guest that never set one can
print.

Where C can answer for this device it does so (`pykvm.bus.published`): while no input waits, status
registers are values, and what is printed is posted.  With the transmitter's interrupt enabled, that
interrupt comes at once where C can drive the line, too, which it can where KVM has the interrupt
controllers.  Elsewhere it comes like that of a line with a speed: when the guest has filled the
FIFO, does anything else, or half a character's time at 115,200 bits per second later; but where a
guest without FIFOs was seen to print a character at each such interrupt, it comes at once.

The host heeds RTS where a guest that receives by interrupts uses it: one that has raised RTS since
it enabled them gets nothing while it takes RTS away (ITU-T V.24, circuit 133, "ready for
receiving").  Any other guest receives, whatever it does with RTS.
"""

from __future__ import annotations

import threading
from collections import deque
from itertools import pairwise

from pykvm.bus.device import NamedDevice
from pykvm.bus.published import Published, Rule
from pykvm.devices.incoming import Incoming
from pykvm.devices.line import Output
from pykvm.devices.stream import OUTPUT_LIMIT, OutputLog
from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import buffer, flag
from pykvm.values.subscribers import Subscribers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import ClassVar

    from pykvm.bus.published import Access
    from pykvm.clock import TimeSource
    from pykvm.devices.line import InterruptLine, Lines
    from pykvm.memory import GuestMemory

__all__ = ["Uart16550"]

# Interrupt enable register.
IER_RECEIVED = 0x01
IER_THR_EMPTY = 0x02
IER_LINE_STATUS = 0x04
IER_MODEM_STATUS = 0x08

# Interrupt identification register, highest priority first.
IIR_LINE_STATUS = 0x06
IIR_RECEIVED = 0x04
IIR_TIMEOUT = 0x0C
IIR_THR_EMPTY = 0x02
IIR_MODEM_STATUS = 0x00
IIR_NONE = 0x01
IIR_FIFO = 0xC0

# FIFO control register.
FCR_ENABLE = 0x01
FCR_RESET_RECEIVER = 0x02
TRIGGER_LEVELS = (1, 4, 8, 14)

LCR_DIVISOR_LATCH = 0x80

# Modem control register.
MCR_DTR = 0x01
MCR_RTS = 0x02
MCR_OUT1 = 0x04
MCR_OUT2 = 0x08
MCR_LOOP = 0x10

# Line status register.
LSR_DATA_READY = 0x01
LSR_OVERRUN = 0x02
LSR_PARITY = 0x04
LSR_FRAMING = 0x08
LSR_BREAK = 0x10
LSR_SENT = 0x60  # THRE and TEMT
LSR_FIFO_ERROR = 0x80
LSR_CHARACTER_ERRORS = LSR_PARITY | LSR_FRAMING | LSR_BREAK

# Modem status register; the low four bits say what changed since it was read.
MSR_CTS = 0x10
MSR_DSR = 0x20
MSR_RI = 0x40
MSR_DCD = 0x80
MSR_RING_ENDED = 0x04

# Offsets, where the divisor latch is not chosen.
DATA = 0
IER = 1
IIR = 2
LCR = 3
MCR = 4
LSR = 5
MSR = 6
SCRATCH = 7
REGISTERS = 8

# What is published depends on the transmitter's interrupt: enabled, due, or not enabled at all.
BANKS = 3
IDLE, DUE, OFF = range(BANKS)

FIFO_SIZE = 16
#: The longest, in ns, that what was printed waits for the transmitter interrupt that it causes.
LONGEST_WAIT = 50_000
CLOCK_HZ = 1_843_200

# What loopback wires each modem control output to (PC16550D 8.6.4).
_LOOP = ((MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD))

# A received character is its byte, with the line status bits it brings along shifted over it.
_BREAK = (LSR_BREAK | LSR_FRAMING) << 8


class Uart16550(OutputLog, NamedDevice):
    """A 16550A with a host at the other end of the line.

    What the guest prints is in `output` and `text` and goes to `on_output`; `send` types at it,
    from any thread.  `line` is driven with the chip's INTR output.

    >>> uart = Uart16550()
    >>> uart.write(0, 1, ord("A"))
    >>> uart.text
    'A'
    >>> uart.send("ok")
    >>> chr(uart.read(0, 1)), uart.pending
    ('o', 1)
    """

    width = 1

    def __init__(
        self,
        name: str = "com1",
        *,
        line: InterruptLine | None = None,
        limit: int = OUTPUT_LIMIT,
    ) -> None:
        super().__init__(limit=limit)
        self.name = name
        self.discarded = 0
        #: Whether the guest has read a character that the host sent.
        self.heard = False
        # Re-entrant: an interrupt line or a subscriber may well come back to this device.
        self._lock = threading.RLock()
        self._irq = Output(line)
        self._incoming = Incoming()
        self._received: deque[int] = deque()
        self._inputs = MSR_CTS | MSR_DSR | MSR_DCD
        self._drained = Subscribers()
        self._published: Published | None = None
        self._published_for: object = None
        self._bank: int | None = None
        # Of the wired line, by bank, as last published.
        self._levels: int | None = None
        # Master reset leaves these three alone; at power-on they hold anything.
        self._divisor = 12
        self._scratch = 0
        self._last_character = 0
        self.reset()

    def _summary(self) -> str:
        waiting = f", {self.pending} to read" if self.pending else ""
        return super()._summary() + waiting

    # The host's side

    def send(self, data: bytes | str) -> None:
        """Type `data` (a str as UTF-8) at the guest.  Callable from any thread; never blocks.

        What the receiver has no room for waits here, however much it is.
        """
        typed = data.encode() if isinstance(data, str) else bytes(buffer("data", data))
        with self._lock:
            self._incoming.send(typed)
            self._update()

    def send_break(self) -> None:
        """Hold the line in the break condition for one character."""
        with self._lock:
            self._incoming.send((_BREAK,))
            self._update()

    @property
    def pending(self) -> int:
        """How many characters were sent and not yet read by the guest."""
        return len(self._incoming) + len(self._received)

    @property
    def receives(self) -> bool:
        """Whether a byte from the host would interrupt the guest."""
        return bool(self._ier & IER_RECEIVED) and self._listens

    def on_drained(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call ``callback()`` whenever the guest has read the last character that was sent.

        Returns what ends that.  It is called in the thread of the vCPU that reads, and what it
        raises comes out of that vCPU's run.
        """
        return self._drained.add(callback)

    def set_modem_lines(
        self, *, cts: bool = True, dsr: bool = True, ri: bool = False, dcd: bool = True
    ) -> None:
        """Drive the modem's lines to the UART.  At first all but the ring indicator are on."""
        for name, on in (("cts", cts), ("dsr", dsr), ("ri", ri), ("dcd", dcd)):
            flag(name, on)
        with self._lock:
            self._inputs = MSR_CTS * cts | MSR_DSR * dsr | MSR_RI * ri | MSR_DCD * dcd
            self._follow_modem()
            self._update()

    def attach(self, lines: Lines, memory: GuestMemory, clock: TimeSource | None) -> None:
        """See `Attaching`.

        By the clock input comes in bursts, so that a guest is not interrupted for good.
        """
        with self._lock:
            self._irq.attach(lines)
            self._wire()
            self._republish()
            if clock is not None:
                self._incoming.pace(clock, self._resume)

    @property
    def baud(self) -> int:
        """The speed that the divisor latch asks for, in bits per second; 0 if it holds 0."""
        return CLOCK_HZ // (16 * self._divisor) if self._divisor else 0

    def reset(self) -> None:
        """Master reset (PC16550D table I).  What the host sent and the guest has not got stays."""
        with self._lock:
            self._empty_receiver()
            self._ier = 0
            self._lcr = 0
            self._mcr = 0
            self._fifo = False
            self._trigger = 1
            self._flow_control = False
            self._errors = 0
            self._thr_empty_due = False
            self._emptied = False
            self._driven = False
            self._msr = self._inputs
            self._update()

    # What needs no Python

    def publish(self, published: Published) -> None:
        """See `pykvm.bus.published.Publishing`."""
        with self._lock:
            if self._published is not None:
                self._published.withdraw()
            published.lay_out([(offset, 1) for offset in range(REGISTERS)], banks=BANKS)
            self._published = published
            self._bank = None
            self._wire()
            self._republish()

    def _wire(self) -> None:
        """Have C drive the interrupt line, if it can."""
        published = self._published
        if published is None:
            return
        self._levels = None
        # Until it is told by `_republish`, it goes on as it is.
        published.wire(self._irq.line, (1 << BANKS) - 1 if self._irq.level else 0)
        self._published_for = None

    def replay(self, accesses: Sequence[Access]) -> None:
        """See `pykvm.bus.published.Replaying`."""
        printed = bytes([a[3] for a in accesses if a[0] == DATA])
        with self._lock:
            published = self._published
            if published is not None and (published.wired or any(a[0] == IER for a in accesses)):
                self._follow_wired(accesses, published)
            elif not self._ier & IER_THR_EMPTY:
                self._thr_empty_due = True
            else:
                self._follow_unwired(accesses, printed)
        if printed:
            self.emit(printed)

    def _follow_wired(self, accesses: Sequence[Access], published: Published) -> None:
        """C has chosen the bank and driven the line, but that each byte makes a new request.

        A byte takes away the request that is due (PC16550D table III) and makes one at once.  Where
        it came on top of one, C has left the line high, so the controller has not seen that.
        """
        due, again = self._thr_empty_due, False
        for offset, _, _, value, _ in accesses:
            if offset == DATA:
                due, again = True, bool(self._ier & IER_THR_EMPTY) and (due or again)
            elif offset == IIR:
                due = again = False
            else:
                due, again = due or bool(value & IER_THR_EMPTY), False
                self._ier = value
        self._thr_empty_due = due
        self._bank = self._bank_now
        if again:
            published.pulse(DUE, through=IDLE)
        self._update()

    def _follow_unwired(self, accesses: Sequence[Access], printed: bytes) -> None:
        """C has chosen the bank by itself."""
        self._driven = self._driven or (bool(accesses[0][2]) and _by_interrupts(accesses))
        # The first of them takes the request away, the last one makes it.  Meanwhile the line was
        # low, even if a character has raised it since: that is an edge of its own.
        self._thr_empty_due = False
        self._irq.set(False)
        self._bank = self._thr_empty_due = not accesses[-1][2]
        self._update()

    def _subscribers_changed(self) -> None:
        with self._lock:
            super()._subscribers_changed()
            self._republish()

    def _republish(self) -> None:
        """Publish what holds now.  Call it with the lock, after any change."""
        published = self._published
        if published is None:
            return
        state = (
            (
                self._ier & ~IER_THR_EMPTY,
                self._lcr,
                self._mcr,
                self._msr,
                self._scratch,
                self._fifo,
                self._errors,
            ),
            bool(self._incoming),
            self._received and (len(self._received), max(self._received)),
            self._trigger,
            self._driven,
            self._at_once,
        )
        if state != self._published_for:
            self._published_for = state
            self._publish_registers(published)
        self._choose_bank(published)

    def _choose_bank(self, published: Published) -> None:
        """Go over to the bank that holds now, and to the levels of a line that C drives."""
        bank = None
        if self._bank != self._bank_now:
            bank = self._bank = self._bank_now
        levels = self._levels_by_bank() if published.wired else None
        if levels is not None and (bank is not None or levels != self._levels):
            self._levels = levels
            published.drive(levels, bank=bank)
        elif bank is not None:
            published.choose(bank)

    def _publish_registers(self, published: Published) -> None:
        divisor = self._lcr & LCR_DIVISOR_LATCH
        values = {
            LCR: self._lcr,
            MCR: self._mcr,
            LSR: None if self._errors else self._line_status(),
            MSR: None if self._msr & 0x0F else self._msr,
            SCRATCH: self._scratch,
        }
        # Any read lets a character in that waits.
        quiet = not self._incoming
        for register, value in values.items():
            published.set(register, Rule(reads=value) if quiet and value is not None else None)
        for bank in range(BANKS):
            published.set(IIR, self._iir_rule(bank) if quiet else None, bank=bank)
            published.set(DATA, None if divisor else self._thr_rule(bank), bank=bank)
            published.set(IER, self._ier_rule(bank) if quiet and not divisor else None, bank=bank)

    @property
    def _bank_now(self) -> int:
        if not self._ier & IER_THR_EMPTY:
            return OFF
        return DUE if self._thr_empty_due else IDLE

    def _source_in(self, bank: int) -> int:
        return self._interrupt(self._ier_in(bank), thr_empty_due=bank == DUE)

    def _ier_in(self, bank: int) -> int:
        return self._ier & ~IER_THR_EMPTY | (0 if bank == OFF else IER_THR_EMPTY)

    def _levels_by_bank(self) -> int:
        return sum((self._source_in(bank) != IIR_NONE) << bank for bank in range(BANKS))

    def _ier_rule(self, bank: int) -> Rule:
        """Where C drives the line, it enables the transmitter's interrupt and disables it, too."""
        ier = self._ier_in(bank)
        if self._published is None or not self._published.wired:
            return Rule(reads=ier)
        others = bytes(byte for byte in range(256) if byte != ier ^ IER_THR_EMPTY)
        # Enabling it while the THR is empty, as it always is, makes it due.
        after = DUE if bank == OFF else OFF
        return Rule(reads=ier, posts=True, prompt=others, after_write=after)

    def _thr_rule(self, bank: int) -> Rule | None:
        prompt = self._prompt
        if prompt is None or self._mcr & MCR_LOOP:
            return None
        if bank == OFF:
            return Rule(posts=True, prompt=prompt)
        if self._published is not None and self._published.wired:
            # See `_follow_wired`.
            return Rule(
                posts=True,
                prompt=prompt,
                after_write=DUE,
                within=LONGEST_WAIT if bank == DUE else 0,
            )
        if self._driven and not self._fifo:
            return None
        return Rule(posts=True, prompt=prompt, after_write=DUE, within=LONGEST_WAIT, most=FIFO_SIZE)

    def _iir_rule(self, bank: int) -> Rule:
        source = self._source_in(bank)
        value = source | (IIR_FIFO if self._fifo else 0)
        return (
            Rule(reads=value, told=True, after_read=IDLE)
            if source == IIR_THR_EMPTY
            else Rule(value)
        )

    # The guest's side

    def read(self, offset: int, size: int) -> int:
        """The register at `offset` (0 to 7), with the effect that reading it has."""
        with self._lock:
            if self._incoming:
                self._refill()
            table = self._DIVISOR_READERS if self._lcr & LCR_DIVISOR_LATCH else self._READERS
            value = table[offset & 7](self)
            if self._ier:
                self._update()
            else:
                self._republish()
            emptied, self._emptied = self._emptied, False
        if emptied:
            self._drained()
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """Set the register at `offset` (0 to 7)."""
        value &= 0xFF
        with self._lock:
            table = self._DIVISOR_WRITERS if self._lcr & LCR_DIVISOR_LATCH else self._WRITERS
            printed = table[offset & 7](self, value)
            if self._ier or self._irq.level:
                self._update()
            else:
                self._republish()
        # Outside the lock: a subscriber may wait for another thread that sends.
        if printed:
            self.emit(printed)

    def _read_rbr(self) -> int:
        if self._received:
            self.heard = self.heard or not self._mcr & MCR_LOOP
            self._last_character = self._received.popleft()
            if not self._received:
                self._incoming.used()
            self._refill()
            self._emptied = not (self._received or self._incoming or self._mcr & MCR_LOOP)
        return self._last_character

    def _read_dll(self) -> int:
        return self._divisor & 0xFF

    def _read_dlm(self) -> int:
        return self._divisor >> 8

    def _read_ier(self) -> int:
        return self._ier

    def _read_iir(self) -> int:
        source = self._interrupt(self._ier, self._thr_empty_due)
        if source == IIR_THR_EMPTY:
            self._thr_empty_due = False
        return source | (IIR_FIFO if self._fifo else 0)

    def _read_lcr(self) -> int:
        return self._lcr

    def _read_mcr(self) -> int:
        return self._mcr

    def _read_lsr(self) -> int:
        status = self._line_status()
        self._errors = 0
        return status

    def _line_status(self) -> int:
        status = LSR_SENT | self._errors
        if self._received:
            status |= LSR_DATA_READY
        flawed = self._errors & LSR_CHARACTER_ERRORS or any(c > 0xFF for c in self._received)
        if self._fifo and flawed:
            status |= LSR_FIFO_ERROR
        return status

    def _read_msr(self) -> int:
        value = self._msr
        self._msr &= 0xF0
        return value

    def _read_scr(self) -> int:
        return self._scratch

    def _write_thr(self, value: int) -> bytes | None:
        if self._ier & IER_THR_EMPTY and self._thr_empty_due:
            self._thr_empty_due = False
            self._update()
        self._thr_empty_due = True
        if not self._mcr & MCR_LOOP:
            return bytes((value,))
        self._receive(value)
        return None

    def _write_dll(self, value: int) -> None:
        self._divisor = self._divisor & 0xFF00 | value

    def _write_dlm(self, value: int) -> None:
        self._divisor = self._divisor & 0xFF | value << 8

    def _write_ier(self, value: int) -> None:
        enabled = value & ~self._ier
        self._ier = value & 0x0F
        # Enabling it while the THR is empty, as it always is, makes it due (TL16C550C, table 5).
        if enabled & IER_THR_EMPTY:
            self._thr_empty_due = True
        if not value & IER_RECEIVED:
            self._flow_control = False

    def _write_fcr(self, value: int) -> None:
        enable = bool(value & FCR_ENABLE)
        if enable != self._fifo or (enable and value & FCR_RESET_RECEIVER):
            self.discarded += len(self._received)
            self._empty_receiver()
        self._fifo = enable
        self._driven = False
        # The other bits are programmed only together with the enable bit (PC16550D 8.5).
        self._trigger = TRIGGER_LEVELS[value >> 6] if enable else 1

    def _write_lcr(self, value: int) -> None:
        self._lcr = value

    def _write_mcr(self, value: int) -> None:
        self._mcr = value & 0x1F
        if self._ier & IER_RECEIVED and value & MCR_RTS:
            self._flow_control = True
        self._follow_modem()

    def _write_scr(self, value: int) -> None:
        self._scratch = value

    def _ignore(self, value: int) -> None:
        """LSR and MSR are read-only in use: writing them is for factory tests (PC16550D 8.4)."""

    _READERS: ClassVar[tuple[Callable[[Uart16550], int], ...]] = (
        _read_rbr,
        _read_ier,
        _read_iir,
        _read_lcr,
        _read_mcr,
        _read_lsr,
        _read_msr,
        _read_scr,
    )
    _DIVISOR_READERS: ClassVar = (_read_dll, _read_dlm, *_READERS[2:])
    _WRITERS: ClassVar[tuple[Callable[[Uart16550, int], bytes | None], ...]] = (
        _write_thr,
        _write_ier,
        _write_fcr,
        _write_lcr,
        _write_mcr,
        _ignore,
        _ignore,
        _write_scr,
    )
    _DIVISOR_WRITERS: ClassVar = (_write_dll, _write_dlm, *_WRITERS[2:])

    # Inside

    @property
    def _room(self) -> int:
        return (FIFO_SIZE if self._fifo else 1) - len(self._received)

    @property
    def _listens(self) -> bool:
        """Whether characters arrive: in loopback the line is disconnected, and see RTS above."""
        if self._mcr & MCR_LOOP:
            return False
        return not self._flow_control or bool(self._mcr & MCR_RTS)

    def _refill(self) -> None:
        """Let the receiver have what the host sent, as far as there is room.

        The guest cannot know when a character came, so it comes when the guest looks or is to be
        interrupted: what it does to the chip before that, as drivers do when they start, throws
        nothing away.
        """
        if self._incoming and self._listens:
            by_interrupt = self._ier & IER_RECEIVED
            take = self._incoming.take_burst if by_interrupt else self._incoming.take
            self._received.extend(take(self._room))
        self._reveal()

    def _empty_receiver(self) -> None:
        self._received.clear()
        self._incoming.used()

    def _resume(self) -> None:
        """The line has paused long enough."""
        with self._lock:
            self._update()

    def _receive(self, character: int) -> None:
        """Take one character from the loop.  Raises nothing when full: that is an overrun."""
        if self._room:
            self._received.append(character)
            return
        self._errors |= LSR_OVERRUN
        if not self._fifo:
            self._received[-1] = character

    def _reveal(self) -> None:
        """Let the oldest character's errors show in the line status (PC16550D 8.4)."""
        if self._received:
            self._errors |= self._received[0] >> 8
            self._received[0] &= 0xFF

    def _follow_modem(self) -> None:
        """Take over the modem lines, noting what changed."""
        now = self._inputs
        if self._mcr & MCR_LOOP:
            now = sum(status for control, status in _LOOP if self._mcr & control)
        before = self._msr & 0xF0
        changed = (before ^ now) >> 4
        # Of the ring indicator only its end counts.
        if now & MSR_RI:
            changed &= ~MSR_RING_ENDED
        self._msr = now | self._msr & 0x0F | changed

    def _interrupt(self, ier: int, thr_empty_due: bool) -> int:
        """What the IIR names: the most urgent source that is enabled and due."""
        if ier & IER_LINE_STATUS and self._errors:
            return IIR_LINE_STATUS
        if ier & IER_RECEIVED and self._received:
            return IIR_RECEIVED if len(self._received) >= self._trigger else IIR_TIMEOUT
        if ier & IER_THR_EMPTY and thr_empty_due:
            return IIR_THR_EMPTY
        if ier & IER_MODEM_STATUS and self._msr & 0x0F:
            return IIR_MODEM_STATUS
        return IIR_NONE

    def _update(self) -> None:
        """Drive the interrupt line to what the registers now say."""
        if self._ier & (IER_RECEIVED | IER_LINE_STATUS):
            self._refill()
        # In this order: the guest may be running, and must not be interrupted and find an IIR
        # that names nothing.  The line would stay high then, and never make another edge.
        self._republish()
        self._drive()

    def _drive(self) -> None:
        level = self._interrupt(self._ier, self._thr_empty_due) != IIR_NONE
        if self._published is not None and self._published.wired:
            # `_republish` publishes what drives the line.
            self._irq.level = level
        else:
            self._irq.set(level)


def _by_interrupts(accesses: Sequence[Access]) -> bool:
    """Whether the guest prints when it is interrupted: it reads the IIR before, and not after."""
    return (False, True) not in pairwise(bool(read) for _, _, read, _, _ in accesses)
