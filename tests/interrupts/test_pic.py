"""The 8259A pair, section by section of the data sheet."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.bus import Bus, Space
from pykvm.errors import ConfigError
from pykvm.interrupts.pic import Pic8259Pair
from support.lines import Line

MASTER, SLAVE, ELCR = 0x20, 0xA0, 0x4D0
READ_IRR, READ_ISR, POLL = 0x0A, 0x0B, 0x0C
SET_SPECIAL_MASK, RESET_SPECIAL_MASK = 0x68, 0x48
EOI, SPECIFIC_EOI = 0x20, 0x60
ROTATE_EOI, ROTATE_SPECIFIC_EOI, SET_PRIORITY = 0xA0, 0xE0, 0xC0
ROTATE_ON_AEOI, NO_ROTATE_ON_AEOI = 0x80, 0x00
NOTHING = 0x40
AEOI, NESTED = 0x02, 0x10


class Rig:
    """A pair on a bus, the lines to it, and the guest's instructions on it."""

    def __init__(self, *, icw4: int = 1, master_icw4: int | None = None) -> None:
        self.output = Line()
        self.pair = Pic8259Pair(self.output)
        self.lines = [self.pair.line(irq) for irq in range(16)]
        self.bus = Bus()
        self.bus.add_pio(MASTER, 2, self.pair.master)
        self.bus.add_pio(SLAVE, 2, self.pair.slave)
        self.bus.add_pio(ELCR, 2, self.pair.elcr)
        self.program(MASTER, 0x20, 0x04, icw4 if master_icw4 is None else master_icw4)
        self.program(SLAVE, 0x28, 0x02, icw4)

    def program(self, port: int, vector: int, icw3: int, icw4: int = 1) -> None:
        self.out(port, 0x11)
        for word in (vector, icw3, icw4):
            self.out(port + 1, word)

    def out(self, port: int, value: int, size: int = 1) -> None:
        assert self.bus.write(Space.PIO, port, size, value)

    def inb(self, port: int) -> int:
        value = self.bus.read(Space.PIO, port, 1)
        assert value is not None
        return value

    def irr(self, port: int = MASTER) -> int:
        self.out(port, READ_IRR)
        return self.inb(port)

    def isr(self, port: int = MASTER) -> int:
        self.out(port, READ_ISR)
        return self.inb(port)

    def poll(self, port: int) -> int:
        self.out(port, POLL)
        return self.inb(port)

    def pulse(self, *irqs: int) -> None:
        for irq in irqs:
            self.lines[irq].set(True)
            self.lines[irq].set(False)

    def take(self) -> int | None:
        """The vector that a processor with IF=1 takes now."""
        assert self.pair.pending is self.output.level
        return self.pair.acknowledge() if self.pair.pending else None

    def take_all(self) -> list[int]:
        """The vectors of a processor that ends each interrupt before it takes the next."""
        vectors = []
        while (vector := self.take()) is not None:
            vectors.append(vector)
            if vector >= 0x28:
                self.out(SLAVE, EOI)
            self.out(MASTER, EOI)
        return vectors


@pytest.fixture
def rig() -> Rig:
    return Rig()


# Interrupt sequence and cascade mode


@pytest.mark.parametrize("irq", [irq for irq in range(16) if irq != 2])
def test_each_irq_has_its_vector(rig: Rig, irq: int) -> None:
    rig.lines[irq].set(True)
    assert rig.take() == 0x20 + irq
    assert rig.take() is None


def test_the_output_falls_at_the_acknowledge_and_rises_for_the_next(rig: Rig) -> None:
    rig.pulse(1)
    rig.take()
    rig.pulse(0)
    assert rig.output.changes == [True, False, True]


def test_the_output_falls_at_each_acknowledge() -> None:
    """What is wired to it may be edge-triggered."""
    rig = Rig(icw4=1 | AEOI)
    rig.pulse(3, 4)
    rig.take()
    assert rig.output.changes == [True, False, True]


