"""The HPET, register by register, and against a model that counts tick by tick."""

from __future__ import annotations

from itertools import pairwise

import pytest
from clock.fake_host import Host
from devices.hpet_rig import IRQS, ONES32, ONES64, PERIODIC, Rig, comparator, config, route

from pykvm.bus import Bus, Space
from pykvm.devices.hpet import (
    CAPABILITIES,
    CONFIGURATION,
    COUNTER,
    ENABLE_CNF,
    INT_ENB_CNF,
    INT_TYPE_CNF,
    LEG_RT_CNF,
    MODE32_CNF,
    PER_INT_CAP,
    ROUTE_CNF,
    ROUTE_SHIFT,
    SHORTEST,
    SIZE_CAP,
    STATUS,
    TICK_NS,
    TIMERS,
    TYPE_CNF,
    VAL_SET_CNF,
    Hpet,
)
from support.lines import Lines


@pytest.fixture
def rig() -> Rig:
    return Rig()


class TestRegisters:
    def test_numbers(self) -> None:
        """As the figures of section 2.3 have them."""
        assert (CAPABILITIES, CONFIGURATION, STATUS, COUNTER) == (0, 0x10, 0x20, 0xF0)
        assert (ENABLE_CNF, LEG_RT_CNF) == (1, 2)
        assert (INT_TYPE_CNF, INT_ENB_CNF, TYPE_CNF) == (2, 4, 8)
        assert (PER_INT_CAP, SIZE_CAP, VAL_SET_CNF, MODE32_CNF) == (0x10, 0x20, 0x40, 0x100)
        assert (ROUTE_CNF, ROUTE_SHIFT) == (0x3E00, 9)

    def test_at_power_on(self, rig: Rig) -> None:
        """Section 3.1."""
        assert rig.read(CONFIGURATION) == rig.read(STATUS) == rig.read(COUNTER) == 0
        for number in range(TIMERS):
            assert rig.read(config(number)) & ONES32 == PER_INT_CAP | SIZE_CAP
            assert rig.read(comparator(number)) == ONES64
        rig.idle(1_000)
        assert rig.read(COUNTER) == 0, "halted"
        assert rig.clock.next_deadline(0) is None

    def test_capabilities(self, rig: Rig) -> None:
        value = rig.read(CAPABILITIES)
        assert value & 0xFF, "a revision of 0 is not permitted"
        assert value >> 8 & 0x1F == TIMERS - 1
        assert value >> 13 & 7 == 0b101, "64 bits, reserved, legacy replacement"
        assert value >> 16 & 0xFFFF == 0x8086
        assert value >> 32 == TICK_NS * 1_000_000 <= 0x05F5E100

    def test_routing_capability(self, rig: Rig) -> None:
        for number in range(TIMERS):
            assert rig.read(config(number)) >> 32 == 1 << 11 | 0xF << 20
            assert rig.read(config(number) + 4, 4) == 1 << 11 | 0xF << 20

    @pytest.mark.parametrize("irqs", [(), (0,), (8, 20), (5,)])
    def test_without_irq_0_and_8_there_is_no_legacy_replacement(self, irqs: tuple[int]) -> None:
        clock = Host().clock()
        lines = Lines(clock, 24)
        hpet = Hpet(clock, {irq: lines[irq] for irq in irqs})
        assert not hpet.read(CAPABILITIES, 4) & 1 << 15
        hpet.write(CONFIGURATION, 8, ONES64)
        assert hpet.read(CONFIGURATION, 8) == ENABLE_CNF
        assert not hpet.legacy

    @pytest.mark.parametrize(
        ("offset", "written"),
        [
            (CAPABILITIES, 0),
            (0x008, 0),
            (CONFIGURATION, ENABLE_CNF | LEG_RT_CNF),
            (0x018, 0),
            (STATUS, 0),
            (0x028, 0),
            (0x0E8, 0),
            (0x0F8, 0),
            (0x110, 0),
            (0x118, 0),
            (0x130, 0),
            (0x150, 0),
            (0x158, 0),
            (0x160, 0),
            (0x3F8, 0),
        ],
    )
    def test_reserved_bits_are_0_and_stay_so(self, rig: Rig, offset: int, written: int) -> None:
        before = rig.read(offset)
        rig.write(offset, ONES64)
        assert rig.read(offset) == before | written
        rig.write(offset, 0)
        assert rig.read(offset) == before

    def test_writable_bits_of_a_timer(self, rig: Rig) -> None:
        fixed = rig.read(config(1))
        rig.write(config(1), ONES64 & ~ROUTE_CNF | route(23))
        kept = INT_TYPE_CNF | INT_ENB_CNF | TYPE_CNF | VAL_SET_CNF | MODE32_CNF | route(23)
        assert rig.read(config(1)) == fixed | kept
        rig.write(config(1) + 4, 0, 4)
        assert rig.read(config(1)) == fixed | kept, "the upper half is read-only"
        rig.write(config(1), ONES32 << 32, 8)
        assert rig.read(config(1)) == fixed | route(23)
        rig.write(config(1) + 4, ONES32, 4)
        assert rig.read(config(1)) == fixed | route(23)

    @pytest.mark.parametrize("offset", [0x110, 0x114, 0x118, 0x11C, 0x0F8, 0x104])
    def test_writes_beside_a_timers_registers_leave_it_alone(self, rig: Rig, offset: int) -> None:
        rig.set(0, INT_ENB_CNF | route(20), 1_000)
        before = [rig.read(config(0)), rig.read(comparator(0))]
        rig.write(offset, 0x55, 4)
        assert [rig.read(config(0)), rig.read(comparator(0))] == before
        assert rig.read(COUNTER) == 0

    @pytest.mark.parametrize("irq", [irq for irq in range(32) if irq not in IRQS[2:]])
    def test_a_route_that_is_not_there_is_not_taken(self, rig: Rig, irq: int) -> None:
        rig.write(config(0), route(21))
        rig.write(config(0), route(irq))
        assert rig.read(config(0)) & ROUTE_CNF == route(21)

    def test_value_set_is_for_periodic_timers(self, rig: Rig) -> None:
        rig.write(config(0), VAL_SET_CNF)
        assert not rig.read(config(0)) & VAL_SET_CNF
        rig.write(config(0), VAL_SET_CNF | TYPE_CNF)
        assert rig.read(config(0)) & VAL_SET_CNF
        rig.write(comparator(0), 5)
        assert not rig.read(config(0)) & VAL_SET_CNF, "clears itself"

    def test_halves(self, rig: Rig) -> None:
        rig.write(COUNTER, 0x11223344, 4)
        rig.write(COUNTER + 4, 0x55667788, 4)
        assert rig.read(COUNTER) == 0x5566778811223344
        assert rig.read(COUNTER + 4, 4) == 0x55667788
        rig.write(comparator(2) + 4, 0xAABBCCDD, 4)
        assert rig.read(comparator(2)) == 0xAABBCCDDFFFFFFFF
        rig.write(comparator(2), 7, 4)
        assert rig.read(comparator(2)) == 0xAABBCCDD00000007
        rig.write(CONFIGURATION + 4, 1, 4)
        rig.write(STATUS + 4, 1, 4)
        assert rig.read(CONFIGURATION) == 0

    @pytest.mark.parametrize(("offset", "size"), [(0, 1), (0, 2), (1, 4), (2, 4), (4, 8), (3, 1)])
    def test_accesses_that_software_must_not_make(self, rig: Rig, offset: int, size: int) -> None:
        """Section 2.3.2: they read what lies there, and write nothing."""
        rig.write(COUNTER, 0x8877665544332211)
        image = (0x8877665544332211).to_bytes(8, "little") + bytes(8)
        want = int.from_bytes(image[offset : offset + size], "little")
        assert rig.read(COUNTER + offset, size) == want
        rig.write(COUNTER + offset, 0, size)
        assert rig.read(COUNTER) == 0x8877665544332211

    def test_a_read_across_two_registers(self, rig: Rig) -> None:
        rig.write(comparator(0), 0x1122334455667788)
        assert rig.read(config(0) + 4) == 0x55667788 << 32 | 1 << 11 | 0xF << 20

    def test_on_the_bus(self, rig: Rig) -> None:
        bus = Bus()
        bus.add_mmio(0xFED0_0000, 0x400, rig.hpet)
        assert bus.write(Space.MMIO, 0xFED0_00F0, 8, 77)
        assert bus.read(Space.MMIO, 0xFED0_00F0, 8) == 77
        assert bus.read(Space.MMIO, 0xFED0_00F4, 4) == 0

    def test_32_bit_mode_drops_the_upper_half(self, rig: Rig) -> None:
        rig.write(comparator(0), 0x1_2345_6789)
        rig.write(config(0), MODE32_CNF)
        assert rig.read(comparator(0)) == 0x2345_6789
        rig.write(comparator(0), ONES64)
        assert rig.read(comparator(0)) == ONES32
        rig.write(comparator(0) + 4, 9, 4)
        assert rig.read(comparator(0)) == ONES32
        rig.write(config(0), 0)
        assert rig.read(comparator(0)) == ONES32


