"""The I/O APIC: 24 pins, each with an entry that says which message it sends.

Source: Intel 82093AA I/O Advanced Programmable Interrupt Controller data sheet (290566-001,
May 1996), by section.
"""

from __future__ import annotations

from _thread import allocate_lock

from pykvm.bus.device import NamedDevice
from pykvm.errors import ConfigError
from pykvm.interrupts.input_driver import InputDriver
from pykvm.interrupts.message import FIXED, LOWEST_PRIORITY, STARTUP, Message
from pykvm.layout import IOAPIC_PINS
from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import integer
from pykvm.values.state import State, expect

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.devices.line import InterruptLine
    from pykvm.values.state import U4, U8, U24, U64

__all__ = ["IoApic", "IoApicState"]

# No EOI register, which came with version 0x20.
VERSION = 0x11

# What the processor sees (3.1).
IOREGSEL = 0x00
IOWIN = 0x10

# What IOREGSEL selects (3.2); each redirection entry is two registers, the low half first.
IOAPICID = 0x00
IOAPICVER = 0x01
IOAPICARB = 0x02
IOREDTBL = 0x10

# Redirection entries (3.2.4).
VECTOR = 0x00FF
MODE_SHIFT = 8
LOGICAL = 0x0800
SENDING = 0x1000
ACTIVE_LOW = 0x2000
REMOTE_IRR = 0x4000
LEVEL = 0x8000
MASKED = 0x1_0000
DESTINATION_SHIFT = 56

# The reserved bits read as 0, and the delivery status does: messages are sent at once.
_LOW_WRITABLE = 0x1_FFFF & ~(SENDING | REMOTE_IRR)
_HIGH_WRITABLE = 0xFF00_0000
_LOW = 0xFFFF_FFFF

_ALL_ONES = 0xFFFF_FFFF
_RESERVED_MODES = (3, STARTUP)
_ENTRY = _HIGH_WRITABLE << 32 | _LOW_WRITABLE | REMOTE_IRR


class IoApicState(State):
    """The registers, and the levels at the pins as it has seen them."""

    id: U4
    select: U8
    entries: tuple[U64, ...]
    lines: U24