def test_an_acknowledge_moves_the_request_into_service(rig: Rig) -> None:
    rig.lines[12].set(True)
    assert (rig.irr(), rig.irr(SLAVE)) == (0x04, 0x10)
    assert rig.take() == 0x2C
    assert (rig.irr(), rig.isr(), rig.irr(SLAVE), rig.isr(SLAVE)) == (0, 0x04, 0, 0x10)


def test_irq_2_leads_nowhere(rig: Rig) -> None:
    rig.pulse(2)
    assert (rig.irr(), rig.take()) == (0, None)


@pytest.mark.parametrize("irq", [-1, 16])
def test_there_are_16_irqs(rig: Rig, irq: int) -> None:
    with pytest.raises(ConfigError, match=f"IRQs 0 to 15, not {irq}"):
        rig.pair.line(irq)


def test_an_irq_is_asserted_while_any_source_is(rig: Rig) -> None:
    rig.out(ELCR + 1, 0x08)
    one, other = rig.pair.line(11), rig.pair.line(11)
    one.set(True)
    other.set(True)
    one.set(True)
    one.set(False)
    assert rig.irr(SLAVE) == 0x08
    other.set(False)
    assert rig.irr(SLAVE) == 0


# Fully nested mode, end of interrupt


def test_the_lowest_number_comes_first(rig: Rig) -> None:
    rig.pulse(*range(16))
    assert rig.take_all() == [0x20, 0x21, *range(0x28, 0x30), *range(0x23, 0x28)]


def test_higher_priorities_nest_and_lower_ones_wait(rig: Rig) -> None:
    rig.pulse(4)
    assert rig.take() == 0x24
    rig.pulse(5)
    assert rig.take() is None
    rig.pulse(1)
    assert rig.take() == 0x21
    assert rig.isr() == 0x12
    rig.out(MASTER, EOI)
    assert rig.isr() == 0x10
    rig.out(MASTER, EOI)
    assert rig.take() == 0x25


def test_a_specific_eoi_ends_what_it_names(rig: Rig) -> None:
    rig.pulse(4)
    rig.take()
    rig.pulse(1)
    rig.take()
    rig.out(MASTER, SPECIFIC_EOI | 4)
    assert rig.isr() == 0x02


def test_an_eoi_with_nothing_in_service(rig: Rig) -> None:
    for command in (EOI, ROTATE_EOI, SPECIFIC_EOI | 3):
        rig.out(MASTER, command)
    rig.pulse(0, 7)
    assert rig.take_all() == [0x20, 0x27]


def test_the_no_operation_does_nothing(rig: Rig) -> None:
    rig.pulse(3)
    rig.take()
    before = str(rig.pair)
    rig.out(MASTER, NOTHING | 3)
    assert str(rig.pair) == before


def test_automatic_eoi() -> None:
    rig = Rig(icw4=1 | AEOI)
    rig.pulse(3, 9)
    assert (rig.take(), rig.isr(), rig.isr(SLAVE)) == (0x29, 0, 0)
    assert (rig.take(), rig.isr()) == (0x23, 0)


def test_a_slave_with_automatic_eoi_requests_again_by_a_new_edge() -> None:
    rig = Rig(icw4=1 | AEOI)
    rig.pulse(8, 15, 14)
    assert [rig.take() for _ in range(4)] == [0x28, 0x2E, 0x2F, None]


# Rotation


def test_rotation_on_non_specific_eoi(rig: Rig) -> None:
    rig.pulse(4)
    rig.take()
    rig.out(MASTER, ROTATE_EOI)
    rig.pulse(*range(8))
    assert rig.take_all() == [0x25, 0x26, 0x27, 0x20, 0x21, 0x23, 0x24]


def test_rotation_on_specific_eoi(rig: Rig) -> None:
    rig.pulse(5)
    rig.take()
    rig.out(MASTER, ROTATE_SPECIFIC_EOI | 5)
    rig.pulse(5, 6, 0)
    assert rig.take_all() == [0x26, 0x20, 0x25]


