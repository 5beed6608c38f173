"""The 16550A UART: the PC's serial port.

Sources: National Semiconductor PC16550D data sheet (1995), section 8 "Registers"; Texas Instruments
TL16C550C data sheet, "Principles of operation".

The line has no speed.  A byte leaves the moment it is written, so THRE and TEMT are always set; a
byte from the host arrives when the receiver has room (`pykvm.devices.incoming` says when exactly),
so input never overruns, and the character timeout is due whenever fewer characters wait than the
trigger level.  All eight bits travel whatever the word length says: a guest that never set one can
print.  When the transmitter's interrupt comes `pykvm.devices.uart_rules` says.

The host heeds RTS where a guest that receives by interrupts uses it: one that has raised RTS since
it enabled them gets nothing while it takes RTS away (ITU-T V.24, circuit 133, "ready for
receiving").  Any other guest receives, whatever it does with RTS.
"""

from __future__ import annotations

from _thread import RLock

from pykvm.bus.device import NamedDevice
from pykvm.devices.incoming import Incoming
from pykvm.devices.line import Output
from pykvm.devices.stream import OUTPUT_LIMIT, OutputLog, OutputState
from pykvm.devices.uart_registers import (
    BREAK,
    CLOCK_HZ,
    DATA,
    FCR_ENABLE,
    FCR_RESET_RECEIVER,
    IER_LINE_STATUS,
    IER_RECEIVED,
    IER_THR_EMPTY,
    IIR_FIFO,
    IIR_NONE,
    IIR_THR_EMPTY,
    LCR_DIVISOR_LATCH,
    MCR_RTS,
    MSR_CTS,
    MSR_DCD,
    MSR_DSR,
    MSR_RI,
    TRIGGER_LEVELS,
    Registers,
)
from pykvm.devices.uart_rules import UartRules
from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import buffer, flag
from pykvm.values.state import expect
from pykvm.values.subscribers import Subscribers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import ClassVar

    from pykvm.bus.published import Access, Published
    from pykvm.clock import TimeSource
    from pykvm.devices.incoming import IncomingState
    from pykvm.devices.line import InterruptLine, Lines
    from pykvm.devices.uart_registers import RegistersState
    from pykvm.memory import GuestMemory
    from pykvm.values.state import U8, U64

__all__ = ["Uart16550", "UartState"]


