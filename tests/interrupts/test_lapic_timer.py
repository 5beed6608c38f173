"""The local APIC's timer: what it counts, when it fires, and what it does when it is late."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from interrupts.fakes import Board, FakeClock

from pykvm.clock import Clock
from pykvm.errors import ConfigError
from pykvm.interrupts import LocalApic
from pykvm.interrupts import lapic_registers as reg
from pykvm.interrupts.lapic_timer import MINIMUM_INTERVAL, divisor

VECTOR = 0x40
PERIODIC = reg.LVT_TIMER_PERIODIC
DEADLINE = reg.LVT_TIMER_DEADLINE
MASKED = reg.LVT_MASKED
BY_ONE = 0b1011
MSR_DEADLINE = 0x6E0
DIVIDES = {0b0000: 2, 0b0001: 4, 0b0010: 8, 0b0011: 16, 0b1000: 32, 0b1001: 64, 0b1010: 128, 11: 1}


def write(lapic: LocalApic, register: int, value: int) -> None:
    lapic.write(register << 4, 4, value)


def read(lapic: LocalApic, register: int) -> int:
    return lapic.read(register << 4, 4)


def served(lapic: LocalApic) -> bool:
    """Take and end the timer's interrupt, if it is there."""
    if lapic.interrupt is None:
        return False
    assert lapic.acknowledge() == VECTOR
    lapic.eoi()
    return True


def timer_board(lvt: int = VECTOR, *, divide: int = BY_ONE, hz: int = 1_000_000_000) -> Board:
    board = Board(timer_hz=hz)
    write(board.lapic, reg.SVR, 0x1FF)
    write(board.lapic, reg.LVT_TIMER, lvt)
    write(board.lapic, reg.DIVIDE, divide)
    return board


@pytest.mark.parametrize(("divide", "by"), DIVIDES.items())
def test_divisors(divide: int, by: int) -> None:
    board = timer_board(divide=divide)
    write(board.lapic, reg.INITIAL_COUNT, 1000)
    assert read(board.lapic, reg.DIVIDE) == divide
    assert board.clock.deadline == 1000 * by
    board.clock.time = 300 * by
    assert read(board.lapic, reg.CURRENT_COUNT) == 700
    board.clock.time += by - 1
    assert read(board.lapic, reg.CURRENT_COUNT) == 700
    board.clock.time += 1
    assert read(board.lapic, reg.CURRENT_COUNT) == 699


@given(st.integers(0, 0xFFFFFFFF))
def test_every_divide_value_means_something(value: int) -> None:
    board = timer_board()
    write(board.lapic, reg.DIVIDE, value)
    assert divisor(read(board.lapic, reg.DIVIDE)) == DIVIDES[value & 0xB]


