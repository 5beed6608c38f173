"""The PC's two 8259A interrupt controllers.

Sources: Intel 8259A data sheet (231468-003, December 1988), by the titles of its sections; Intel
I/O Controller Hub 9 data sheet, 13.4, for the edge/level control registers (13.4.10 and 13.4.11)
and for what a chipset has wired for good.
"""

from __future__ import annotations

from _thread import RLock
from functools import lru_cache, partial

from pykvm.bus.device import NamedDevice
from pykvm.bus.published import Published, Rule
from pykvm.devices.line import InterruptLine, Unconnected, restore_level
from pykvm.errors import ConfigError
from pykvm.interrupts.input_driver import InputDriver
from pykvm.layout import CASCADE_IRQ
from pykvm.typed import TYPE_CHECKING
from pykvm.values.state import State, expect

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import ClassVar

    from pykvm.bus.published import Access
    from pykvm.values.state import U3, U8

__all__ = ["Pic8259", "Pic8259Pair", "Pic8259State"]

# Initialization command words.
ICW1 = 0x10
ICW1_SINGLE = 0x02
ICW1_ICW4 = 0x01
ICW2_VECTOR = 0xF8
ICW3_IDENTITY = 0x07
ICW4_NESTED = 0x10
ICW4_AUTO_EOI = 0x02

# Operation command words.
OCW2_ROTATE = 0x80
OCW2_SPECIFIC = 0x40
OCW2_EOI = 0x20
OCW3 = 0x08
OCW3_CHANGE_SPECIAL_MASK = 0x40
OCW3_SPECIAL_MASK = 0x20
OCW3_POLL = 0x04
OCW3_SELECT = 0x02
OCW3_ISR = 0x01

POLL_REQUEST = 0x80
SPURIOUS = 7

# What a processor reads when no chip answers its acknowledge cycle.
FLOATING_BUS = 0xFF

# Of OCW2, what ends a service and changes nothing else.
ENDS = frozenset((OCW2_EOI, *range(OCW2_EOI | OCW2_SPECIFIC, (OCW2_EOI | OCW2_SPECIFIC) + 8)))
NOT_ENDS = bytes(value for value in range(256) if value not in ENDS)

# Banks of what is published: nothing, and what holds while a chip requests nothing.
BUSY, QUIET = range(2)

# The initialization command words that may still be to come, by number.
AWAITED = frozenset(((), (2, 3, 4), (2, 3), (2, 4), (2,), (3, 4), (3,), (4,)))

# Level triggering can be chosen for none of IRQ 0, 1, 2, 8 and 13.
ELCR_WRITABLE = (0xF8, 0xDE)


class Pic8259State(State):
    """The registers of one chip, the levels at its inputs, and the command words that are to come.

    `awaited` is the numbers of the initialization command words.
    """

    lines: U8
    irr: U8
    isr: U8
    imr: U8
    elcr: U8
    lowest: U3
    vector: U8
    slaves: U8
    identity: U3
    auto_eoi: bool
    rotate_on_auto_eoi: bool
    fully_nested: bool
    special_mask: bool
    ready: bool
    polling: bool
    reads_isr: bool
    awaited: tuple[U3, ...]