class TestCounter:
    def test_it_runs_while_enabled(self, rig: Rig) -> None:
        rig.idle(100)
        rig.start()
        rig.idle(7)
        assert rig.read(COUNTER) == 7
        rig.stop()
        rig.idle(50)
        assert rig.read(COUNTER) == 7
        rig.start()
        assert rig.read(COUNTER) == 7
        rig.idle(1)
        assert rig.read(COUNTER) == rig.hpet.counter == 8

    def test_it_can_be_set_and_wraps(self, rig: Rig) -> None:
        rig.write(COUNTER, ONES64 - 1)
        rig.start()
        rig.idle(3)
        assert rig.read(COUNTER) == 1
        rig.write(COUNTER, 1_000)
        rig.idle(3)
        assert rig.read(COUNTER) == 1_003, "while it runs too"


class TestOneShot:
    @pytest.mark.parametrize("number", range(TIMERS))
    @pytest.mark.parametrize("mode", [0, MODE32_CNF])
    def test_it_fires_when_the_counter_equals(self, rig: Rig, number: int, mode: int) -> None:
        rig.set(number, INT_ENB_CNF | route(20) | mode, 500)
        rig.start()
        rig.run(499)
        assert rig.rises(20) == []
        rig.run(1)
        assert rig.rises(20) == [500]
        assert not rig.level(20), "a pulse"
        rig.run(100_000)
        assert rig.rises(20) == [500]
        assert rig.read(comparator(number)) == 500
        assert rig.read(STATUS) == 0

    def test_a_comparator_that_was_passed_does_not_fire(self, rig: Rig) -> None:
        rig.start()
        rig.run(100)
        rig.set(0, INT_ENB_CNF | route(20), 99)
        rig.run(1_000_000)
        assert rig.rises(20) == []

    def test_a_comparator_that_is_equal_fires_at_once(self, rig: Rig) -> None:
        rig.start()
        rig.run(100)
        rig.set(0, INT_ENB_CNF | route(20), 100)
        rig.run(0)
        assert rig.rises(20) == [100]

    def test_one_that_equals_when_the_counter_starts(self, rig: Rig) -> None:
        rig.set(0, INT_ENB_CNF | route(20), 0)
        rig.run(50)
        assert rig.rises(20) == [], "not while halted"
        rig.start()
        rig.run(0)
        assert rig.rises(20) == [50]

    def test_32_bit_mode_matches_across_the_wrap(self, rig: Rig) -> None:
        """Of the counter only the low 32 bits count; the same value comes again each wrap."""
        rig.write(COUNTER, 0x7_FFFF_FF00)
        rig.set(0, INT_ENB_CNF | MODE32_CNF | route(20), 0x10)
        rig.start()
        rig.run(0x10F)
        assert rig.rises(20) == []
        rig.run(1)
        assert rig.rises(20) == [0x110]
        rig.run((1 << 32) - 1)
        assert len(rig.rises(20)) == 1
        rig.run(1)
        assert rig.rises(20) == [0x110, 0x110 + (1 << 32)]

    @pytest.mark.parametrize(("late", "missed"), [((3 << 32) - 1, 2), (3 << 32, 3)])
    def test_one_that_wraps_and_is_late_coalesces_and_counts(
        self, rig: Rig, late: int, missed: int
    ) -> None:
        rig.set(0, INT_ENB_CNF | MODE32_CNF | route(20), 10)
        rig.start()
        rig.idle(10 + late)
        rig.run(0)
        assert (len(rig.rises(20)), rig.hpet.missed) == (1, missed)

    def test_64_bit_mode_does_not_match_at_32_bits(self, rig: Rig) -> None:
        rig.write(COUNTER, 0x7_FFFF_FF00)
        rig.set(0, INT_ENB_CNF | route(20), 0x10)
        rig.start()
        rig.run(3 << 32)
        assert rig.rises(20) == []

    def test_64_bit_mode_matches_across_its_own_wrap(self, rig: Rig) -> None:
        rig.write(COUNTER, ONES64)
        rig.set(0, INT_ENB_CNF | route(20), 5)
        rig.start()
        rig.run(6)
        assert rig.rises(20) == [6]

    def test_masked_it_fires_nothing(self, rig: Rig) -> None:
        rig.set(0, route(20), 10)
        rig.start()
        assert rig.clock.next_deadline(0) is None
        rig.run(20)
        rig.set(0, INT_ENB_CNF | route(20))
        rig.run(20)
        assert rig.rises(20) == []

    def test_halting_holds_it_back(self, rig: Rig) -> None:
        rig.set(0, INT_ENB_CNF | route(20), 10)
        rig.start()
        rig.run(5)
        rig.stop()
        assert rig.clock.next_deadline(0) is None
        rig.run(1_000)
        assert rig.rises(20) == []
        rig.start()
        rig.run(5)
        assert rig.rises(20) == [1_010]

    def test_writing_the_counter_moves_it(self, rig: Rig) -> None:
        rig.set(0, INT_ENB_CNF | route(20), 1_000)
        rig.start()
        rig.run(10)
        rig.write(COUNTER, 990)
        rig.run(9)
        assert rig.rises(20) == []
        rig.run(1)
        assert rig.rises(20) == [20]
        rig.write(COUNTER, 990)
        rig.run(10)
        assert rig.rises(20) == [20, 30], "and again"

    def test_an_access_before_the_deadline_is_served_misses_nothing(self, rig: Rig) -> None:
        rig.set(0, INT_ENB_CNF | route(20), 10)
        rig.start()
        rig.idle(30)
        rig.write(comparator(0), 1_000)
        assert rig.rises(20) == [30]
        rig.run(970)
        assert rig.rises(20) == [30, 1_000]

    @pytest.mark.parametrize("offset", [STATUS, comparator(0)])
    def test_a_read_before_the_deadline_is_served_gives_a_whole_pulse(
        self, rig: Rig, offset: int
    ) -> None:
        rig.set(0, INT_ENB_CNF | route(20), 10)
        rig.start()
        rig.idle(10)
        rig.read(offset)
        assert (rig.rises(20), rig.level(20)) == ([10], False)

    @pytest.mark.parametrize("offset", [CONFIGURATION, COUNTER, config(0), comparator(0)])
    def test_a_write_before_the_deadline_is_served_comes_after_the_match(
        self, rig: Rig, offset: int
    ) -> None:
        rig.set(0, INT_ENB_CNF | route(20), 10)
        rig.start()
        rig.idle(15)
        rig.write(offset, 0)
        assert rig.rises(20) == [15]

    def test_unrouted_it_goes_nowhere(self, rig: Rig) -> None:
        rig.set(0, INT_ENB_CNF, 10)
        rig.start()
        rig.run(20)
        assert rig.lines.log == []
        assert rig.hpet.missed == 0