@pytest.mark.parametrize("hz", [1_000_000_000, 24_000_000, 33_333_333, 3_000_000_000])
def test_rate(hz: int) -> None:
    board = timer_board(hz=hz)
    write(board.lapic, reg.INITIAL_COUNT, hz // 10)
    board.clock.advance(50_000_000)
    assert abs(read(board.lapic, reg.CURRENT_COUNT) - hz // 20) <= 3
    assert board.clock.advance(50_000_000) == 1
    assert read(board.lapic, reg.CURRENT_COUNT) == 0


def test_rate_of_nothing() -> None:
    with pytest.raises(ConfigError):
        Board(timer_hz=0)


class TestOneShot:
    def test_fires_once(self) -> None:
        board = timer_board()
        write(board.lapic, reg.INITIAL_COUNT, 500)
        board.clock.advance(499)
        assert not served(board.lapic)
        board.clock.advance(1)
        assert served(board.lapic)
        assert board.clock.advance(10_000) == 0
        assert not served(board.lapic)
        assert read(board.lapic, reg.CURRENT_COUNT) == 0
        assert read(board.lapic, reg.INITIAL_COUNT) == 500

    def test_restart(self) -> None:
        board = timer_board()
        write(board.lapic, reg.INITIAL_COUNT, 500)
        board.clock.advance(400)
        write(board.lapic, reg.INITIAL_COUNT, 500)
        board.clock.advance(400)
        assert not served(board.lapic)
        assert read(board.lapic, reg.CURRENT_COUNT) == 100

    def test_zero_stops(self) -> None:
        board = timer_board()
        write(board.lapic, reg.INITIAL_COUNT, 500)
        write(board.lapic, reg.INITIAL_COUNT, 0)
        assert board.clock.deadline is None
        assert read(board.lapic, reg.CURRENT_COUNT) == 0

    def test_reading_the_count_of_an_expired_timer_fires_it(self) -> None:
        board = timer_board()
        write(board.lapic, reg.INITIAL_COUNT, 500)
        board.clock.time = 600
        assert read(board.lapic, reg.CURRENT_COUNT) == 0
        assert served(board.lapic)
        board.clock.stall(0)
        assert not served(board.lapic), "its deadline fires nothing more"

    def test_masked_counts_but_asks_nothing_of_the_clock(self) -> None:
        board = timer_board(VECTOR | MASKED)
        write(board.lapic, reg.INITIAL_COUNT, 500)
        assert board.clock.deadline is None
        board.clock.time = 200
        assert read(board.lapic, reg.CURRENT_COUNT) == 300
        write(board.lapic, reg.LVT_TIMER, VECTOR)
        assert board.clock.deadline == 500

    def test_expired_while_masked(self) -> None:
        board = timer_board(VECTOR | MASKED)
        write(board.lapic, reg.INITIAL_COUNT, 500)
        board.clock.time = 600
        write(board.lapic, reg.LVT_TIMER, VECTOR)
        assert not served(board.lapic)
        assert board.clock.deadline is None

    def test_software_disable_masks(self) -> None:
        board = timer_board()
        write(board.lapic, reg.INITIAL_COUNT, 500)
        write(board.lapic, reg.SVR, 0xFF)
        assert board.clock.deadline is None
        board.clock.time = 100
        assert read(board.lapic, reg.CURRENT_COUNT) == 400

    def test_largest_count(self) -> None:
        board = timer_board(divide=0b1010)
        write(board.lapic, reg.INITIAL_COUNT, 0xFFFFFFFF)
        assert board.clock.deadline == 0xFFFFFFFF * 128

    def test_illegal_vector(self) -> None:
        board = timer_board(0x05)
        write(board.lapic, reg.INITIAL_COUNT, 500)
        board.clock.advance(1000)
        write(board.lapic, reg.ESR, 0)
        assert read(board.lapic, reg.ESR) == reg.ESR_RECEIVE_ILLEGAL_VECTOR

    def test_interrupts_of_a_disabled_apic_are_lost(self) -> None:
        board = timer_board()
        write(board.lapic, reg.INITIAL_COUNT, 500)
        board.lapic.base = 0xFEE00000
        board.clock.advance(1000)
        board.lapic.base = 0xFEE00800
        assert not served(board.lapic)


class TestPeriodic:
    PERIOD = 1_000_000

    def ticking(self) -> Board:
        board = timer_board(VECTOR | PERIODIC)
        write(board.lapic, reg.INITIAL_COUNT, self.PERIOD)
        return board

    def test_every_period(self) -> None:
        board = self.ticking()
        ticks = 0
        for _ in range(1000):
            board.clock.advance(self.PERIOD)
            ticks += served(board.lapic)
        assert (ticks, board.lapic.timer.missed) == (1000, 0)
        assert board.clock.deadline == 1001 * self.PERIOD, "no drift"

    def test_no_drift_at_odd_rates(self) -> None:
        board = timer_board(VECTOR | PERIODIC, hz=33_333_333)
        write(board.lapic, reg.INITIAL_COUNT, 33_333)
        ticks = 0
        while board.clock.time < 10_000_000_000:
            ticks += served(board.lapic)
            assert board.clock.deadline is not None
            board.clock.advance(board.clock.deadline - board.clock.time)
        assert ticks == 10_000_000_000 * 33_333_333 // 10**9 // 33_333

    def test_count(self) -> None:
        board = self.ticking()
        board.clock.advance(self.PERIOD * 3 + 250_000)
        assert read(board.lapic, reg.CURRENT_COUNT) == 750_000

    def test_late_ticks_coalesce_and_count(self) -> None:
        board = self.ticking()
        board.clock.stall(self.PERIOD * 5 + 300_000)
        assert served(board.lapic)
        assert not served(board.lapic)
        assert board.lapic.timer.missed == 4
        assert board.clock.deadline == 6 * self.PERIOD, "the next tick is on time"

    def test_ticks_that_merge_count_as_missed(self) -> None:
        board = self.ticking()
        board.clock.advance(3 * self.PERIOD)
        assert board.lapic.timer.missed == 2

    def test_masked_ticks_are_not_missed(self) -> None:
        board = self.ticking()
        write(board.lapic, reg.LVT_TIMER, VECTOR | PERIODIC | MASKED)
        board.clock.time = 5 * self.PERIOD + 1
        write(board.lapic, reg.LVT_TIMER, VECTOR | PERIODIC)
        assert board.lapic.timer.missed == 0
        assert not served(board.lapic)
        assert board.clock.deadline == 6 * self.PERIOD

    def test_storm_is_bounded(self) -> None:
        """A period of 1 ns: the first tick when it is due, then one each MINIMUM_INTERVAL."""
        board = timer_board(VECTOR | PERIODIC)
        write(board.lapic, reg.INITIAL_COUNT, 1)
        assert board.clock.deadline == 1
        interrupts = board.clock.advance(10 * MINIMUM_INTERVAL)
        assert interrupts == 10
        assert board.lapic.timer.missed == 9 * MINIMUM_INTERVAL, "all but the one that waits"

    def test_fast_ticks_stay_on_their_grid(self) -> None:
        board = timer_board(VECTOR | PERIODIC)
        write(board.lapic, reg.INITIAL_COUNT, 70_000)
        board.clock.advance(70_000)
        assert board.clock.deadline == 4 * 70_000

    def test_to_one_shot_and_back(self) -> None:
        board = self.ticking()
        board.clock.advance(3 * self.PERIOD // 2)
        assert served(board.lapic)
        write(board.lapic, reg.LVT_TIMER, VECTOR)
        assert read(board.lapic, reg.CURRENT_COUNT) == self.PERIOD // 2
        board.clock.advance(5 * self.PERIOD)
        assert served(board.lapic)
        write(board.lapic, reg.LVT_TIMER, VECTOR | PERIODIC)
        assert board.clock.deadline is None, "it has stopped"
        assert read(board.lapic, reg.CURRENT_COUNT) == 0


class TestDivideWhileCounting:
    def test_count_stays_and_rate_changes(self) -> None:
        board = timer_board()
        write(board.lapic, reg.INITIAL_COUNT, 1000)
        board.clock.advance(400)
        write(board.lapic, reg.DIVIDE, 0b0001)
        assert read(board.lapic, reg.CURRENT_COUNT) == 600
        assert board.clock.deadline == 400 + 600 * 4

    def test_periodic(self) -> None:
        board = timer_board(VECTOR | PERIODIC)
        write(board.lapic, reg.INITIAL_COUNT, 1_000_000)
        board.clock.advance(3_400_000)
        write(board.lapic, reg.DIVIDE, 0b0000)
        assert read(board.lapic, reg.CURRENT_COUNT) == 600_000
        assert board.clock.deadline == 3_400_000 + 1_200_000
        board.clock.advance(1_200_000)
        assert board.clock.deadline == 4_600_000 + 2_000_000


class TestDeadline:
    def deadline_board(self, lvt: int = VECTOR | DEADLINE, **clock: int) -> Board:
        board = Board(clock=FakeClock(**clock))
        write(board.lapic, reg.SVR, 0x1FF)
        write(board.lapic, reg.LVT_TIMER, lvt)
        return board

    def test_fires_at_the_deadline(self) -> None:
        board = self.deadline_board(tsc_khz=3_000_000, tsc_offset=1_000_000)
        board.lapic.write_msr(MSR_DEADLINE, 1_300_001)
        assert board.clock.deadline == 100_001
        assert board.lapic.read_msr(MSR_DEADLINE) == 1_300_001
        board.clock.advance(100_000)
        assert not served(board.lapic)
        board.clock.advance(1)
        assert served(board.lapic)
        assert board.lapic.read_msr(MSR_DEADLINE) == 0
        assert board.clock.deadline is None

    def test_in_the_past(self) -> None:
        board = self.deadline_board(tsc_offset=5000)
        board.lapic.write_msr(MSR_DEADLINE, 4999)
        assert served(board.lapic)
        assert board.lapic.read_msr(MSR_DEADLINE) == 0

    def test_never(self) -> None:
        board = self.deadline_board()
        board.lapic.write_msr(MSR_DEADLINE, 2**64 - 1)
        assert board.lapic.read_msr(MSR_DEADLINE) == 2**64 - 1
        board.clock.advance(10**18)
        assert not served(board.lapic)

    def test_zero_disarms(self) -> None:
        board = self.deadline_board()
        board.lapic.write_msr(MSR_DEADLINE, 1000)
        board.lapic.write_msr(MSR_DEADLINE, 0)
        assert board.clock.deadline is None

    def test_counts_do_not_work(self) -> None:
        board = self.deadline_board()
        write(board.lapic, reg.INITIAL_COUNT, 1000)
        assert read(board.lapic, reg.INITIAL_COUNT) == 0
        assert read(board.lapic, reg.CURRENT_COUNT) == 0
        assert board.clock.deadline is None

    @pytest.mark.parametrize("lvt", [VECTOR, VECTOR | PERIODIC])
    def test_in_other_modes(self, lvt: int) -> None:
        board = self.deadline_board(lvt)
        board.lapic.write_msr(MSR_DEADLINE, 1000)
        assert board.lapic.read_msr(MSR_DEADLINE) == 0
        assert board.clock.deadline is None

    def test_mode_changes_disarm(self) -> None:
        """SDM 3A 11.5.4.1."""
        board = self.deadline_board()
        board.lapic.write_msr(MSR_DEADLINE, 1000)
        write(board.lapic, reg.LVT_TIMER, VECTOR)
        write(board.lapic, reg.LVT_TIMER, VECTOR | DEADLINE)
        assert board.lapic.read_msr(MSR_DEADLINE) == 0
        write(board.lapic, reg.LVT_TIMER, VECTOR)
        write(board.lapic, reg.INITIAL_COUNT, 1000)
        write(board.lapic, reg.LVT_TIMER, VECTOR | DEADLINE)
        write(board.lapic, reg.LVT_TIMER, VECTOR)
        assert read(board.lapic, reg.INITIAL_COUNT) == 0
        assert board.clock.deadline is None

    def test_passed_while_masked(self) -> None:
        board = self.deadline_board(VECTOR | DEADLINE | MASKED)
        board.lapic.write_msr(MSR_DEADLINE, 1000)
        assert board.clock.deadline is None
        board.clock.time = 501
        assert board.lapic.read_msr(MSR_DEADLINE) == 0
        write(board.lapic, reg.LVT_TIMER, VECTOR | DEADLINE)
        assert not served(board.lapic)

    def test_unmasked_in_time(self) -> None:
        board = self.deadline_board(VECTOR | DEADLINE | MASKED)
        board.lapic.write_msr(MSR_DEADLINE, 1000)
        write(board.lapic, reg.LVT_TIMER, VECTOR | DEADLINE)
        board.clock.advance(500)
        assert served(board.lapic)

    @pytest.mark.parametrize(("offset", "when"), [(600, 200), (-1000, 1000)])
    def test_follows_the_tsc(self, offset: int, when: int) -> None:
        board = self.deadline_board()
        board.lapic.write_msr(MSR_DEADLINE, 1000)
        board.clock.tsc_offset = offset
        board.lapic.timer.tsc_moved()
        assert board.clock.deadline == when

    def test_tsc_moved_past_it(self) -> None:
        board = self.deadline_board()
        board.lapic.write_msr(MSR_DEADLINE, 1000)
        board.clock.tsc_offset = 5000
        board.lapic.timer.tsc_moved()
        assert served(board.lapic)

    def test_clock_that_rounds_down(self) -> None:
        """It says that the deadline is now when it is not yet: looked at again, but later."""

        class Hasty(FakeClock):
            def tsc_time(self, value: int, *, cpu: int = 0) -> int:
                return min(super().tsc_time(value), 100)

        board = Board(clock=Hasty(tsc_khz=3_000_000))
        write(board.lapic, reg.SVR, 0x1FF)
        write(board.lapic, reg.LVT_TIMER, VECTOR | DEADLINE)
        board.lapic.write_msr(MSR_DEADLINE, 310)
        assert board.clock.advance(110) == 5
        assert board.clock.time == 110
        assert served(board.lapic)

    def test_a_counter_that_kvm_keeps_stands_still_while_the_vcpu_is_halted(self) -> None:
        """Guest time decides; the next deadline is not taken for the one that has passed."""

        class Halted(FakeClock):
            tsc_by_kvm = True

            def tsc(self, now: int | None = None, *, cpu: int = 0) -> int:
                return self.tsc_offset

            def tsc_time(self, value: int, *, cpu: int = 0) -> int:
                return self.time + (value - self.tsc_offset) * 1_000_000 // self.tsc_khz

        board = Board(clock=Halted())
        write(board.lapic, reg.SVR, 0x1FF)
        write(board.lapic, reg.LVT_TIMER, VECTOR | DEADLINE)
        for deadline in (2000, 5000):
            board.lapic.write_msr(MSR_DEADLINE, deadline)
            away = (deadline - board.clock.tsc_offset) // 2
            assert board.clock.advance(away - 1) == 0
            assert not served(board.lapic)
            assert board.clock.advance(1) == 1
            assert served(board.lapic)
            assert board.lapic.read_msr(MSR_DEADLINE) == 0
            # It enters the guest, and KVM catches up.
            board.clock.tsc_offset = deadline

    def test_disabled_apic(self) -> None:
        board = self.deadline_board()
        board.lapic.write_msr(MSR_DEADLINE, 10**9)
        board.lapic.base = 0xFEE00000
        assert board.lapic.read_msr(MSR_DEADLINE) == 0
        board.lapic.write_msr(MSR_DEADLINE, 5)
        board.lapic.base = 0xFEE00800
        assert board.lapic.read_msr(MSR_DEADLINE) == 10**9


def test_reserved_mode_counts_mute() -> None:
    board = timer_board(VECTOR | PERIODIC | DEADLINE)
    write(board.lapic, reg.INITIAL_COUNT, 1000)
    board.clock.time = 400
    assert read(board.lapic, reg.CURRENT_COUNT) == 600
    board.clock.advance(1000)
    assert not served(board.lapic)
    assert read(board.lapic, reg.CURRENT_COUNT) == 0


def test_reset_stops_it() -> None:
    board = timer_board(VECTOR | PERIODIC)
    write(board.lapic, reg.INITIAL_COUNT, 1_000_000)
    board.clock.advance(5_000_000)
    board.lapic.reset()
    assert board.clock.deadline is None
    assert board.lapic.timer.missed == 0


class TestWithTheRealClock:
    """The same through pykvm's own clock, warped from deadline to deadline."""

    def board(self) -> tuple[Clock, LocalApic]:
        clock = Clock("warp", tsc_khz=2_500_000, host_now=lambda: 0)
        clock.start()
        port = Board().port
        lapic = LocalApic(0, clock, port, lambda source, message: None)
        write(lapic, reg.SVR, 0x1FF)
        return clock, lapic

    def test_periodic(self) -> None:
        clock, lapic = self.board()
        write(lapic, reg.LVT_TIMER, VECTOR | PERIODIC)
        write(lapic, reg.DIVIDE, BY_ONE)
        write(lapic, reg.INITIAL_COUNT, 1_000_000)
        for tick in range(1, 101):
            assert clock.next_deadline(0) == tick * 1_000_000
            clock.warp_to(tick * 1_000_000)
            assert clock.run_due(0) == 1
            assert served(lapic)

    @given(st.integers(1, 2**64 - 1), st.integers(0, 10**15))
    def test_deadline(self, deadline: int, since: int) -> None:
        clock, lapic = self.board()
        clock.warp_to(since)
        write(lapic, reg.LVT_TIMER, VECTOR | DEADLINE)
        lapic.write_msr(MSR_DEADLINE, deadline)
        for _ in range(3):
            when = clock.next_deadline(0)
            if when is None:
                break
            assert clock.tsc() < deadline
            clock.warp_to(when)
            clock.run_due(0)
        fired = lapic.interrupt == VECTOR
        assert fired == (clock.tsc() >= deadline)
        assert fired or deadline > 10**19


@given(
    st.integers(1, 0xFFFFFFFF),
    st.sampled_from(sorted(DIVIDES)),
    st.sampled_from([1_000_000_000, 24_000_000, 99_999_989]),
    st.lists(
        st.tuples(st.integers(0, 10**12), st.none() | st.sampled_from(sorted(DIVIDES))), max_size=20
    ),
)
def test_one_shot_never_rises(
    count: int, divide: int, hz: int, steps: list[tuple[int, int | None]]
) -> None:
    """Whatever the rate, and if it changes meanwhile."""
    board = timer_board(divide=divide, hz=hz)
    write(board.lapic, reg.INITIAL_COUNT, count)
    last = read(board.lapic, reg.CURRENT_COUNT)
    assert last == count
    fired = 0
    for elapsed, change in steps:
        board.clock.advance(elapsed)
        if change is not None:
            write(board.lapic, reg.DIVIDE, change)
        now = read(board.lapic, reg.CURRENT_COUNT)
        assert now <= last
        last = now
        fired += served(board.lapic)
        assert fired == (now == 0)


@given(
    st.integers(1, 10**6),
    st.sampled_from(sorted(DIVIDES)),
    st.lists(st.tuples(st.integers(0, 10**7), st.booleans()), max_size=30),
)
def test_periodic_ticks_are_all_accounted_for(
    count: int, divide: int, steps: list[tuple[int, bool]]
) -> None:
    """Interrupts taken, one that waits, and missed ones are all the ticks there were."""
    board = timer_board(VECTOR | PERIODIC, divide=divide)
    write(board.lapic, reg.INITIAL_COUNT, count)
    taken = 0
    for elapsed, late in steps:
        if late:
            board.clock.stall(elapsed)
            taken += served(board.lapic)
        else:
            board.clock.advance(elapsed)
    current = read(board.lapic, reg.CURRENT_COUNT)
    assert 1 <= current <= count
    period = count * DIVIDES[divide]
    waiting = board.lapic.interrupt is not None
    assert taken + waiting + board.lapic.timer.missed == board.clock.time // period
