"""The MC146818: time of day in every format, alarm, flags, update cycle, RAM."""

from __future__ import annotations

import datetime as dt
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.bus import Bus, Space
from pykvm.clock import Clock
from pykvm.devices.rtc import Rtc146818
from pykvm.devices.rtc_calendar import DAY, Alarm, Format, civil, days, until_alarm
from support.lines import Line

MS = 1_000_000
SECOND = 1_000_000_000
UTC = dt.timezone.utc

SEC, SEC_ALARM, MIN, MIN_ALARM, HOUR, HOUR_ALARM, WEEKDAY, MDAY, MONTH, YEAR = range(10)
A, B, C, D = range(10, 14)
CENTURY = 0x32
SET, PIE, AIE, UIE, SQWE, BINARY, H24, DSE = (0x80 >> bit for bit in range(8))
IRQF, PF, AF, UF = 0x80, 0x40, 0x20, 0x10
UIP = 0x80

# A Wednesday.
EPOCH = int(dt.datetime(2024, 2, 28, 23, 59, 50, tzinfo=UTC).timestamp())


class Rig:
    """A clock whose host time is moved by hand."""

    def __init__(self, epoch: float = EPOCH) -> None:
        self.host = 0
        self.clock = Clock(host_now=lambda: self.host)
        self.line = Line()
        self.rtc = Rtc146818(self.clock, self.line, epoch=epoch)
        self.bus = Bus()
        self.bus.add_pio(0x70, 2, self.rtc)

    def get(self, register: int) -> int:
        self.bus.write(Space.PIO, 0x70, 1, register)
        value = self.bus.read(Space.PIO, 0x71, 1)
        assert value is not None
        return value

    def put(self, register: int, value: int) -> None:
        self.bus.write(Space.PIO, 0x70, 1, register)
        self.bus.write(Space.PIO, 0x71, 1, value)

    def irq(self) -> bool:
        return self.line.level

    def nmi_masked(self) -> bool:
        return self.rtc.nmi_masked

    def date(self) -> list[int]:
        return [self.get(r) for r in (CENTURY, YEAR, MONTH, MDAY, HOUR, MIN, SEC, WEEKDAY)]

    def run(self, until: int) -> None:
        while (when := self.clock.next_deadline(0)) is not None and when <= until:
            self.host = max(self.host, when)
            self.clock.run_due(0)
        self.host = until


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_state_at_power_on(rig: Rig) -> None:
    assert [rig.get(register) for register in (A, B, C, D)] == [0x26, 0x02, 0x00, 0x80]
    assert rig.clock.next_deadline(0) is None


def test_the_time_is_the_hosts_unless_it_is_given() -> None:
    before = int(time.time())
    shown = Rtc146818(Clock()).time
    assert before <= shown <= time.time()


def test_the_index_cannot_be_read(rig: Rig) -> None:
    rig.put(0x40, 1)
    assert rig.bus.read(Space.PIO, 0x70, 1) == 0xFF