class Pic8259:
    """One 8259A, without the wires around it: `Pic8259Pair` has two.

    `lines` are the levels at its inputs; `irr`, `isr` and `imr` its registers; `elcr` says which
    inputs are level-triggered; `lowest` is the input of the lowest priority; `slaves` are the
    inputs that ICW3 says have a slave connected, and `identity` is the slave that it makes this;
    after a poll command it is `polling` until it is read.
    """

    def __init__(self, *, master: bool) -> None:
        self.master = master
        self.lines = 0
        self.reset()

    def reset(self) -> None:
        """Return to the state at power-on: until it is initialized it requests nothing."""
        self.irr = 0
        self.isr = 0
        self.imr = 0
        self.elcr = 0
        self.lowest = 7
        self.vector = 0
        self.slaves = 0
        self.identity = 7
        self.auto_eoi = False
        self.rotate_on_auto_eoi = False
        self.fully_nested = False
        self.special_mask = False
        self.ready = False
        self.polling = False
        #: Whether a read at A0 = 0 gives the ISR, not the IRR.
        self.reads_isr = False
        # The numbers of the initialization command words that are to come.
        self._awaited: tuple[int, ...] = ()

    def state(self) -> Pic8259State:
        """See `pykvm.values.state.Stateful`."""
        return Pic8259State(
            self.lines,
            self.irr,
            self.isr,
            self.imr,
            self.elcr,
            self.lowest,
            self.vector,
            self.slaves,
            self.identity,
            self.auto_eoi,
            self.rotate_on_auto_eoi,
            self.fully_nested,
            self.special_mask,
            self.ready,
            self.polling,
            self.reads_isr,
            self._awaited,
        )

    def restore(self, state: Pic8259State) -> None:
        """See `pykvm.values.state.Stateful`."""
        expect(state, Pic8259State)
        if state.awaited not in AWAITED:
            raise ConfigError(f"no chip waits for command words {state.awaited!r:.60}")
        self.lines = state.lines
        self.irr = state.irr
        self.isr = state.isr
        self.imr = state.imr
        self.elcr = state.elcr & ELCR_WRITABLE[not self.master]
        self.lowest = state.lowest
        self.vector = state.vector & ICW2_VECTOR
        self.slaves = state.slaves
        self.identity = state.identity
        self.auto_eoi = state.auto_eoi
        self.rotate_on_auto_eoi = state.rotate_on_auto_eoi
        self.fully_nested = state.fully_nested
        self.special_mask = state.special_mask
        self.ready = state.ready
        self.polling = state.polling
        self.reads_isr = state.reads_isr
        self._awaited = state.awaited

    def __str__(self) -> str:
        modes = (
            ("uninitialized", not self.ready),
            ("auto-eoi", self.auto_eoi),
            ("rotating", self.rotate_on_auto_eoi),
            ("special-mask", self.special_mask),
            ("fully-nested", self.fully_nested),
        )
        names = "".join(f" {name}" for name, on in modes if on)
        return (
            f"irr={self.irr:02x} isr={self.isr:02x} imr={self.imr:02x} elcr={self.elcr:02x} "
            f"lines={self.lines:02x} vector={self.vector:02x} lowest={self.lowest}{names}"
        )

    # The processor's side

    def read(self, a0: int) -> int:
        """What the chip answers at A0: IRR or ISR at 0, IMR at 1, after a poll command the poll."""
        if self.polling:
            self.polling = False
            return self.poll()
        if a0:
            return self.imr
        return self.isr if self.reads_isr else self.irr

    def write(self, a0: int, value: int) -> None:
        """Take a command word."""
        if not a0:
            if value & ICW1:
                self._icw1(value)
            elif value & OCW3:
                self._ocw3(value)
            else:
                self._ocw2(value)
        elif self._awaited:
            word, *rest = self._awaited
            self._awaited = tuple(rest)
            self._WORDS[word](self, value)
            self.ready = not rest
        else:
            self.imr = value

    def quiet(self) -> bool:
        """Whether it is initialized, requests nothing, and is in the middle of nothing."""
        return self.ready and not (self.irr & ~self.imr or self.polling or self._awaited)

    def request(self) -> int | None:
        """The input whose request goes to the processor now, if any: INT is high if there is one.

        "Fully Nested Mode": requests that are not masked, against what is in service.
        """
        requests = self.irr & ~self.imr
        if not requests or not self.ready:
            return None
        found = self._first(requests)
        if not self.isr or not (served := self._served()):
            return found
        current = self._first(served)
        if self._rank(found) < self._rank(current):
            return found
        # "The Special Fully Nested Mode": a slave in service may ask again for what outranks it.
        if found == current and self.fully_nested and self.slaves >> found & 1:
            return found
        return None

    @property
    def requests(self) -> bool:
        """Whether INT is high."""
        if not self.irr & ~self.imr:
            return False
        return self.ready if not self.isr else self.request() is not None

    def accept(self) -> int | None:
        """Answer an acknowledge cycle: put the input into service; None if there is none.

        "Interrupt Sequence", "Automatic End of Interrupt (AEOI) Mode", "Automatic Rotation".
        """
        found = self.request()
        if found is None:
            return None
        bit = 1 << found
        self.isr |= bit
        self.irr &= ~bit | self.elcr
        if self.auto_eoi:
            self.isr &= ~bit
            if self.rotate_on_auto_eoi:
                self.lowest = found
        return found

    def poll(self) -> int:
        """Accept the request and return which it is ("Poll Command")."""
        found = self.accept()
        return SPURIOUS if found is None else POLL_REQUEST | found

    # The devices' side

    def drive(self, number: int, level: bool) -> None:
        """Set the level at an input.

        The request of an edge stays when the line falls before it is acknowledged: devices may
        pulse their lines.
        """
        bit = 1 << number
        if not level:
            self.lines &= ~bit
            self.irr &= ~(bit & self.elcr)
        elif not self.lines & bit:
            self.lines |= bit
            self.irr |= bit

    def choose_level_triggered(self, elcr: int) -> None:
        """Set the edge/level control register: a 1 makes the input level-triggered."""
        changed = elcr & ~self.elcr
        self.elcr = elcr
        self.irr = self.irr & ~changed | self.lines & changed

    # Priorities

    def _rank(self, number: int) -> int:
        """0 for the highest priority to 7 for the lowest ("Specific Rotation")."""
        return (number - self.lowest - 1) & 7

    def _first(self, inputs: int) -> int:
        """Which of some inputs, at least one, has the highest priority."""
        turned = (inputs | inputs << 8) >> (self.lowest + 1)
        return ((turned & -turned).bit_length() + self.lowest) & 7

    def _served(self) -> int:
        """What is in service and holds others back ("Special Mask Mode": not what is masked)."""
        return self.isr & ~self.imr if self.special_mask else self.isr

    # Command words

    def _icw1(self, value: int) -> None:
        """Start the initialization ("Initialization Command Words 1 and 2", and Figure 6)."""
        # The edge sense circuit is reset: only a new edge, or a level, requests anything.
        self.irr &= self.elcr
        self.imr = 0
        self.lowest = 7
        self.special_mask = False
        self.reads_isr = False
        self.slaves = 0
        self.identity = 7
        if not value & ICW1_ICW4:
            self.auto_eoi = self.fully_nested = False
        self.ready = False
        icw3 = () if value & ICW1_SINGLE else (3,)
        self._awaited = (2, *icw3, *((4,) if value & ICW1_ICW4 else ()))

    def _icw2(self, value: int) -> None:
        self.vector = value & ICW2_VECTOR

    def _icw3(self, value: int) -> None:
        if self.master:
            self.slaves = value
        else:
            self.identity = value & ICW3_IDENTITY

    def _icw4(self, value: int) -> None:
        self.fully_nested = bool(value & ICW4_NESTED)
        self.auto_eoi = bool(value & ICW4_AUTO_EOI)

    _WORDS: ClassVar = {2: _icw2, 3: _icw3, 4: _icw4}

    def _ocw2(self, value: int) -> None:
        """End of interrupt and rotation ("Operation Control Word 2")."""
        command = value & (OCW2_ROTATE | OCW2_SPECIFIC | OCW2_EOI)
        if not command & (OCW2_SPECIFIC | OCW2_EOI):
            self.rotate_on_auto_eoi = bool(command)
            return
        if command & OCW2_SPECIFIC:
            number = value & 7
        elif served := self._served():
            number = self._first(served)
        else:
            return
        if command & OCW2_EOI:
            self.isr &= ~(1 << number)
        if command & OCW2_ROTATE:
            self.lowest = number

    def _ocw3(self, value: int) -> None:
        """Poll, status reads and special mask mode ("Operation Control Word 3")."""
        if value & OCW3_POLL:
            self.polling = True
        if value & OCW3_SELECT:
            self.reads_isr = bool(value & OCW3_ISR)
        if value & OCW3_CHANGE_SPECIAL_MASK:
            self.special_mask = bool(value & OCW3_SPECIAL_MASK)


