"""The 82093AA, register by register and pin by pin."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.bus import Bus, Space
from pykvm.errors import ConfigError
from pykvm.interrupts.ioapic import (
    ACTIVE_LOW,
    IOAPICARB,
    IOAPICID,
    IOAPICVER,
    IOREDTBL,
    IOREGSEL,
    IOWIN,
    LEVEL,
    LOGICAL,
    MASKED,
    MODE_SHIFT,
    REMOTE_IRR,
    SENDING,
    IoApic,
)
from pykvm.interrupts.message import (
    EXTINT,
    FIXED,
    INIT,
    LOWEST_PRIORITY,
    NMI,
    SMI,
    STARTUP,
    Message,
)
from pykvm.layout import IOAPIC_PINS

BASE = 0xFEC00000
ALL_ONES = 0xFFFF_FFFF


class Rig:
    """An I/O APIC on a bus, what it sent, and the guest's instructions on it."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.accepts = True
        self.chip = IoApic(self.deliver)
        self.lines = [self.chip.line(pin) for pin in range(IOAPIC_PINS)]
        self.bus = Bus()
        self.bus.add_mmio(BASE, 0x1000, self.chip)

    def deliver(self, message: Message) -> bool:
        self.sent.append(message)
        return self.accepts

    def load(self, offset: int, size: int = 4) -> int:
        value = self.bus.read(Space.MMIO, BASE + offset, size)
        assert value is not None
        return value

    def store(self, offset: int, value: int, size: int = 4) -> None:
        assert self.bus.write(Space.MMIO, BASE + offset, size, value)

    def get(self, register: int) -> int:
        self.store(IOREGSEL, register)
        return self.load(IOWIN)

    def set(self, register: int, value: int) -> None:
        self.store(IOREGSEL, register)
        self.store(IOWIN, value)

    def entry(self, pin: int) -> int:
        return self.get(IOREDTBL + 2 * pin) | self.get(IOREDTBL + 2 * pin + 1) << 32

    def program(self, pin: int, low: int, destination: int = 0) -> None:
        self.set(IOREDTBL + 2 * pin + 1, destination << 24)
        self.set(IOREDTBL + 2 * pin, low)

    def remote_irr(self, pin: int) -> bool:
        return bool(self.entry(pin) & REMOTE_IRR)

    def vectors(self) -> list[int]:
        vectors = [message.vector for message in self.sent]
        self.sent.clear()
        return vectors


@pytest.fixture
def rig() -> Rig:
    return Rig()


# Registers


class Reset(NamedTuple):
    register: int
    value: int


@pytest.mark.parametrize(
    "reset",
    [
        Reset(IOAPICID, 0),
        Reset(IOAPICVER, 0x00170011),
        Reset(IOAPICARB, 0),
        Reset(IOREDTBL, MASKED),
        Reset(IOREDTBL + 1, 0),
        Reset(IOREDTBL + 46, MASKED),
        Reset(IOREDTBL + 47, 0),
        Reset(0x03, ALL_ONES),
        Reset(0x0F, ALL_ONES),
        Reset(0x40, ALL_ONES),
        Reset(0xFF, ALL_ONES),
    ],
)
def test_registers_at_power_on(rig: Rig, reset: Reset) -> None:
    assert rig.get(reset.register) == reset.value


def test_the_arbitration_id_follows_the_id(rig: Rig) -> None:
    rig.set(IOAPICID, ALL_ONES)
    assert (rig.get(IOAPICID), rig.get(IOAPICARB)) == (0x0F00_0000, 0x0F00_0000)


@pytest.mark.parametrize("register", [IOAPICVER, IOAPICARB, 0x03, 0x0F, 0x40, 0xFF])
def test_read_only_registers(rig: Rig, register: int) -> None:
    before = rig.get(register), str(rig.chip)
    rig.set(register, 0x0500_0000)
    assert (rig.get(register), str(rig.chip)) == before


def test_an_entry_has_reserved_and_read_only_bits(rig: Rig) -> None:
    rig.set(IOREDTBL + 6, ALL_ONES)
    rig.set(IOREDTBL + 7, ALL_ONES)
    assert rig.entry(3) == 0xFF00_0000_0001_FFFF & ~(SENDING | REMOTE_IRR)
    rig.set(IOREDTBL + 6, 0)
    assert rig.entry(3) == 0xFF00_0000_0000_0000