class TestTime:
    def test_time_turns_at_each_second(self, rig: Rig) -> None:
        assert rig.date() == [0x20, 0x24, 0x02, 0x28, 0x23, 0x59, 0x50, 4]
        rig.host = 9 * SECOND + 999 * MS
        assert rig.get(SEC) == 0x59
        rig.host = 10 * SECOND
        assert rig.date() == [0x20, 0x24, 0x02, 0x29, 0x00, 0x00, 0x00, 5]

    def test_seconds_turn_when_the_hosts_do(self) -> None:
        rig = Rig(EPOCH + 0.75)
        assert rig.get(SEC) == 0x50
        rig.host = SECOND // 4
        assert rig.get(SEC) == 0x51

    @pytest.mark.parametrize(
        ("control", "evening", "midnight"),
        [
            (H24, [0x23, 0x59, 0x50], 0x00),
            (H24 | BINARY, [23, 59, 50], 0),
            (0, [0x91, 0x59, 0x50], 0x12),
            (BINARY, [0x80 | 11, 59, 50], 12),
        ],
    )
    def test_formats(self, rig: Rig, control: int, evening: list[int], midnight: int) -> None:
        rig.put(B, SET | control)
        for register, value in zip((HOUR, MIN, SEC), evening, strict=True):
            rig.put(register, value)
        rig.put(B, control)
        assert rig.rtc.time % DAY == DAY - 10
        rig.host = 10 * SECOND
        assert rig.get(HOUR) == midnight

    def test_noon(self, rig: Rig) -> None:
        rig.put(B, SET)
        for register, value in ((HOUR, 0x11), (MIN, 0x59), (SEC, 0x59)):
            rig.put(register, value)
        rig.put(B, 0)
        rig.host = SECOND
        assert rig.get(HOUR) == 0x92

    def test_a_change_of_format_converts_nothing(self, rig: Rig) -> None:
        rig.put(B, SET | BINARY | H24)
        assert rig.get(MIN) == 0x59

    def test_centuries(self, rig: Rig) -> None:
        rig.put(B, SET | H24)
        for register, value in ((YEAR, 0x99), (MONTH, 0x12), (MDAY, 0x31), (CENTURY, 0x19)):
            rig.put(register, value)
        rig.put(B, H24)
        rig.host = 10 * SECOND
        assert rig.date()[:4] == [0x20, 0x00, 0x01, 0x01]

    def test_days_that_do_not_exist_carry_over(self, rig: Rig) -> None:
        rig.put(MDAY, 0x31)  # of February
        assert rig.get(MDAY) == 0x31, "as written until the next update"
        rig.host = SECOND
        assert rig.date()[1:4] == [0x24, 0x03, 0x02]

    def test_the_day_of_the_week_is_its_own_counter(self, rig: Rig) -> None:
        rig.put(WEEKDAY, 7)
        rig.host = 10 * SECOND
        assert rig.get(WEEKDAY) == 1

    def test_a_long_sleep(self, rig: Rig) -> None:
        rig.host = 366 * DAY * SECOND
        assert rig.rtc.time == EPOCH + 366 * DAY

    def test_set_holds_the_time(self, rig: Rig) -> None:
        rig.put(B, SET | UIE | H24)
        assert rig.get(B) == SET | H24, "and clears the update interrupt"
        rig.host = 5 * SECOND + SECOND // 2
        assert rig.get(SEC) == 0x50
        assert not rig.get(A) & UIP
        rig.put(B, H24)
        rig.host = 6 * SECOND
        assert rig.get(SEC) == 0x51, "the divider went on"

    def test_a_released_divider_updates_after_half_a_second(self, rig: Rig) -> None:
        rig.put(A, 0x76)
        rig.host = 5 * SECOND
        assert rig.get(SEC) == 0x50
        rig.put(A, 0x26)
        rig.host = 5 * SECOND + SECOND // 2 - 1
        assert rig.get(SEC) == 0x50
        rig.host += 1
        assert rig.get(SEC) == 0x51
        rig.host += SECOND
        assert rig.get(SEC) == 0x52

    def test_update_in_progress_warns(self, rig: Rig) -> None:
        seen = {}
        for ahead in (3000, 2229, 2228, 1984, 1, 0):
            rig.host = 7 * SECOND - ahead * 1000
            seen[ahead] = (bool(rig.get(A) & UIP), rig.get(SEC))
        assert seen == {
            3000: (False, 0x56),
            2229: (False, 0x56),
            2228: (True, 0x56),
            1984: (True, 0x56),
            1: (True, 0x56),
            0: (False, 0x57),
        }