def test_set_priority_ends_nothing(rig: Rig) -> None:
    rig.pulse(3)
    rig.take()
    rig.out(MASTER, SET_PRIORITY | 3)
    assert rig.isr() == 0x08
    rig.pulse(4, 1)
    assert rig.take() == 0x24, "IRQ 4 is the highest now"


def test_rotation_on_automatic_eoi() -> None:
    rig = Rig(icw4=1 | AEOI)
    rig.out(MASTER, ROTATE_ON_AEOI)
    rig.pulse(0)
    assert rig.take() == 0x20
    rig.pulse(0, 1)
    assert [rig.take(), rig.take()] == [0x21, 0x20]
    rig.out(MASTER, NO_ROTATE_ON_AEOI)
    rig.pulse(3)
    rig.take()
    rig.pulse(3, 4)
    assert rig.take() == 0x23, "priorities stay as they were"


# Interrupt masks


def test_a_masked_request_waits(rig: Rig) -> None:
    rig.out(MASTER + 1, 0x08)
    rig.pulse(3)
    assert (rig.inb(MASTER + 1), rig.irr(), rig.take()) == (0x08, 0x08, None)
    rig.out(MASTER + 1, 0)
    assert rig.take() == 0x23


def test_a_mask_does_not_end_service(rig: Rig) -> None:
    rig.pulse(3)
    rig.take()
    rig.out(MASTER + 1, 0x08)
    rig.pulse(4)
    assert (rig.isr(), rig.take()) == (0x08, None)


# Special mask mode


def test_special_mask_mode_lets_lower_priorities_in(rig: Rig) -> None:
    rig.pulse(3)
    rig.take()
    rig.pulse(4)
    rig.out(MASTER, SET_SPECIAL_MASK)
    assert rig.take() is None, "the level in service is not masked yet"
    rig.out(MASTER + 1, 0x08)
    assert rig.take() == 0x24
    rig.out(MASTER, RESET_SPECIAL_MASK)
    rig.pulse(5)
    assert rig.take() is None


def test_a_masked_level_escapes_the_non_specific_eoi_in_special_mask_mode(rig: Rig) -> None:
    rig.pulse(3)
    rig.take()
    rig.out(MASTER, SET_SPECIAL_MASK)
    rig.out(MASTER + 1, 0x08)
    rig.out(MASTER, EOI)
    assert rig.isr() == 0x08
    rig.out(MASTER, SPECIFIC_EOI | 3)
    assert rig.isr() == 0


def test_without_its_enable_bit_the_special_mask_bit_means_nothing(rig: Rig) -> None:
    rig.out(MASTER, 0x28)
    assert "special-mask" not in str(rig.pair)
    rig.out(MASTER, SET_SPECIAL_MASK)
    rig.out(MASTER, 0x08)
    assert "special-mask" in str(rig.pair)


# The special fully nested mode


@pytest.mark.parametrize("nested", [False, True])
def test_a_slave_in_service_asks_again(nested: bool) -> None:
    rig = Rig(master_icw4=1 | nested * NESTED)
    rig.pulse(12)
    assert rig.take() == 0x2C
    rig.pulse(9)
    assert rig.irr() == 0x04
    assert rig.take() == (0x29 if nested else None)


def test_special_nesting_keeps_lower_priorities_out() -> None:
    rig = Rig(master_icw4=1 | NESTED)
    rig.pulse(12)
    rig.take()
    rig.pulse(5)
    assert rig.take() is None
    rig.pulse(1)
    assert rig.take() == 0x21
    rig.pulse(1)
    assert rig.take() is None, "only a slave is let in at its own priority"


# Poll command


def test_a_poll_without_a_request(rig: Rig) -> None:
    assert rig.poll(MASTER) & 0x80 == 0
    rig.pulse(3)
    assert rig.poll(SLAVE) & 0x80 == 0


def test_a_poll_is_an_acknowledge(rig: Rig) -> None:
    rig.pulse(6, 3)
    assert rig.poll(MASTER) == 0x83
    assert (rig.isr(), rig.irr(), rig.take()) == (0x08, 0x40, None)
    rig.out(MASTER, EOI)
    assert rig.take() == 0x26


