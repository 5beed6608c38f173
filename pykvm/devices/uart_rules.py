"""What a UART publishes, so that C answers for it (`pykvm.bus.published`).

While no input waits, status registers are values, and what is printed is posted.  With the
transmitter's interrupt enabled, that interrupt comes at once where C can drive the line, too, which
it can where KVM has the interrupt controllers.  Elsewhere it comes like that of a line with a
speed: when the guest has filled the FIFO, does anything else, or half a character's time at 115,200
bits per second later; but where a guest without FIFOs was seen to print a character at each such
interrupt, it comes at once.
"""

from __future__ import annotations

from itertools import pairwise

from pykvm.bus.published import Rule
from pykvm.devices.uart_registers import (
    DATA,
    FIFO_SIZE,
    IER,
    IER_THR_EMPTY,
    IIR,
    IIR_FIFO,
    IIR_NONE,
    IIR_THR_EMPTY,
    LCR,
    LCR_DIVISOR_LATCH,
    LSR,
    MCR,
    MSR,
    REGISTERS,
    SCRATCH,
)
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.bus.published import Access, Published
    from pykvm.devices.line import Output
    from pykvm.devices.uart_registers import Registers

__all__ = ["UartRules"]

# What is published depends on the transmitter's interrupt: enabled, due, or not enabled at all.
BANKS = 3

_BYTES = bytes(range(256))
IDLE, DUE, OFF = range(BANKS)

#: The longest, in ns, that what was printed waits for the transmitter interrupt that it causes.
LONGEST_WAIT = 50_000