class IoApic(NamedDevice):
    """An 82093AA for the bus, at 0xfec00000: IOREGSEL at offset 0, IOWIN at 0x10.

    ``deliver(message)`` is called for each interrupt, with no lock held, in the thread that caused
    it; it returns False if no local APIC took the message.  `eoi` takes the local APICs' EOI
    broadcasts.

    >>> chip = IoApic(print)
    >>> for register, value in ((0x18, 0x8031), (0x19, 0x0100_0000)):
    ...     chip.write(IOREGSEL, 4, register)
    ...     chip.write(IOWIN, 4, value)
    >>> chip.line(4).set(True)
    fixed 0x31 level to APIC 0x1
    >>> print(chip)
    id=0 select=19
     4 fixed 0x31 level to APIC 0x1, asserted, remote IRR

    As in KVM, and unlike the data sheet:

    - The polarity is kept and has no effect: a line that is set is asserted, whatever the level
      that the guest believes this to be.
    - A physical destination has 8 bits, not 4.
    - Remote IRR is cleared, too, when an entry is made edge-triggered: Linux ends interrupts so.
    - The registers between IOAPICARB and the entries, and those after the entries, read all ones;
      a write of less than 32 bits sets the bits above to 0.

    KVM's in-kernel I/O APIC differs from the data sheet, and so from this, in that

    - it keeps what is written to the reserved bits of an entry;
    - it sends SMI, NMI and INIT as level-triggered if the entry says so, remote IRR and all: here
      they and ExtINT are edge-triggered, as the data sheet has it; ExtINT is not delivered there;
    - it sends the reserved delivery modes, 6 as a start-up message: here they send nothing;
    - an EOI sends an edge-triggered entry again whose line is asserted, if its vector is that of a
      level-triggered one;
    - it delays the next message for 10 ms after 10,000 EOIs with the line asserted;
    - older kernels set remote IRR even if no local APIC is addressed.
    """

    name = "ioapic"

    def __init__(self, deliver: Callable[[Message], object]) -> None:
        self._deliver = deliver
        self._lock = allocate_lock()
        self._sources = [0] * IOAPIC_PINS
        self.lines = 0
        self.reset()

    def reset(self) -> None:
        """Return to the state at power-on; the lines stay as their devices drive them."""
        with self._lock:
            self.id = 0
            self.entries = [MASKED] * IOAPIC_PINS
            self._select = 0

    def __str__(self) -> str:
        """The entries that a guest has touched or a device asserts."""
        rows = [f"id={self.id} select={self._select:02x}"]
        for pin, entry in enumerate(self.entries):
            asserted = self.lines >> pin & 1
            if entry == MASKED and not asserted:
                continue
            notes = (
                ("masked", entry & MASKED),
                ("active low", entry & ACTIVE_LOW),
                ("asserted", asserted),
                ("remote IRR", entry & REMOTE_IRR),
            )
            rows.append(f"{pin:2} {message_of(entry)}" + "".join(f", {n}" for n, on in notes if on))
        return "\n".join(rows)

    def line(self, pin: int) -> InterruptLine:
        """A source for a pin, which is asserted while any of its sources is.

        Raises ConfigError if there is no such pin.
        """
        if not 0 <= pin < IOAPIC_PINS:
            raise ConfigError(f"the I/O APIC has pins 0 to {IOAPIC_PINS - 1}, not {pin}")
        return InputDriver(self._drive, self._count, pin)

    def state(self) -> IoApicState:
        """See `pykvm.values.state.Stateful`."""
        with self._lock:
            return IoApicState(self.id, self._select, tuple(self.entries), self.lines)

    def restore(self, state: IoApicState) -> None:
        """See `pykvm.values.state.Stateful`.  Each source of a pin restores its own level."""
        expect(state, IoApicState)
        integer(f"{self.name}: entries", len(state.entries), IOAPIC_PINS, IOAPIC_PINS)
        with self._lock:
            self.id, self._select, self.lines = state.id, state.select, state.lines
            self.entries = [entry & _ENTRY for entry in state.entries]

    def raise_lines(self) -> None:
        """See the level of every pin as its sources drive it, for the first time since power-on."""
        with self._lock:
            self.lines = sum((count > 0) << pin for pin, count in enumerate(self._sources))

    def read(self, offset: int, size: int) -> int:
        """IOREGSEL, or through IOWIN the register that it selects (3.1); 0 elsewhere."""
        if offset == IOWIN:
            return self._read_register(self._select) & (1 << (8 * size)) - 1
        return self._select if offset == IOREGSEL else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Set IOREGSEL, or through IOWIN the register that it selects; elsewhere nothing."""
        if offset == IOREGSEL:
            self._select = value & 0xFF
        elif offset == IOWIN:
            self._write_register(self._select, value & _ALL_ONES)

    def eoi(self, vector: int) -> None:
        """Take the EOI of a level-triggered interrupt: its pins that are still asserted fire again.

        "Remote IRR", 3.2.4.
        """
        messages = []
        with self._lock:
            for pin, entry in enumerate(self.entries):
                if entry & VECTOR == vector and _is_level(entry):
                    self.entries[pin] = entry & ~REMOTE_IRR
                    messages.append(self._assert(pin))
        for message in messages:
            self._send(message)

    def _read_register(self, register: int) -> int:
        if register in (IOAPICID, IOAPICARB):
            return self.id << 24
        if register == IOAPICVER:
            return (IOAPIC_PINS - 1) << 16 | VERSION
        pin = (register - IOREDTBL) >> 1
        if not 0 <= pin < IOAPIC_PINS:
            return _ALL_ONES
        entry = self.entries[pin]
        return entry >> 32 if register & 1 else entry & _LOW

    def _write_register(self, register: int, value: int) -> None:
        if register == IOAPICID:
            self.id = value >> 24 & 0xF
            return
        pin = (register - IOREDTBL) >> 1
        if not 0 <= pin < IOAPIC_PINS:
            return
        with self._lock:
            entry = self.entries[pin]
            if register & 1:
                entry = entry & _LOW | (value & _HIGH_WRITABLE) << 32
            else:
                entry = entry & ~_LOW_WRITABLE | value & _LOW_WRITABLE
            if not _is_level(entry):
                entry &= ~REMOTE_IRR
            self.entries[pin] = entry
            message = self._assert(pin) if _is_level(entry) else None
        self._send(message)

    def _drive(self, pin: int, step: int) -> None:
        message = None
        if not step and self.entries[pin] & MASKED:
            return  # an edge that is lost, and the level is as it was
        with self._lock:
            before = self._sources[pin]
            self._sources[pin] = before + step
            if before > 1 or (before and step > 0):
                return  # another source has it asserted all the time
            if step < 0:
                self.lines &= ~(1 << pin)
            else:
                self.lines |= 1 << pin
                if not self.entries[pin] & MASKED:
                    message = self._assert(pin)
        if message is not None:
            self._send(message)

    def _count(self, pin: int, step: int) -> None:
        with self._lock:
            self._sources[pin] += step

    def _assert(self, pin: int) -> tuple[int, Message] | None:
        """What to send for a pin with an edge, or with a level that asks for attention.

        A masked edge is lost (3.2.4, "Interrupt Mask").
        """
        entry = self.entries[pin]
        if entry & MASKED or not self.lines >> pin & 1:
            return None
        message = message_of(entry)
        if message.mode in _RESERVED_MODES:
            return None
        if message.level:
            if entry & REMOTE_IRR:
                return None
            self.entries[pin] = entry | REMOTE_IRR
        return pin, message

    def _send(self, sent: tuple[int, Message] | None) -> None:
        """Deliver what `_assert` said, without the lock: an EOI may come back from another vCPU."""
        if sent is None:
            return
        pin, message = sent
        if self._deliver(message) is False and message.level:
            with self._lock:
                self.entries[pin] &= ~REMOTE_IRR


def _is_level(entry: int) -> bool:
    """Whether an entry is level-triggered: only fixed and lowest priority ones can be."""
    return bool(entry & LEVEL) and entry >> MODE_SHIFT & 7 in (FIXED, LOWEST_PRIORITY)


def message_of(entry: int) -> Message:
    """What an entry of the redirection table sends."""
    return Message(
        destination=entry >> DESTINATION_SHIFT,
        logical=bool(entry & LOGICAL),
        mode=entry >> MODE_SHIFT & 7,
        vector=entry & VECTOR,
        level=_is_level(entry),
    )