class _Ports(NamedDevice):
    """Two ports of the pair, as a device on the bus."""

    width: ClassVar = 1

    def __init__(
        self, name: str, read: Callable[[int], int], write: Callable[[int, int], None]
    ) -> None:
        self.name = name
        self._read = read
        self._write = write

    def read(self, offset: int, size: int) -> int:
        """The byte at port `offset`, 0 or 1."""
        return self._read(offset & 1)

    def write(self, offset: int, size: int, value: int) -> None:
        """Set the byte at port `offset`, 0 or 1."""
        self._write(offset & 1, value & 0xFF)


@lru_cache(maxsize=256)
def _at_once(irr: int, imr: int) -> bytes:
    """The masks that cannot wait: that let a request through, or keep a line out that may rise."""
    return bytes(mask for mask in range(256) if irr & ~mask or mask & ~imr)


class _ElcrPorts(_Ports):
    """The ports of the edge/level control registers, which are the chips' state."""

    stateless = True


@lru_cache(maxsize=64)
def _not_ends(served: int) -> bytes:
    """What does more than end the service of the only input in `served`, or of none."""
    if not served:
        return NOT_ENDS
    of_it = OCW2_EOI | OCW2_SPECIFIC | served.bit_length() - 1
    return bytes(value for value in range(256) if value not in (OCW2_EOI, of_it))


