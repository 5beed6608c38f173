"""The registers of a 16550A, and what follows from them.  For sources see `pykvm.devices.uart`."""

from __future__ import annotations

from collections import deque

from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import integer, one_of
from pykvm.values.state import State

if TYPE_CHECKING:
    from pykvm.values.state import U4, U5, U8, U16

__all__ = ["Registers"]

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

FIFO_SIZE = 16
CLOCK_HZ = 1_843_200

# What loopback wires each modem control output to (PC16550D 8.6.4).
_LOOP = ((MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD))

# A received character is its byte, with the line status bits it brings along shifted over it.
BREAK = (LSR_BREAK | LSR_FRAMING) << 8


class RegistersState(State):
    """The registers, and the receiver: each character with its line status over its byte."""

    received: tuple[U16, ...]
    ier: U4
    lcr: U8
    mcr: U5
    msr: U8
    errors: U8
    fifo: bool
    trigger: U8
    flow_control: bool
    thr_empty_due: bool
    divisor: U16
    scratch: U8
    last_character: U16


class Registers:
    """What the chip holds: its registers, its receiver, and which interrupt is due.

    >>> registers = Registers()
    >>> registers.ier = IER_RECEIVED
    >>> registers.receive(ord("A"))
    >>> registers.source == IIR_RECEIVED, registers.line_status == LSR_SENT | LSR_DATA_READY
    (True, True)
    """

    def __init__(self) -> None:
        self.received: deque[int] = deque()
        # Master reset leaves these three alone; at power-on they hold anything.
        self.divisor = 12
        self.scratch = 0
        self.last_character = 0
        self.reset(MSR_CTS | MSR_DSR | MSR_DCD)

    def reset(self, inputs: int) -> None:
        """Master reset (PC16550D table I), with these levels at the modem's lines."""
        self.received.clear()
        self.ier = 0
        self.lcr = 0
        self.mcr = 0
        self.msr = inputs
        #: The error bits of the line status, until it is read.
        self.errors = 0
        self.fifo = False
        self.trigger = 1
        #: Whether the guest uses RTS to hold up what is sent to it.
        self.flow_control = False
        self.thr_empty_due = False

    def state(self) -> RegistersState:
        """See `pykvm.values.state.Stateful`."""
        return RegistersState(
            tuple(self.received),
            self.ier,
            self.lcr,
            self.mcr,
            self.msr,
            self.errors,
            self.fifo,
            self.trigger,
            self.flow_control,
            self.thr_empty_due,
            self.divisor,
            self.scratch,
            self.last_character,
        )

    def restore(self, state: RegistersState) -> None:
        """See `pykvm.values.state.Stateful`."""
        integer("characters in the receiver", len(state.received), 0, FIFO_SIZE)
        one_of("the receiver's trigger level", state.trigger, TRIGGER_LEVELS)
        self.received.clear()
        self.received.extend(state.received)
        self.ier = state.ier
        self.lcr = state.lcr
        self.mcr = state.mcr
        self.msr = state.msr
        self.errors = state.errors
        self.fifo = state.fifo
        self.trigger = state.trigger
        self.flow_control = state.flow_control
        self.thr_empty_due = state.thr_empty_due
        self.divisor = state.divisor
        self.scratch = state.scratch
        self.last_character = state.last_character

    @property
    def loops(self) -> bool:
        """Whether the chip is in loopback, its lines disconnected."""
        return bool(self.mcr & MCR_LOOP)

    @property
    def listens(self) -> bool:
        """Whether characters arrive from the line."""
        return not self.loops and (not self.flow_control or bool(self.mcr & MCR_RTS))

    @property
    def room(self) -> int:
        """How many more characters the receiver takes."""
        return (FIFO_SIZE if self.fifo else 1) - len(self.received)

    def receive(self, character: int) -> None:
        """Take one character.  Raises nothing when full: that is an overrun."""
        if self.room:
            self.received.append(character)
            return
        self.errors |= LSR_OVERRUN
        if not self.fifo:
            self.received[-1] = character

    def reveal(self) -> None:
        """Let the oldest character's errors show in the line status (PC16550D 8.4)."""
        if self.received:
            self.errors |= self.received[0] >> 8
            self.received[0] &= 0xFF

    @property
    def line_status(self) -> int:
        """The LSR, without the effect that reading it has."""
        status = LSR_SENT | self.errors
        if self.received:
            status |= LSR_DATA_READY
        flawed = self.errors & LSR_CHARACTER_ERRORS or any(c > 0xFF for c in self.received)
        if self.fifo and flawed:
            status |= LSR_FIFO_ERROR
        return status

    def follow_modem(self, inputs: int) -> None:
        """Take over the levels of the modem's lines, noting what changed."""
        now = inputs
        if self.loops:
            now = sum(status for control, status in _LOOP if self.mcr & control)
        before = self.msr & 0xF0
        changed = (before ^ now) >> 4
        # Of the ring indicator only its end counts.
        if now & MSR_RI:
            changed &= ~MSR_RING_ENDED
        self.msr = now | self.msr & 0x0F | changed

    @property
    def source(self) -> int:
        """What the IIR names now."""
        return self.source_with(self.ier, self.thr_empty_due)

    def source_with(self, ier: int, thr_empty_due: bool) -> int:
        """What the IIR names: the most urgent source that is enabled and due."""
        if ier & IER_LINE_STATUS and self.errors:
            return IIR_LINE_STATUS
        if ier & IER_RECEIVED and self.received:
            return IIR_RECEIVED if len(self.received) >= self.trigger else IIR_TIMEOUT
        if ier & IER_THR_EMPTY and thr_empty_due:
            return IIR_THR_EMPTY
        if ier & IER_MODEM_STATUS and self.msr & 0x0F:
            return IIR_MODEM_STATUS
        return IIR_NONE