class TestFlags:
    def test_update_ended(self, rig: Rig) -> None:
        rig.put(A, 0x20)
        rig.put(B, UIE | H24)
        rig.run(SECOND - 1)
        assert not rig.irq()
        rig.run(SECOND)
        assert rig.irq()
        rig.run(9 * SECOND)
        assert rig.line.rises == 1, "one interrupt until it is acknowledged"
        assert rig.get(C) == IRQF | UF
        assert not rig.irq()
        assert rig.get(C) == 0
        rig.run(10 * SECOND)
        assert rig.line.rises == 2

    def test_flags_come_without_interrupts_too(self, rig: Rig) -> None:
        for register, value in ((SEC_ALARM, 0x55), (MIN_ALARM, 0xC0), (HOUR_ALARM, 0xFF)):
            rig.put(register, value)
        rig.host = 6 * SECOND
        assert rig.get(C) == PF | AF | UF
        assert rig.line.rises == 0
        rig.host = 6 * SECOND + 1
        assert rig.get(C) == 0

    def test_enabling_an_interrupt_that_is_due(self, rig: Rig) -> None:
        rig.host = SECOND
        rig.put(B, UIE | H24)
        assert rig.irq()
        rig.put(B, H24)
        assert not rig.irq()

    @pytest.mark.parametrize(
        ("alarm", "rings_after"),
        [
            ((0x23, 0x59, 0x55), [5, DAY + 5]),
            ((0xFF, 0xFF, 0x00), [10, 70, 130]),
            ((0xFF, 0x30, 0x00), [1810, 5410]),
            ((0x12, 0xC0, 0xC0), [43210, 43211]),
            ((0xFF, 0xFF, 0xFF), [1, 2, 3]),
            ((0x23, 0x59, 0x7F), []),  # no such second
            ((0x24, 0x00, 0x00), []),
        ],
    )
    def test_alarm(self, rig: Rig, alarm: tuple[int, int, int], rings_after: list[int]) -> None:
        for register, value in zip((HOUR_ALARM, MIN_ALARM, SEC_ALARM), alarm, strict=True):
            rig.put(register, value)
        rig.put(A, 0x20)
        rig.put(B, AIE | H24)
        for seconds in rings_after:
            assert rig.clock.next_deadline(0) == seconds * SECOND
            rig.run(seconds * SECOND)
            assert rig.irq()
            assert rig.get(C) == IRQF | AF | UF
        if not rings_after:
            assert rig.clock.next_deadline(0) is None

    def test_alarm_in_12_hours(self, rig: Rig) -> None:
        rig.put(B, SET | AIE)
        for register, value in ((HOUR, 0x11), (MIN, 0x59), (SEC, 0x58)):
            rig.put(register, value)
        for register, value in ((HOUR_ALARM, 0x92), (MIN_ALARM, 0), (SEC_ALARM, 0)):
            rig.put(register, value)
        rig.put(B, AIE)
        assert rig.clock.next_deadline(0) == 2 * SECOND
        rig.put(HOUR_ALARM, 0x12)
        assert rig.clock.next_deadline(0) == 2 * SECOND + DAY // 2 * SECOND

    def test_no_alarm_while_the_clock_is_held(self, rig: Rig) -> None:
        rig.put(B, SET | AIE | H24)
        assert rig.clock.next_deadline(0) is None
        rig.put(B, AIE | H24)
        assert rig.clock.next_deadline(0) is not None
        rig.put(A, 0x66)
        assert rig.clock.next_deadline(0) is None

    @pytest.mark.parametrize(
        ("rate", "hz"),
        [(1, 256), (2, 128), (3, 8192), (4, 4096), (6, 1024), (10, 64), (13, 8), (15, 2)],
    )
    def test_periodic_rates(self, rig: Rig, rate: int, hz: int) -> None:
        rig.put(A, 0x20 | rate)
        rig.put(B, PIE | H24)
        count = 0
        while rig.clock.next_deadline(0) is not None and count < hz:
            rig.run(rig.clock.next_deadline(0) or 0)
            assert rig.get(C) & PF
            count += 1
        assert (count, rig.clock.now()) == (hz, SECOND)
        assert rig.rtc.missed == 0

    def test_rate_0_is_none(self, rig: Rig) -> None:
        rig.put(A, 0x20)
        rig.put(B, PIE | H24)
        assert rig.clock.next_deadline(0) is None

    def test_periodic_interrupts_that_are_not_taken_are_counted(self, rig: Rig) -> None:
        rig.put(A, 0x26)
        rig.put(B, PIE | H24)
        rig.run(SECOND // 2)
        assert rig.line.rises == 1
        rig.get(C)
        assert rig.rtc.missed == 511
        rig.host = SECOND
        rig.clock.run_due(0)
        rig.get(C)
        assert (rig.line.rises, rig.rtc.missed) == (2, 1022)

    def test_reset_keeps_the_time_and_the_ram(self, rig: Rig) -> None:
        rig.put(0x40, 0x55)
        rig.put(B, PIE | AIE | UIE | SQWE | BINARY | H24 | DSE)
        rig.run(SECOND)
        assert rig.irq()
        rig.rtc.reset()
        assert not rig.irq()
        assert (rig.get(B), rig.get(C), rig.get(0x40)) == (BINARY | H24 | DSE, 0, 0x55)
        assert rig.clock.next_deadline(0) is None


def test_the_other_registers_are_ram(rig: Rig) -> None:
    for register in set(range(14, 128)) - {CENTURY}:
        rig.put(register, register ^ 0xFF)
    rig.host = 400 * DAY * SECOND
    for register in set(range(14, 128)) - {CENTURY}:
        assert rig.get(register) == rig.rtc.nvram[register] == register ^ 0xFF


def test_read_only_bits(rig: Rig) -> None:
    rig.put(A, 0xFF)
    rig.put(C, 0xFF)
    rig.put(D, 0x00)
    assert (rig.get(A), rig.get(C), rig.get(D)) == (0x7F, 0x00, 0x80)


def test_the_nmi_mask(rig: Rig) -> None:
    rig.put(0x40, 0x12)
    assert not rig.nmi_masked()
    assert rig.get(0x80 | 0x40) == 0x12
    assert rig.nmi_masked()
    rig.rtc.reset()
    assert not rig.nmi_masked()


def test_a_word_to_the_index_is_index_and_data(rig: Rig) -> None:
    rig.bus.write(Space.PIO, 0x70, 2, 0x5540)
    assert rig.get(0x40) == 0x55


FORMATS = st.builds(Format, st.booleans(), st.sampled_from([12, 24]))
MOMENTS = st.integers(-62_135_596_800, 253_402_300_799)  # the years that datetime knows


@given(FORMATS, MOMENTS)
def test_every_time_can_be_shown_and_understood(form: Format, moment: int) -> None:
    registers = dict(form.registers(moment))
    assert form.time([registers.get(at, 0) for at in range(128)]) == moment
    shown = dt.datetime(1970, 1, 1, tzinfo=UTC) + dt.timedelta(seconds=moment)
    assert [form.number(registers[at]) for at in (MDAY, MONTH, YEAR, CENTURY)] == [
        shown.day,
        shown.month,
        shown.year % 100,
        shown.year // 100,
    ]


@given(st.integers(-1_000_000, 4_000_000))
def test_days_and_dates(number: int) -> None:
    assert days(*civil(number)) == number
    assert civil(number) < civil(number + 1)


@given(FORMATS, st.integers(0, DAY - 1), *[st.one_of(st.just(0xC7), st.integers(0, 0xBF))] * 3)
def test_the_alarm_rings_when_the_bytes_match(
    form: Format, start: int, hour: int, minute: int, second: int
) -> None:
    registers = [0] * 128
    registers[HOUR_ALARM], registers[MIN_ALARM], registers[SEC_ALARM] = hour, minute, second

    def matches(moment: int) -> bool:
        shown = dict(form.registers(moment))
        pairs = ((hour, HOUR), (minute, MIN), (second, SEC))
        return all(wanted >= 0xC0 or shown[at] == wanted for wanted, at in pairs)

    alarm = form.alarm(registers)
    if alarm is None:
        assert not any(matches(moment) for moment in range(start, start + DAY, 61))
        return
    after = until_alarm(start, alarm)
    assert 1 <= after <= DAY
    assert matches(start + after)
    assert not any(matches(start + step) for step in range(max(1, after - 100), after))


def part_of_time(end: int) -> st.SearchStrategy[int | None]:
    """An alarm's hour, minute or second below `end`, its edges often; None for any."""
    return st.none() | st.sampled_from([0, end - 1]) | st.integers(0, end - 1)


@settings(max_examples=300)
@given(
    st.sampled_from([0, 1, 3599, 3600, 43_199, 86_398, 86_399]) | st.integers(0, 3 * DAY),
    part_of_time(24),
    part_of_time(60),
    part_of_time(60),
)
def test_the_next_alarm(
    start: int, hour: int | None, minute: int | None, second: int | None
) -> None:
    """The nearest of all the moments of a day that match."""
    moments = (
        3600 * h + 60 * m + s
        for h in (range(24) if hour is None else [hour])
        for m in (range(60) if minute is None else [minute])
        for s in (range(60) if second is None else [second])
    )
    first = min((moment - start - 1) % DAY + 1 for moment in moments)
    assert until_alarm(start, Alarm(hour, minute, second)) == first


@given(
    st.floats(-1e11, 1e12),
    st.lists(
        st.tuples(
            st.one_of(st.integers(0, 13), st.integers(0, 255)),
            st.one_of(st.none(), st.integers(0, 255)),
            st.one_of(st.integers(0, 3 * SECOND), st.integers(0, 1 << 60)),
            st.booleans(),
        ),
        max_size=40,
    ),
)
def test_whatever_a_guest_does(
    epoch: float, steps: list[tuple[int, int | None, int, bool]]
) -> None:
    rig = Rig(epoch)
    for register, value, pause, polls in steps:
        if value is None:
            assert 0 <= rig.get(register) <= 0xFF
        else:
            rig.put(register, value)
        rig.host = min(rig.host + pause, 1 << 61)
        if polls:
            assert rig.clock.run_due(0) <= 1
        when = rig.clock.next_deadline(0)
        assert when is None or not rig.irq(), "nothing to wait for until it is acknowledged"
    if rig.clock.next_deadline(0) is not None:
        rig.run(rig.clock.next_deadline(0) or 0)
        assert rig.irq(), "a deadline is an interrupt"
    was = rig.irq()
    assert bool(rig.get(C) & IRQF) == was
    assert not rig.irq()
    assert str(rig.rtc)


@given(st.lists(st.integers(0, 3 * SECOND), max_size=12))
def test_looking_in_between_changes_nothing(looks: list[int]) -> None:
    watched, left_alone = Rig(), Rig()
    for rig in (watched, left_alone):
        rig.put(SEC_ALARM, 0x53)
        rig.put(MIN_ALARM, 0xFF)
        rig.put(HOUR_ALARM, 0xFF)
    for look in sorted(looks):
        watched.host = look
        watched.get(SEC)
    for rig in (watched, left_alone):
        rig.host = 3 * SECOND
    assert watched.get(C) == left_alone.get(C)
    assert watched.rtc.nvram == left_alone.rtc.nvram