def test_ioregsel_has_8_bits(rig: Rig) -> None:
    rig.store(IOREGSEL, 0xABCD_EF01)
    assert (rig.load(IOREGSEL), rig.load(IOREGSEL, 1)) == (0x01, 0x01)
    assert rig.load(IOWIN) == 0x00170011


@pytest.mark.parametrize(("size", "value"), [(1, 0x11), (2, 0x0011), (4, 0x170011), (8, 0x170011)])
def test_reads_of_any_size(rig: Rig, size: int, value: int) -> None:
    rig.store(IOREGSEL, IOAPICVER)
    assert rig.chip.read(IOWIN, size) == value


@pytest.mark.parametrize(("size", "entry"), [(1, 0x55), (2, 0x0855), (4, 0x1_0855), (8, 0x1_0855)])
def test_writes_of_any_size(rig: Rig, size: int, entry: int) -> None:
    rig.store(IOREGSEL, IOREDTBL)
    rig.store(IOWIN, 0xFF00_0000_0001_0855 & (1 << 8 * size) - 1, size)
    assert rig.entry(0) == entry


@pytest.mark.parametrize("offset", [0x01, 0x04, 0x08, 0x0C, 0x11, 0x14, 0x20, 0x40, 0x100, 0xFFF])
def test_there_are_two_addresses(rig: Rig, offset: int) -> None:
    rig.store(IOREGSEL, IOREDTBL)
    rig.store(offset, 0x77, 1)
    assert (rig.load(offset, 1), rig.load(IOREGSEL)) == (0, IOREDTBL)
    assert rig.entry(0) == MASKED


# Messages


def test_a_message_says_what_the_entry_says(rig: Rig) -> None:
    rig.program(4, LOGICAL | LOWEST_PRIORITY << MODE_SHIFT | LEVEL | 0x31, 0x0C)
    rig.lines[4].set(True)
    assert rig.sent == [Message(0x0C, True, LOWEST_PRIORITY, 0x31, level=True)]


@pytest.mark.parametrize("mode", [SMI, NMI, INIT, EXTINT])
def test_these_modes_are_edge_triggered_whatever_the_entry_says(rig: Rig, mode: int) -> None:
    rig.program(4, LEVEL | mode << MODE_SHIFT, 0xFF)
    for _ in range(2):
        rig.lines[4].set(True)
        rig.lines[4].set(False)
    assert rig.sent == [Message(0xFF, False, mode, 0)] * 2
    assert not rig.remote_irr(4)


@pytest.mark.parametrize("mode", [3, STARTUP])
def test_the_reserved_modes_send_nothing(rig: Rig, mode: int) -> None:
    for trigger in (0, LEVEL):
        rig.program(4, trigger | mode << MODE_SHIFT | 0x31)
        rig.lines[4].set(True)
        rig.lines[4].set(False)
    assert rig.sent == []
    assert not rig.remote_irr(4)


@pytest.mark.parametrize("pin", [-1, IOAPIC_PINS])
def test_there_are_24_pins(rig: Rig, pin: int) -> None:
    with pytest.raises(ConfigError, match=f"pins 0 to 23, not {pin}"):
        rig.chip.line(pin)


def test_each_pin_has_its_entry(rig: Rig) -> None:
    for pin in range(IOAPIC_PINS):
        rig.program(pin, 0x40 + pin)
    for line in reversed(rig.lines):
        line.set(True)
    assert rig.vectors() == [0x40 + pin for pin in reversed(range(IOAPIC_PINS))]


# Edges


def test_an_edge_is_sent_once(rig: Rig) -> None:
    rig.program(1, 0x41)
    rig.lines[1].set(True)
    rig.lines[1].set(True)
    rig.chip.eoi(0x41)
    assert rig.vectors() == [0x41]
    rig.lines[1].set(False)
    assert rig.vectors() == []
    rig.lines[1].set(True)
    assert rig.vectors() == [0x41]
    assert not rig.remote_irr(1)


def test_a_masked_edge_is_lost(rig: Rig) -> None:
    rig.program(1, MASKED | 0x41)
    rig.lines[1].set(True)
    rig.program(1, 0x41)
    assert rig.vectors() == []