class _ChipPorts(_Ports):
    """The ports of one chip.

    While the chip requests nothing, C knows what they read; and ends of interrupt, and masks that
    neither let a request through nor keep out more, change nothing but the chip.  So the end of the
    only service there is stays in C until `settle` asks for it, and the others are posted.
    Until they arrive the chip only holds more back, so that a line may rise at any time.
    """

    def __init__(
        self,
        name: str,
        chip: Pic8259,
        lock: RLock,
        read: Callable[[int], int],
        write: Callable[[int, int], None],
        replay: Callable[[Sequence[Access]], None],
        restored: Callable[[], None],
    ) -> None:
        """`settle` and `follow` are called with the pair's `lock`, and so is `restored`."""
        super().__init__(name, read, write)
        self._chip = chip
        self._lock = lock
        self._restored = restored
        self._published: Published | None = None
        self._bank = BUSY
        self._told: object = None
        # The input that C may end the service of, as a bit; 0 for any, where none is served.
        self._served = 0
        self.replay = replay

    def publish(self, published: Published) -> None:
        """See `pykvm.bus.published.Publishing`."""
        with self._lock:
            self.settle()
            if self._published is not None:
                self._published.withdraw()
            published.lay_out([(0, 1), (1, 1)], banks=2)
            self._published, self._told = published, None

    def state(self) -> Pic8259State:
        """See `pykvm.values.state.Stateful`.  The level of INT follows from the registers."""
        with self._lock:
            self.settle()
            state = self._chip.state()
            self.follow()
            return state

    def restore(self, state: Pic8259State) -> None:
        """See `pykvm.values.state.Stateful`."""
        with self._lock:
            self.settle()
            self._chip.restore(state)
            self._restored()

    def settle(self) -> None:
        """Before the chip is looked at or changed: know what has ended, and be asked from now on.

        An exception may come at any point: the next call does it again.
        """
        if self._bank != BUSY and self._published is not None:
            if self._published.recall(BUSY):
                self._chip.isr = 0
            self._bank = BUSY

    def follow(self) -> None:
        """Publish what holds now, after `settle` and any change."""
        published, chip = self._published, self._chip
        if published is None or self._bank != BUSY or not chip.quiet():
            return
        self._served = chip.isr or self._served
        state = chip.irr, chip.imr, chip.reads_isr, self._served, chip.special_mask
        if state != self._told:
            self._told = state
            self._set_rules(published)
        self._bank = QUIET
        published.choose(QUIET)

    def _set_rules(self, published: Published) -> None:
        chip, served = self._chip, self._served
        irr = None if chip.reads_isr else chip.irr
        if chip.special_mask or served & served - 1:
            ends = Rule(reads=irr, posts=True, prompt=NOT_ENDS)
        else:
            ends = Rule(reads=irr, takes=True, prompt=_not_ends(served))
        published.set(0, ends, bank=QUIET)
        mask = Rule(reads=chip.imr, posts=True, stores=True, prompt=_at_once(chip.irr, chip.imr))
        published.set(1, mask, bank=QUIET)