@pytest.mark.parametrize("port", [MASTER, MASTER + 1])
def test_one_read_is_polled_at_either_port(rig: Rig, port: int) -> None:
    rig.out(MASTER + 1, 0x81)
    rig.pulse(3)
    rig.out(MASTER, POLL | READ_ISR)
    assert rig.inb(port) == 0x83
    assert (rig.inb(MASTER + 1), rig.inb(MASTER)) == (0x81, 0x08)


def test_polling_the_slave_takes_its_request_from_the_master(rig: Rig) -> None:
    rig.pulse(9)
    assert rig.poll(SLAVE) == 0x81
    assert (rig.irr(), rig.isr(), rig.take()) == (0, 0, None)
    rig.pulse(8)
    assert rig.take() == 0x28


def test_polling_the_master_and_then_the_slave(rig: Rig) -> None:
    rig.pulse(13)
    assert rig.poll(MASTER) == 0x82
    rig.out(MASTER + 1, 0)
    assert rig.irr() == 0, "the slave still asks, but there was no edge"
    assert rig.poll(SLAVE) == 0x85
    assert (rig.isr(), rig.isr(SLAVE)) == (0x04, 0x20)
    rig.pulse(14)
    rig.out(SLAVE, EOI)
    rig.out(MASTER, EOI)
    assert rig.take() == 0x2E


def test_a_polled_level_comes_back(rig: Rig) -> None:
    rig.out(ELCR, 0x20)
    rig.lines[5].set(True)
    assert rig.poll(MASTER) == 0x85
    rig.out(MASTER, EOI)
    assert rig.take() == 0x25


# Edge and level triggered modes


def test_an_edge_requests_once(rig: Rig) -> None:
    rig.lines[3].set(True)
    rig.take()
    rig.out(MASTER, EOI)
    assert rig.take() is None
    rig.lines[3].set(False)
    rig.lines[3].set(True)
    assert rig.take() == 0x23


def test_a_level_requests_until_it_falls(rig: Rig) -> None:
    rig.out(ELCR, 0x08)
    rig.lines[3].set(True)
    for _ in range(3):
        assert rig.take() == 0x23
        rig.out(MASTER, EOI)
    rig.lines[3].set(False)
    assert (rig.irr(), rig.take()) == (0, None)


def test_ltim_is_ignored(rig: Rig) -> None:
    rig.out(MASTER, 0x19)
    for word in (0x20, 0x04, 0x01):
        rig.out(MASTER + 1, word)
    rig.lines[3].set(True)
    rig.take()
    rig.out(MASTER, EOI)
    assert rig.take() is None


def test_elcr_has_bits_for_what_may_be_level_triggered(rig: Rig) -> None:
    rig.out(ELCR, 0xFFFF, size=2)
    assert (rig.inb(ELCR), rig.inb(ELCR + 1)) == (0xF8, 0xDE)


def test_a_line_that_becomes_level_triggered_requests_as_it_is(rig: Rig) -> None:
    rig.lines[3].set(True)
    rig.take()
    rig.out(MASTER, EOI)
    rig.pulse(4)
    rig.out(ELCR, 0x18)
    assert rig.irr() == 0x08


def test_a_withdrawn_level_is_spurious_irq_7(rig: Rig) -> None:
    rig.out(ELCR, 0x20)
    rig.lines[5].set(True)
    rig.lines[5].set(False)
    assert rig.output.changes == [True, False]
    assert rig.pair.acknowledge() == 0x27
    assert rig.isr() == 0, "unlike a real IRQ 7"


def test_a_withdrawn_request_of_the_slave_is_spurious_irq_15(rig: Rig) -> None:
    rig.out(ELCR + 1, 0x08)
    rig.lines[11].set(True)
    rig.lines[11].set(False)
    assert rig.take() == 0x2F
    assert (rig.isr(), rig.isr(SLAVE)) == (0x04, 0)


# Initialization


def test_before_initialization_nothing_is_requested() -> None:
    pair = Pic8259Pair()
    pair.line(3).set(True)
    assert not pair.pending
    assert "uninitialized" in str(pair)