class UartRules:
    """The rules that follow from a UART's registers, and what C did by them.

    `irq` is the chip's INTR output.  The owner calls `refresh` after any change.
    """

    def __init__(self, registers: Registers, irq: Output) -> None:
        self._registers = registers
        self._irq = irq
        self._published: Published | None = None
        self._published_for: object = None
        self._bank: int | None = None
        # Of the wired line, by bank, as last published.
        self._levels: int | None = None
        # The bytes printed that Python must see at once; None for all of them.
        self._prompt: bytes | None = None
        #: Whether the guest was seen to print a character at each interrupt.
        self.driven = False

    @property
    def wired(self) -> bool:
        """Whether C drives the interrupt line."""
        return self._published is not None and self._published.wired

    def publish(self, published: Published) -> None:
        """Use `published` from the next `refresh` on."""
        if self._published is not None:
            self._published.withdraw()
        published.lay_out([(offset, 1) for offset in range(REGISTERS)], banks=BANKS)
        self._published = published
        self._bank = None
        self.wire()

    def wire(self) -> None:
        """Have C drive the interrupt line, if it can."""
        published = self._published
        if published is None:
            return
        self._levels = None
        # Until the next `refresh` it goes on as it is.
        published.wire(self._irq.line, (1 << BANKS) - 1 if self._irq.level else 0)
        self._published_for = None

    def refresh(self, *, waiting: bool, prompt: bytes | None) -> None:
        """Publish what holds now.

        `waiting` is whether input waits to come in, which any read lets in; `prompt` has the bytes
        that Python must see as soon as they are printed, None for all of them.
        """
        published = self._published
        if published is None:
            return
        registers = self._registers
        received = registers.received
        state = (
            registers.ier & ~IER_THR_EMPTY,
            registers.lcr,
            registers.mcr,
            registers.msr,
            registers.scratch,
            registers.fifo,
            registers.errors,
            waiting,
            received and (len(received), max(received)),
            registers.trigger,
            self.driven,
            prompt,
        )
        if state != self._published_for:
            self._published_for = state
            self._prompt = prompt
            self._publish_registers(published, quiet=not waiting)
        self._choose_bank(published)

    def restore(self, *, waiting: bool, prompt: bytes | None) -> None:
        """Publish what holds now that the registers are restored, and leave the line alone."""
        published = self._published
        self._published_for = self._bank = self._levels = None
        if published is None:
            return
        self._prompt = prompt
        self._publish_registers(published, quiet=not waiting)
        self._bank = self._bank_now
        if published.wired:
            self._levels = self._levels_by_bank()
        published.restore(self._bank, levels=self._levels or 0)

    # What C did

    def replay(self, accesses: Sequence[Access]) -> bool:
        """Do to the registers what C did by the rules; returns whether the line may change."""
        registers, published = self._registers, self._published
        if published is not None and (published.wired or any(a[0] == IER for a in accesses)):
            self._replay_wired(accesses, published)
        elif registers.ier & IER_THR_EMPTY:
            self._replay_unwired(accesses)
        else:
            registers.thr_empty_due = True
            return False
        return True

    def _replay_wired(self, accesses: Sequence[Access], published: Published) -> None:
        """C has chosen the bank and driven the line, but that each byte makes a new request.

        A byte takes away the request that is due (PC16550D table III) and makes one at once.  Where
        it came on top of one, C has left the line high, so the controller has not seen that.
        """
        registers = self._registers
        due, again = registers.thr_empty_due, False
        for offset, _, _, value, _ in accesses:
            if offset == DATA:
                due, again = True, bool(registers.ier & IER_THR_EMPTY) and (due or again)
            elif offset == IIR:
                due = again = False
            else:
                due, again = due or bool(value & IER_THR_EMPTY), False
                registers.ier = value
        registers.thr_empty_due = due
        self._bank = self._bank_now
        if again:
            published.pulse(DUE, through=IDLE)

    def _replay_unwired(self, accesses: Sequence[Access]) -> None:
        """C has chosen the bank by itself."""
        self.driven = self.driven or (bool(accesses[0][2]) and _by_interrupts(accesses))
        # The first of them takes the request away, the last one makes it.  Meanwhile the line was
        # low, even if a character has raised it since: that is an edge of its own.
        self._irq.set(False)
        self._bank = self._registers.thr_empty_due = not accesses[-1][2]

    # What is published

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

    def _publish_registers(self, published: Published, *, quiet: bool) -> None:
        registers = self._registers
        divisor = registers.lcr & LCR_DIVISOR_LATCH
        values = {
            LCR: registers.lcr,
            MCR: registers.mcr,
            LSR: None if registers.errors else registers.line_status,
            MSR: None if registers.msr & 0x0F else registers.msr,
            SCRATCH: registers.scratch,
        }
        for register, value in values.items():
            published.set(register, Rule(reads=value) if quiet and value is not None else None)
        for bank in range(BANKS):
            published.set(IIR, self._iir_rule(bank) if quiet else None, bank=bank)
            published.set(DATA, None if divisor else self._thr_rule(bank), bank=bank)
            published.set(IER, self._ier_rule(bank) if quiet and not divisor else None, bank=bank)

    @property
    def _bank_now(self) -> int:
        if not self._registers.ier & IER_THR_EMPTY:
            return OFF
        return DUE if self._registers.thr_empty_due else IDLE

    def _source_in(self, bank: int) -> int:
        return self._registers.source_with(self._ier_in(bank), thr_empty_due=bank == DUE)

    def _ier_in(self, bank: int) -> int:
        return self._registers.ier & ~IER_THR_EMPTY | (0 if bank == OFF else IER_THR_EMPTY)

    def _levels_by_bank(self) -> int:
        return sum((self._source_in(bank) != IIR_NONE) << bank for bank in range(BANKS))

    def _ier_rule(self, bank: int) -> Rule:
        """Where C drives the line, it enables the transmitter's interrupt and disables it, too."""
        ier = self._ier_in(bank)
        if not self.wired:
            return Rule(reads=ier)
        others = _BYTES.replace(bytes([ier ^ IER_THR_EMPTY]), b"")
        # Enabling it while the THR is empty, as it always is, makes it due.
        after = DUE if bank == OFF else OFF
        return Rule(reads=ier, posts=True, prompt=others, after_write=after)

    def _thr_rule(self, bank: int) -> Rule | None:
        registers, prompt = self._registers, self._prompt
        if prompt is None or registers.loops:
            return None
        if bank == OFF:
            return Rule(posts=True, prompt=prompt)
        if self.wired:
            # See `_replay_wired`.
            return Rule(
                posts=True,
                prompt=prompt,
                after_write=DUE,
                within=LONGEST_WAIT if bank == DUE else 0,
            )
        if self.driven and not registers.fifo:
            return None
        return Rule(posts=True, prompt=prompt, after_write=DUE, within=LONGEST_WAIT, most=FIFO_SIZE)

    def _iir_rule(self, bank: int) -> Rule:
        source = self._source_in(bank)
        value = source | (IIR_FIFO if self._registers.fifo else 0)
        return (
            Rule(reads=value, told=True, after_read=IDLE)
            if source == IIR_THR_EMPTY
            else Rule(value)
        )


def _by_interrupts(accesses: Sequence[Access]) -> bool:
    """Whether the guest prints when it is interrupted: it reads the IIR before, and not after."""
    return (False, True) not in pairwise(bool(read) for _, _, read, _, _ in accesses)