class Pic8259Pair:
    """Master and slave as in the IBM PC/AT: IRQ 0-7 and, over the master's input 2, IRQ 8-15.

    `output` is driven with the master's INT; the processor answers it with `acknowledge`.  The
    devices `master` (ports 0x20-0x21), `slave` (0xa0-0xa1) and `elcr` (0x4d0-0x4d1) go on the bus.

    >>> pair = Pic8259Pair()
    >>> for offset, value in ((0, 0x11), (1, 0x20), (1, 0x04), (1, 0x01)):
    ...     pair.master.write(offset, 1, value)
    >>> pair.line(3).set(True)
    >>> pair.pending, hex(pair.acknowledge()), pair.pending
    (True, '0x23', False)

    As on a PC and in KVM, and unlike the data sheet:

    - ICW1's LTIM is ignored, in favour of the edge/level control registers; so are ICW4's
      microprocessor and buffered modes: the pair is always in 8086 mode.
    - An edge is remembered even if the line falls before it is acknowledged.

    KVM's in-kernel pair differs from the data sheet, and so from this, in that

    - it requests interrupts before and during the initialization; ICW1 does not lower INT;
    - it ignores ICW1's SNGL (it always waits for ICW3) and what ICW3 says;
    - ICW1 also ends the service of the inputs whose edges it drops;
    - special mask mode has no effect;
    - special fully nested mode opens the master for all inputs below the slave's, too;
    - a poll sets no bit of the ISR and drops a request whose level is still there, and polling the
      slave ends the service of the master's input 2 (older kernels never set the answer's bit 7);
    - the request of the slave comes back at the master after ICW1 and after a poll, without an
      edge;
    - writing the edge/level control register does not look at the lines;
    - IRQ 2 is an input, which leads to a spurious interrupt of the slave: here it leads nowhere;
    - accesses of more than a byte are ignored, and read 0: here the bus splits them.

    Lines may be set from any thread; `output` is driven under the pair's lock.
    """

    def __init__(self, output: InterruptLine | None = None) -> None:
        self._output: InterruptLine = output or Unconnected()
        self._level = False
        # Re-entrant: the interrupted processor may acknowledge at once.
        self._lock = RLock()
        self._sources = [0] * 16
        self.chips = Pic8259(master=True), Pic8259(master=False)
        self.master, self.slave = (
            _ChipPorts(
                name,
                self.chips[which],
                self._lock,
                partial(self._read, which),
                partial(self._write, which),
                partial(self._replay, which),
                self._restored,
            )
            for which, name in enumerate(("pic-master", "pic-slave"))
        )
        self.elcr = _ElcrPorts("pic-elcr", self._read_elcr, self._write_elcr)

    def __str__(self) -> str:
        with self._lock:
            self._settle()
            master, slave = self.chips
            text = f"master {master}\nslave  {slave}\nINT={int(self._level)}"
            self._follow()
            return text

    def reset(self) -> None:
        """Return to the state at power-on; the lines stay as their devices drive them."""
        with self._lock:
            self._settle()
            for chip in self.chips:
                chip.reset()
            self._update()

    def line(self, irq: int) -> InterruptLine:
        """A source for an input: IRQ `irq` is asserted while any of its sources is.

        IRQ 2, which the slave drives, leads nowhere.  Raises ConfigError if there is no such IRQ.
        """
        if not 0 <= irq <= 15:
            raise ConfigError(f"the PIC has IRQs 0 to 15, not {irq}")
        if irq == CASCADE_IRQ:
            return Unconnected()
        return InputDriver(self._drive, self._count, irq)

    def raise_lines(self) -> None:
        """See the level of every input as its sources drive it, for the first since power-on."""
        with self._lock:
            self._settle()
            for irq, count in enumerate(self._sources):
                self.chips[irq >> 3].drive(irq & 7, count > 0)
            self._update()

    @property
    def pending(self) -> bool:
        """Whether INT is high: the processor is to call `acknowledge` when it takes interrupts."""
        return self._level

    def acknowledge(self) -> int:
        """Run the processor's acknowledge cycle, and return the vector.

        With nothing to request any more it is the spurious interrupt: IRQ 7, or IRQ 15 if only the
        slave has withdrawn ("Interrupt Sequence", "Edge and Level Triggered Modes").
        """
        with self._lock:
            self.master.settle()
            if self._level:
                self._level = False
                self._output.set(False)
            master = self.chips[0]
            found = master.accept()
            if found is not None and master.slaves >> found & 1:
                return self._acknowledge_slave(found)
            self._update_master()
            return master.vector + (SPURIOUS if found is None else found)

    def _acknowledge_slave(self, found: int) -> int:
        master, slave = self.chips
        if slave.identity != found:
            self._update_master()
            return FLOATING_BUS
        self.slave.settle()
        inner = slave.accept()
        master.drive(CASCADE_IRQ, False)
        self._update()
        return slave.vector + (SPURIOUS if inner is None else inner)

    def _read(self, which: int, a0: int) -> int:
        chip = self.chips[which]
        with self._lock:
            self._settle()
            if chip.polling:
                return self._poll(chip)
            value = chip.read(a0)
            self._follow()
            return value

    def _write(self, which: int, a0: int, value: int) -> None:
        with self._lock:
            self._settle()
            self.chips[which].write(a0, value)
            self._update()

    def _replay(self, which: int, accesses: Sequence[Access]) -> None:
        chip = self.chips[which]
        with self._lock:
            self._settle()
            for a0, _, _, value, _ in accesses:
                chip.write(a0, value)
            self._update()

    def _poll(self, chip: Pic8259) -> int:
        """Read a chip that was told to poll: an acknowledge cycle of that chip alone."""
        answer = chip.read(0)
        if answer & POLL_REQUEST and not chip.master:
            # INT of the slave falls, and the edge that it made at the master is served.
            master = self.chips[0]
            master.drive(CASCADE_IRQ, False)
            master.irr &= ~(1 << CASCADE_IRQ)
        self._update()
        return answer

    def _read_elcr(self, which: int) -> int:
        return self.chips[which].elcr

    def _write_elcr(self, which: int, value: int) -> None:
        with self._lock:
            self._settle()
            self.chips[which].choose_level_triggered(value & ELCR_WRITABLE[which])
            self._update()

    def _drive(self, irq: int, step: int) -> None:
        with self._lock:
            before = self._sources[irq]
            self._sources[irq] = before + step
            if before > 1 or (before and step > 0):
                return  # another source has it asserted all the time
            chip, number = self.chips[irq >> 3], irq & 7
            self.master.settle()
            if irq > 7:
                self.slave.settle()
            if step:
                chip.drive(number, step > 0)
            elif not chip.elcr >> number & 1:
                chip.irr |= 1 << number
            else:
                chip.drive(number, False)
                self._update()
                self._settle()
                chip.drive(number, True)
            if irq > 7:
                self._update()
            else:
                self._update_master()

    def _count(self, irq: int, step: int) -> None:
        with self._lock:
            self._sources[irq] += step

    def _restored(self) -> None:
        """A chip was restored: INT follows, and drives nothing."""
        self._settle()
        self._level = self.chips[0].requests
        restore_level(self._output, self._level)
        self._follow()

    def _settle(self) -> None:
        """Before both chips are looked at, or either is changed by the guest."""
        self.master.settle()
        self.slave.settle()

    def _follow(self) -> None:
        self.master.follow()
        self.slave.follow()

    def _update(self) -> None:
        """Let INT of the slave, and then of the master, follow the registers."""
        master, slave = self.chips
        master.drive(CASCADE_IRQ, slave.requests)
        self.slave.follow()
        self._update_master()

    def _update_master(self) -> None:
        """The same where the slave is as it was."""
        level = self.chips[0].requests
        if level != self._level:
            self._level = level
            self._output.set(level)
        if not self._level:
            self.master.follow()