@pytest.mark.parametrize(
    ("icw1", "words"),
    [(0x11, (0x20, 0x04, 0x01)), (0x13, (0x20, 0x01)), (0x10, (0x20, 0x04)), (0x12, (0x20,))],
    ids=["cascade+icw4", "single+icw4", "cascade", "single"],
)
def test_the_sequence_ends_where_icw1_says(rig: Rig, icw1: int, words: tuple[int, ...]) -> None:
    rig.out(MASTER, icw1)
    for word in words:
        rig.pulse(5)
        assert rig.take() is None, "not yet initialized"
        rig.out(MASTER + 1, word)
    assert rig.take() == 0x25
    rig.out(MASTER + 1, 0x5A)
    assert rig.inb(MASTER + 1) == 0x5A, "what follows is the mask"


def test_icw1_clears_what_the_data_sheet_lists(rig: Rig) -> None:
    rig.pulse(6)
    rig.take()
    rig.out(ELCR, 0x10)
    rig.lines[4].set(True)
    rig.lines[3].set(True)
    rig.out(MASTER + 1, 0xFF)
    rig.out(MASTER, SET_PRIORITY | 2)
    rig.out(MASTER, SET_SPECIAL_MASK)
    rig.out(MASTER, READ_ISR)
    rig.out(MASTER, 0x11)
    assert rig.inb(MASTER) == 0x10, "status reads give the IRR, without its edges"
    assert rig.inb(MASTER + 1) == 0
    master = rig.pair.chips[0]
    assert (master.lowest, master.special_mask, master.isr) == (7, False, 0x40)
    assert not rig.pair.pending


@pytest.mark.parametrize(("icw1", "cleared"), [(0x10, True), (0x11, False)])
def test_without_icw4_its_functions_are_off(icw1: int, cleared: bool) -> None:
    rig = Rig(icw4=1 | AEOI | NESTED)
    rig.out(MASTER, icw1)
    master = rig.pair.chips[0]
    assert (master.auto_eoi, master.fully_nested) == (not cleared, not cleared)


def test_a_sequence_can_be_started_anew(rig: Rig) -> None:
    rig.out(MASTER, 0x11)
    rig.out(MASTER + 1, 0x70)
    rig.program(MASTER, 0x40, 0x04)
    rig.pulse(0)
    assert rig.take() == 0x40


def test_a_master_in_single_mode_answers_for_its_input_2(rig: Rig) -> None:
    rig.out(MASTER, 0x13)
    rig.out(MASTER + 1, 0x40)
    rig.out(MASTER + 1, 0x01)
    rig.pulse(9)
    assert rig.take() == 0x42
    assert rig.isr(SLAVE) == 0


def test_a_slave_that_does_not_know_its_number_does_not_answer(rig: Rig) -> None:
    rig.program(SLAVE, 0x28, 0x03)
    rig.pulse(9)
    assert rig.take() == 0xFF
    assert rig.isr(SLAVE) == 0


def test_the_number_of_a_slave_has_three_bits(rig: Rig) -> None:
    rig.program(SLAVE, 0x28, 0xFA)
    rig.pulse(9)
    assert rig.take() == 0x29


def test_a_pending_level_is_requested_once_the_slave_is_initialized(rig: Rig) -> None:
    rig.out(ELCR + 1, 0x02)
    rig.lines[9].set(True)
    rig.take()
    rig.out(MASTER, EOI)
    rig.out(SLAVE, SPECIFIC_EOI | 1)
    rig.program(MASTER, 0x30, 0x04)
    rig.program(SLAVE, 0x38, 0x02)
    assert rig.take() == 0x39


def test_reset_keeps_the_lines(rig: Rig) -> None:
    rig.out(ELCR, 0x08)
    rig.lines[3].set(True)
    rig.pair.reset()
    assert not rig.output.level
    assert (rig.inb(MASTER), rig.inb(ELCR)) == (0, 0)
    rig.program(MASTER, 0x20, 0x04)
    assert rig.take() is None, "the edge was before the reset"
    rig.out(ELCR, 0x08)
    assert rig.take() == 0x23