def test_the_polarity_has_no_effect(rig: Rig) -> None:
    rig.program(1, ACTIVE_LOW | 0x41)
    assert rig.vectors() == []
    rig.lines[1].set(True)
    rig.lines[1].set(False)
    assert rig.vectors() == [0x41]
    assert rig.entry(1) == ACTIVE_LOW | 0x41


# Levels


def test_a_level_is_sent_again_after_each_eoi(rig: Rig) -> None:
    rig.program(9, LEVEL | 0x51)
    rig.lines[9].set(True)
    assert (rig.vectors(), rig.remote_irr(9)) == ([0x51], True)
    for _ in range(3):
        rig.chip.eoi(0x51)
        assert (rig.vectors(), rig.remote_irr(9)) == ([0x51], True)
    rig.lines[9].set(False)
    assert rig.remote_irr(9), "remote IRR stays until the EOI"
    rig.chip.eoi(0x51)
    assert (rig.vectors(), rig.remote_irr(9)) == ([], False)


def test_a_level_that_comes_back_before_the_eoi_is_sent_by_it(rig: Rig) -> None:
    rig.program(9, LEVEL | 0x51)
    for level in (True, False, True):
        rig.lines[9].set(level)
    assert rig.vectors() == [0x51]
    rig.chip.eoi(0x51)
    assert rig.vectors() == [0x51]


def test_an_eoi_is_for_every_pin_with_its_vector(rig: Rig) -> None:
    for pin, vector in ((5, 0x51), (6, 0x51), (7, 0x61)):
        rig.program(pin, LEVEL | vector)
        rig.lines[pin].set(True)
    rig.vectors()
    rig.chip.eoi(0x51)
    assert rig.vectors() == [0x51, 0x51]
    rig.chip.eoi(0x71)
    assert rig.vectors() == []


def test_unmasking_sends_a_level_that_is_there(rig: Rig) -> None:
    rig.program(9, MASKED | LEVEL | 0x51)
    rig.lines[9].set(True)
    assert (rig.vectors(), rig.remote_irr(9)) == ([], False)
    rig.program(9, LEVEL | 0x51)
    assert (rig.vectors(), rig.remote_irr(9)) == ([0x51], True)


def test_masked_at_the_eoi_it_is_sent_when_unmasked(rig: Rig) -> None:
    rig.program(9, LEVEL | 0x51)
    rig.lines[9].set(True)
    rig.program(9, MASKED | LEVEL | 0x51)
    rig.vectors()
    rig.chip.eoi(0x51)
    assert (rig.vectors(), rig.remote_irr(9)) == ([], False)
    rig.program(9, LEVEL | 0x51)
    assert rig.vectors() == [0x51]


def test_made_edge_triggered_it_has_no_remote_irr(rig: Rig) -> None:
    """How Linux ends an interrupt by hand."""
    rig.program(9, LEVEL | 0x51)
    rig.lines[9].set(True)
    rig.set(IOREDTBL + 18, MASKED | 0x51)
    assert not rig.remote_irr(9)
    rig.set(IOREDTBL + 18, LEVEL | 0x51)
    assert rig.vectors() == [0x51, 0x51]


def test_what_no_apic_takes_has_no_remote_irr(rig: Rig) -> None:
    rig.accepts = False
    rig.program(9, LEVEL | 0x51)
    rig.lines[9].set(True)
    assert not rig.remote_irr(9)
    rig.accepts = True
    rig.program(9, LEVEL | 0x51)
    assert (rig.vectors(), rig.remote_irr(9)) == ([0x51, 0x51], True)


def test_only_false_means_that_no_apic_took_it() -> None:
    chip = IoApic(lambda message: None)
    line = chip.line(0)
    chip.write(IOREGSEL, 4, IOREDTBL)
    chip.write(IOWIN, 4, LEVEL | 0x51)
    line.set(True)
    assert chip.entries[0] == LEVEL | REMOTE_IRR | 0x51


def test_a_pin_is_asserted_while_any_source_is(rig: Rig) -> None:
    one, other = rig.chip.line(9), rig.chip.line(9)
    one.set(True)
    other.set(True)
    one.set(False)
    rig.program(9, LEVEL | 0x51)
    assert rig.vectors() == [0x51]
    other.set(False)
    rig.chip.eoi(0x51)
    assert rig.vectors() == []