class TestPeriodic:
    """With periods well above `SHORTEST`, but where that is the subject."""

    P = 10_000

    @pytest.mark.parametrize("number", range(TIMERS))
    def test_it_fires_every_period(self, rig: Rig, number: int) -> None:
        """The usage model of section 2.3.9.2.2."""
        rig.stop()
        rig.write(COUNTER, 0)
        rig.set(number, PERIODIC | route(22), self.P)
        rig.start()
        rig.run(10 * self.P)
        assert rig.rises(22) == [self.P * n for n in range(1, 11)]
        assert rig.read(comparator(number)) == 11 * self.P
        assert rig.hpet.missed == 0

    def test_as_linux_programs_it(self, rig: Rig) -> None:
        """First match and period by two writes, the second without Tn_VAL_SET_CNF."""
        rig.start()
        rig.run(123)
        rig.set(0, PERIODIC | MODE32_CNF | route(22), 123 + self.P)
        rig.write(comparator(0), 2 * self.P)
        assert rig.read(comparator(0)) == 123 + self.P
        rig.run(5 * self.P)
        assert rig.rises(22) == [123 + self.P, 123 + 3 * self.P, 123 + 5 * self.P]

    def test_a_new_period_counts_from_the_next_match(self, rig: Rig) -> None:
        """Section 2.4.3.2."""
        rig.set(0, PERIODIC | route(22), self.P)
        rig.start()
        rig.run(self.P + 1)
        rig.write(comparator(0), 3 * self.P)
        assert rig.read(comparator(0)) == 2 * self.P
        rig.run(4 * self.P)
        assert rig.rises(22) == [self.P, 2 * self.P, 5 * self.P]

    def test_the_period_is_the_last_value_written_before_the_mode_too(self, rig: Rig) -> None:
        rig.set(0, 0, self.P)
        rig.write(config(0), INT_ENB_CNF | TYPE_CNF | route(22))
        rig.start()
        rig.run(3 * self.P)
        assert rig.rises(22) == [self.P, 2 * self.P, 3 * self.P]

    def test_32_bit_mode_wraps_with_the_comparator(self, rig: Rig) -> None:
        """FFFF0000h and 20000h give 10000h, as section 2.3.9.1 has it."""
        rig.write(COUNTER, 0x3_FFFE_0000)
        rig.set(0, PERIODIC | MODE32_CNF | route(22), 0xFFFF_0000)
        rig.write(comparator(0), 0x2_0000)
        rig.start()
        rig.run(0x1_0000)
        assert rig.read(comparator(0)) == 0x1_0000
        rig.run(0x4_0000)
        assert rig.rises(22) == [0x1_0000, 0x3_0000, 0x5_0000]

    def test_64_bit_halves_each_need_value_set(self, rig: Rig) -> None:
        rig.set(0, PERIODIC | route(22))
        rig.write(comparator(0), 0x100, 4)
        rig.write(config(0), PERIODIC | route(22))
        rig.write(comparator(0) + 4, 0x2, 4)
        assert rig.read(comparator(0)) == 0x2_0000_0100
        rig.write(comparator(0) + 4, 0x7, 4)
        assert rig.read(comparator(0)) == 0x2_0000_0100, "that was the period"

    @pytest.mark.parametrize("late", [1, 5, 1_000_000])
    def test_one_that_is_late_coalesces_and_counts(self, rig: Rig, late: int) -> None:
        rig.set(0, PERIODIC | route(22), self.P)
        rig.start()
        rig.idle((late + 1) * self.P + 1)
        rig.run(0)
        assert len(rig.rises(22)) == 1
        assert rig.hpet.missed == late
        rig.run(self.P)
        assert rig.rises(22)[1:] == [(late + 2) * self.P], "the next is where it would be anyway"

    @pytest.mark.parametrize("period", [1, 7, SHORTEST // TICK_NS - 1])
    def test_no_guest_can_ask_for_a_storm(self, rig: Rig, period: int) -> None:
        rig.set(0, PERIODIC | route(22), period)
        rig.start()
        rig.run(1_000_000)
        rises = rig.rises(22)
        assert 2 <= len(rises) <= 1_000_000 * TICK_NS // SHORTEST + 1
        assert all(b - a >= SHORTEST // TICK_NS for a, b in pairwise(rises))
        rig.read(comparator(0))
        assert len(rig.rises(22)) + rig.hpet.missed == 1_000_000 // period

    def test_a_period_of_0_is_one_match_a_wrap(self, rig: Rig) -> None:
        rig.set(0, PERIODIC | MODE32_CNF | route(22), 9)
        rig.write(comparator(0), 0)
        rig.start()
        rig.run((1 << 32) + 9)
        assert rig.rises(22) == [9, (1 << 32) + 9]

    def test_masked_it_goes_on(self, rig: Rig) -> None:
        rig.set(0, (PERIODIC & ~INT_ENB_CNF) | route(22), self.P)
        rig.start()
        assert rig.clock.next_deadline(0) is None
        rig.run(5 * self.P + 1)
        assert rig.read(comparator(0)) == 6 * self.P
        rig.write(config(0), INT_ENB_CNF | TYPE_CNF | route(22))
        rig.run(self.P)
        assert rig.rises(22) == [6 * self.P]
        assert rig.hpet.missed == 0


class TestLevel:
    MODE = INT_ENB_CNF | INT_TYPE_CNF | route(21)

    def test_held_until_cleared(self, rig: Rig) -> None:
        rig.set(1, self.MODE, 10)
        rig.start()
        rig.run(20)
        assert rig.level(21)
        assert rig.read(STATUS) == 0b010
        rig.write(STATUS, 0b101)
        assert rig.level(21)
        rig.write(STATUS, 0b010, 4)
        assert (rig.level(21), rig.read(STATUS)) == (False, 0)

    def test_status_shows_a_match_before_its_deadline_is_served(self, rig: Rig) -> None:
        rig.set(1, self.MODE, 10)
        rig.start()
        rig.idle(10)
        assert rig.read(STATUS) == 0b010
        assert rig.level(21)

    def test_another_match_before_that_is_missed(self, rig: Rig) -> None:
        rig.set(1, self.MODE | TYPE_CNF | VAL_SET_CNF, 10_000)
        rig.start()
        rig.run(30_000)
        assert rig.clock.next_deadline(0) is None, "nothing to come until it is cleared"
        rig.write(STATUS, 0b010)
        assert not rig.level(21)
        assert rig.hpet.missed == 2
        rig.run(10_000)
        assert rig.rises(21) == [10_000, 40_000]

    def test_clearing_comes_after_the_matches_before_it(self, rig: Rig) -> None:
        rig.set(1, self.MODE | TYPE_CNF | VAL_SET_CNF, 10_000)
        rig.start()
        rig.run(10_000)
        rig.idle(15_000)
        rig.write(STATUS, 0b010)
        assert (rig.level(21), rig.hpet.missed) == (False, 1)
        rig.run(5_000)
        assert rig.rises(21) == [10_000, 30_000]

    def test_what_was_missed_puts_nothing_off(self, rig: Rig) -> None:
        rig.set(1, self.MODE | TYPE_CNF | VAL_SET_CNF, 3_000)
        rig.start()
        rig.run(9_000)
        assert rig.read(STATUS)
        rig.write(STATUS, 0b010)
        rig.run(3_000)
        assert rig.rises(21) == [3_000, 12_000]

    def test_masked_it_sets_the_status_alone(self, rig: Rig) -> None:
        """Section 2.3.8, the note on Tn_INT_ENB_CNF."""
        rig.set(1, self.MODE & ~INT_ENB_CNF, 10)
        rig.start()
        rig.run(20)
        assert rig.read(STATUS) == 0b010
        assert not rig.level(21)
        rig.write(config(1), self.MODE)
        assert rig.level(21)
        rig.write(config(1), self.MODE & ~INT_ENB_CNF)
        assert not rig.level(21)

    def test_halted_the_line_falls_and_the_status_stays(self, rig: Rig) -> None:
        rig.set(1, self.MODE, 10)
        rig.start()
        rig.run(20)
        rig.stop()
        assert (rig.level(21), rig.read(STATUS)) == (False, 0b010)
        rig.start()
        assert rig.level(21)

    def test_two_timers_on_one_line(self, rig: Rig) -> None:
        rig.set(0, self.MODE, 10)
        rig.set(1, self.MODE, 20)
        rig.set(2, INT_ENB_CNF | route(21), 30)
        rig.start()
        rig.run(40)
        assert rig.rises(21) == [10]
        assert rig.read(STATUS) == 0b011
        rig.write(STATUS, 0b001)
        assert rig.level(21)
        rig.write(STATUS, 0b010)
        assert not rig.level(21)

    def test_a_route_can_change_under_it(self, rig: Rig) -> None:
        rig.set(0, self.MODE, 10)
        rig.start()
        rig.run(20)
        rig.write(config(0), INT_ENB_CNF | INT_TYPE_CNF | route(23))
        assert (rig.level(21), rig.level(23)) == (False, True)

    def test_edge_mode_has_no_status(self, rig: Rig) -> None:
        rig.set(0, self.MODE, 10)
        rig.start()
        rig.run(20)
        rig.write(config(0), INT_ENB_CNF | route(21))
        assert (rig.level(21), rig.read(STATUS)) == (False, 0)

    def test_reset(self, rig: Rig) -> None:
        rig.set(0, self.MODE, 10)
        rig.start()
        rig.run(20)
        rig.hpet.reset()
        assert not rig.level(21)
        TestRegisters().test_at_power_on(rig)


class TestLegacyReplacement:
    def test_timers_0_and_1_have_irq_0_and_8(self, rig: Rig) -> None:
        for number in range(TIMERS):
            rig.set(number, INT_ENB_CNF | route(23), 10 * (number + 1))
        rig.start(legacy=True)
        rig.run(100)
        assert rig.rises(0) == [10]
        assert rig.rises(8) == [20]
        assert rig.rises(23) == [30], "timer 2 goes where it is routed"

    @pytest.mark.parametrize("irq", [0, 8])
    def test_the_device_that_shares_the_line_is_cut_off(self, rig: Rig, irq: int) -> None:
        legacy = rig.hpet.legacy_input(irq)
        legacy.set(True)
        assert rig.level(irq)
        rig.write(CONFIGURATION, LEG_RT_CNF)
        assert rig.level(irq), "both bits are needed"
        rig.start(legacy=True)
        assert rig.hpet.legacy
        assert not rig.level(irq)
        legacy.set(False)
        legacy.set(True)
        assert not rig.level(irq)
        rig.stop()
        assert rig.level(irq)
        legacy.set(False)
        assert not rig.level(irq)

    def test_level_triggered(self, rig: Rig) -> None:
        rig.set(0, INT_ENB_CNF | INT_TYPE_CNF, 10)
        rig.start(legacy=True)
        rig.run(10)
        assert rig.level(0)
        rig.start(legacy=False)
        assert not rig.level(0), "and not to the route that is not set"
        rig.start(legacy=True)
        rig.write(STATUS, 1)
        assert not rig.level(0)

    def test_nothing_on_a_line_that_is_not_there(self) -> None:
        Hpet(Host().clock()).legacy_input(0).set(True)


def test_str(rig: Rig) -> None:
    rig.set(0, PERIODIC | INT_TYPE_CNF | route(20), 10_000)
    rig.start(legacy=True)
    rig.run(30_000)
    rig.read(STATUS)
    assert str(rig.hpet) == (
        "hpet: running at 0x7530, legacy replacement\n"
        "  timer 0: periodic 64-bit level irq 20 enabled"
        " comparator 0x9c40 period 0x2710 active missed 2\n"
        "  timer 1: one-shot 64-bit edge irq 0 masked comparator 0xffffffffffffffff\n"
        "  timer 2: one-shot 64-bit edge irq 0 masked comparator 0xffffffffffffffff"
    )