def test_it_prints_its_registers(rig: Rig) -> None:
    rig.lines[12].set(True)
    assert str(rig.pair).splitlines() == [
        "master irr=04 isr=00 imr=00 elcr=00 lines=04 vector=20 lowest=7",
        "slave  irr=10 isr=00 imr=00 elcr=00 lines=10 vector=28 lowest=7",
        "INT=1",
    ]


def test_a_word_is_two_bytes(rig: Rig) -> None:
    rig.out(MASTER, 0x5A << 8 | READ_ISR, size=2)
    assert rig.inb(MASTER + 1) == 0x5A
    rig.pulse(7)
    rig.take()
    assert rig.bus.read(Space.PIO, MASTER, 2) == 0x5A80


# Whatever the guest does

ports = st.sampled_from([MASTER, MASTER + 1, SLAVE, SLAVE + 1, ELCR, ELCR + 1])
actions = st.one_of(
    st.tuples(st.just("out"), ports, st.integers(0, 255)),
    st.tuples(st.just("in"), ports, st.just(0)),
    st.tuples(st.just("line"), st.integers(0, 15), st.integers(0, 1)),
    st.tuples(st.just("take"), st.just(0), st.just(0)),
    st.tuples(st.just("program"), st.sampled_from([MASTER, SLAVE]), st.integers(0, 255)),
)


def perform(rig: Rig, action: tuple[str, int, int]) -> int | None:
    kind, where, value = action
    if kind == "out":
        rig.out(where, value)
    elif kind == "in":
        return rig.inb(where)
    elif kind == "line":
        rig.lines[where].set(bool(value))
    elif kind == "program":
        rig.program(where, value, 0x04 if where == MASTER else 0x02, value >> 3)
    else:
        return rig.take()
    return None


def bits(value: int) -> list[int]:
    return [bit for bit in range(8) if value >> bit & 1]


@given(st.lists(actions, max_size=60))
def test_no_guest_breaks_it(program: list[tuple[str, int, int]]) -> None:
    rig = Rig()
    for action in program:
        value = perform(rig, action)
        assert value is None or 0 <= value <= 0xFF
        master, slave = rig.pair.chips
        assert rig.pair.pending == rig.output.level == (master.request() is not None)
        assert bool(master.lines & 4) == (slave.request() is not None)
        for chip in rig.pair.chips:
            assert all(0 <= register <= 0xFF for register in (chip.irr, chip.isr, chip.imr))
            assert chip.irr & chip.elcr == chip.lines & chip.elcr, "a level is its line"
        str(rig.pair)


@given(st.lists(st.tuples(st.integers(0, 15), st.booleans()), min_size=1, max_size=40))
def test_service_nests_by_rising_priority(program: list[tuple[int, bool]]) -> None:
    """In fully nested mode what is taken outranks all in service, and EOIs end it in that order."""
    rig = Rig()
    order = [0, 1, *range(8, 16), *range(3, 8)]
    nested: list[int] = []
    for irq, end in program:
        rig.pulse(irq)
        while (vector := rig.take()) is not None:
            nested.append(order.index(vector - 0x20))
        assert all(later < earlier for earlier, later in pairwise(nested))
        if end and nested:
            if 2 <= nested.pop() < 10:
                rig.out(SLAVE, EOI)
            rig.out(MASTER, EOI)
        master, slave = rig.pair.chips
        served = [order[rank] for rank in nested]
        assert bits(slave.isr) == sorted(irq - 8 for irq in served if irq >= 8)
        cascade = {2} if slave.isr else set()
        assert bits(master.isr) == sorted({irq for irq in served if irq < 8} | cascade)


@given(st.sets(st.integers(0, 15).filter(lambda irq: irq != 2)), st.randoms())
def test_no_edge_is_lost(irqs: set[int], random: Random) -> None:
    rig = Rig()
    rig.pulse(*random.sample(sorted(irqs), len(irqs)))
    assert sorted(rig.take_all()) == [0x20 + irq for irq in sorted(irqs)]