class UartState(OutputState):
    """What was printed, the chip, and what was sent to it.

    `modem` is the levels of the modem's lines, `discarded` and `heard` are what the host has seen
    of the guest; `driven` is whether it was seen to print a character at each interrupt.
    """

    registers: RegistersState
    incoming: IncomingState
    modem: U8
    irq: bool
    driven: bool
    discarded: U64
    heard: bool


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
        self._lock = RLock()
        self._irq = Output(line)
        self._incoming = Incoming()
        self._registers = Registers()
        self._rules = UartRules(self._registers, self._irq)
        self._inputs = MSR_CTS | MSR_DSR | MSR_DCD
        self._drained = Subscribers()
        self._emptied = False

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
            self._incoming.send((BREAK,))
            self._update()

    @property
    def pending(self) -> int:
        """How many characters were sent and not yet read by the guest."""
        return len(self._incoming) + len(self._registers.received)

    @property
    def receives(self) -> bool:
        """Whether a byte from the host would interrupt the guest."""
        registers = self._registers
        return bool(registers.ier & IER_RECEIVED) and registers.listens

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
            self._registers.follow_modem(self._inputs)
            self._update()

    def attach(self, lines: Lines, memory: GuestMemory, clock: TimeSource | None) -> None:
        """See `Attaching`.

        By the clock input comes in bursts, so that a guest is not interrupted for good.
        """
        with self._lock:
            self._irq.attach(lines)
            self._rules.wire()
            self._republish()
            if clock is not None:
                self._incoming.pace(clock, self._resume)

    @property
    def baud(self) -> int:
        """The speed that the divisor latch asks for, in bits per second; 0 if it holds 0."""
        divisor = self._registers.divisor
        return CLOCK_HZ // (16 * divisor) if divisor else 0

    def reset(self) -> None:
        """Master reset (PC16550D table I).  What the host sent and the guest has not got stays."""
        with self._lock:
            self._registers.reset(self._inputs)
            self._incoming.used()
            self._rules.driven = False
            self._emptied = False
            self._update()

    # What needs no Python

    def publish(self, published: Published) -> None:
        """See `pykvm.bus.published.Publishing`."""
        with self._lock:
            self._rules.publish(published)
            self._republish()

    def replay(self, accesses: Sequence[Access]) -> None:
        """See `pykvm.bus.published.Replaying`."""
        printed = bytes([a[3] for a in accesses if a[0] == DATA])
        with self._lock:
            if self._rules.replay(accesses):
                self._update()
        if printed:
            self.emit(printed)

    # What is saved

    def state(self) -> UartState:
        """See `pykvm.values.state.Stateful`."""
        with self._lock:
            return UartState(
                self.output,
                self.dropped,
                self._registers.state(),
                self._incoming.state(),
                self._inputs,
                self._irq.state(),
                self._rules.driven,
                self.discarded,
                self.heard,
            )

    def restore(self, state: OutputState) -> None:
        """See `pykvm.values.state.Stateful`: what was sent since, or printed, is forgotten."""
        saved = expect(state, UartState)
        with self._lock:
            self._incoming.restore(saved.incoming)
            self._registers.restore(saved.registers)
            self._inputs = saved.modem & (MSR_CTS | MSR_DSR | MSR_RI | MSR_DCD)
            self._irq.restore(saved.irq)
            self._rules.driven = saved.driven
            self.discarded, self.heard = saved.discarded, saved.heard
            super().restore(saved)
            self._rules.restore(waiting=bool(self._incoming), prompt=self._prompt)

    def _subscribers_changed(self) -> None:
        with self._lock:
            super()._subscribers_changed()
            self._republish()

    # The guest's side

    def read(self, offset: int, size: int) -> int:
        """The register at `offset` (0 to 7), with the effect that reading it has."""
        with self._lock:
            registers = self._registers
            if self._incoming:
                self._refill()
            table = self._DIVISOR_READERS if registers.lcr & LCR_DIVISOR_LATCH else self._READERS
            value = table[offset & 7](self)
            if registers.ier:
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
            registers = self._registers
            table = self._DIVISOR_WRITERS if registers.lcr & LCR_DIVISOR_LATCH else self._WRITERS
            printed = table[offset & 7](self, value)
            if registers.ier or self._irq.level:
                self._update()
            else:
                self._republish()
        # Outside the lock: a subscriber may wait for another thread that sends.
        if printed:
            self.emit(printed)

    def _read_rbr(self) -> int:
        registers = self._registers
        if registers.received:
            self.heard = self.heard or not registers.loops
            registers.last_character = registers.received.popleft()
            if not registers.received:
                # Without a FIFO a guest knows that there is no more.
                self._incoming.used(unseen=registers.fifo)
            self._refill()
            self._emptied = not (registers.received or self._incoming or registers.loops)
        return registers.last_character

    def _read_dll(self) -> int:
        return self._registers.divisor & 0xFF

    def _read_dlm(self) -> int:
        return self._registers.divisor >> 8

    def _read_ier(self) -> int:
        return self._registers.ier

    def _read_iir(self) -> int:
        registers = self._registers
        source = registers.source
        if source == IIR_THR_EMPTY:
            registers.thr_empty_due = False
        if not registers.received:
            self._incoming.seen()
        return source | (IIR_FIFO if registers.fifo else 0)

    def _read_lcr(self) -> int:
        return self._registers.lcr

    def _read_mcr(self) -> int:
        return self._registers.mcr

    def _read_lsr(self) -> int:
        registers = self._registers
        status = registers.line_status
        registers.errors = 0
        if not registers.received:
            self._incoming.seen()
        return status

    def _read_msr(self) -> int:
        registers = self._registers
        value = registers.msr
        registers.msr &= 0xF0
        return value

    def _read_scr(self) -> int:
        return self._registers.scratch

    def _write_thr(self, value: int) -> bytes | None:
        registers = self._registers
        if registers.ier & IER_THR_EMPTY and registers.thr_empty_due:
            registers.thr_empty_due = False
            self._update()
        registers.thr_empty_due = True
        if not registers.loops:
            return bytes((value,))
        registers.receive(value)
        return None

    def _write_dll(self, value: int) -> None:
        registers = self._registers
        registers.divisor = registers.divisor & 0xFF00 | value

    def _write_dlm(self, value: int) -> None:
        registers = self._registers
        registers.divisor = registers.divisor & 0xFF | value << 8

    def _write_ier(self, value: int) -> None:
        registers = self._registers
        enabled = value & ~registers.ier
        registers.ier = value & 0x0F
        # Enabling it while the THR is empty, as it always is, makes it due (TL16C550C, table 5).
        if enabled & IER_THR_EMPTY:
            registers.thr_empty_due = True
        if not value & IER_RECEIVED:
            registers.flow_control = False

    def _write_fcr(self, value: int) -> None:
        registers = self._registers
        enable = bool(value & FCR_ENABLE)
        if enable != registers.fifo or (enable and value & FCR_RESET_RECEIVER):
            self.discarded += len(registers.received)
            registers.received.clear()
            self._incoming.used()
        registers.fifo = enable
        self._rules.driven = False
        # The other bits are programmed only together with the enable bit (PC16550D 8.5).
        registers.trigger = TRIGGER_LEVELS[value >> 6] if enable else 1

    def _write_lcr(self, value: int) -> None:
        self._registers.lcr = value

    def _write_mcr(self, value: int) -> None:
        registers = self._registers
        registers.mcr = value & 0x1F
        if registers.ier & IER_RECEIVED and value & MCR_RTS:
            registers.flow_control = True
        registers.follow_modem(self._inputs)

    def _write_scr(self, value: int) -> None:
        self._registers.scratch = value

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

    def _refill(self) -> None:
        """Let the receiver have what the host sent, as far as there is room.

        The guest cannot know when a character came, so it comes when the guest looks or is to be
        interrupted: what it does to the chip before that, as drivers do when they start, throws
        nothing away.
        """
        registers = self._registers
        if self._incoming and registers.listens:
            by_interrupt = registers.ier & IER_RECEIVED
            take = self._incoming.take_burst if by_interrupt else self._incoming.take
            registers.received.extend(take(registers.room))
        registers.reveal()

    def _resume(self) -> None:
        """The line has paused long enough."""
        with self._lock:
            self._update()

    def _update(self) -> None:
        """Drive the interrupt line to what the registers now say."""
        if self._registers.ier & (IER_RECEIVED | IER_LINE_STATUS):
            self._refill()
        # In this order: the guest may be running, and must not be interrupted and find an IIR
        # that names nothing.  The line would stay high then, and never make another edge.
        self._republish()
        self._drive()

    def _republish(self) -> None:
        """Publish what holds now.  Call it with the lock, after any change."""
        self._rules.refresh(waiting=bool(self._incoming), prompt=self._prompt)

    def _drive(self) -> None:
        level = self._registers.source != IIR_NONE
        if self._rules.wired:
            # `_republish` publishes what drives the line.
            self._irq.level = level
        else:
            self._irq.set(level)