def test_an_eoi_out_of_the_delivery(rig: Rig) -> None:
    """A local APIC may end an interrupt, and a device lower its line, before deliver returns."""
    answers = iter([True, False])

    def deliver(message: Message) -> None:
        rig.sent.append(message)
        line.set(next(answers))
        chip.eoi(message.vector)

    chip = IoApic(deliver)
    line = chip.line(3)
    chip.write(IOREGSEL, 4, IOREDTBL + 6)
    chip.write(IOWIN, 4, LEVEL | 0x51)
    line.set(True)
    assert rig.vectors() == [0x51, 0x51]
    assert chip.entries[3] == LEVEL | 0x51


def test_reset_keeps_the_lines(rig: Rig) -> None:
    rig.lines[9].set(True)
    rig.program(9, LEVEL | 0x51)
    rig.set(IOAPICID, 0x0500_0000)
    rig.vectors()
    rig.chip.reset()
    assert (rig.load(IOREGSEL), rig.get(IOAPICID), rig.entry(9)) == (0, 0, MASKED)
    rig.program(9, LEVEL | 0x51)
    assert rig.vectors() == [0x51]


def test_it_prints_the_entries_in_use(rig: Rig) -> None:
    rig.set(IOAPICID, 0x0200_0000)
    rig.program(1, 0x31, 0x03)
    rig.program(10, MASKED | ACTIVE_LOW | LEVEL | NMI << MODE_SHIFT)
    rig.lines[23].set(True)
    assert str(rig.chip).splitlines() == [
        "id=2 select=24",
        " 1 fixed 0x31 edge to APIC 0x3",
        "10 NMI 0x00 edge to APIC 0x0, masked, active low",
        "23 fixed 0x00 edge to APIC 0x0, masked, asserted",
    ]


# Whatever the guest does

offsets = st.sampled_from([IOREGSEL, IOWIN]) | st.integers(0, 0xFFF)
sizes = st.sampled_from([1, 2, 4, 8])
actions = st.one_of(
    st.tuples(st.just("store"), offsets, sizes, st.integers(0, 2**64 - 1)),
    st.tuples(st.just("load"), offsets, sizes, st.just(0)),
    st.tuples(st.just("set"), st.integers(0, 0x42), st.just(0), st.integers(0, 2**32 - 1)),
    st.tuples(st.just("program"), st.integers(0, 23), st.just(0), st.integers(0, 0xFFFF)),
    st.tuples(st.just("line"), st.integers(0, 23), st.just(0), st.integers(0, 1)),
    st.tuples(st.just("eoi"), st.integers(0, 255), st.just(0), st.just(0)),
    st.tuples(st.just("eoi of"), st.integers(0, 23), st.just(0), st.just(0)),
)


def perform(rig: Rig, action: tuple[str, int, int, int]) -> None:
    kind, where, size, value = action
    if kind == "store":
        rig.store(where, value & (1 << 8 * size) - 1, size)
    elif kind == "load":
        assert 0 <= rig.load(where, size) < 1 << 8 * size
    elif kind == "set":
        rig.set(where, value)
    elif kind == "program":
        rig.program(where, value, value & 0xFF)
    elif kind == "line":
        rig.lines[where].set(bool(value))
    elif kind == "eoi":
        rig.chip.eoi(where)
    else:
        rig.chip.eoi(rig.chip.entries[where] & 0xFF)


@given(st.lists(actions, max_size=60))
def test_no_guest_breaks_it(program: list[tuple[str, int, int, int]]) -> None:
    rig = Rig()
    for action in program:
        perform(rig, action)
        for message in rig.sent:
            assert message.mode in (FIXED, LOWEST_PRIORITY, SMI, NMI, INIT, EXTINT)
            assert not message.level or message.mode in (FIXED, LOWEST_PRIORITY)
        assert len(rig.sent) <= IOAPIC_PINS, "one message a pin at most"
        rig.sent.clear()
        for pin, entry in enumerate(rig.chip.entries):
            assert not entry & (SENDING | 0x00FF_FFFF_FFFE_0000)
            level = entry & LEVEL and entry >> MODE_SHIFT & 7 in (FIXED, LOWEST_PRIORITY)
            assert level or not entry & REMOTE_IRR
            if level and rig.chip.lines >> pin & 1 and not entry & MASKED:
                assert entry & REMOTE_IRR, "an open level is always being served"
        str(rig.chip)
