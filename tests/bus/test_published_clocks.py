"""Timers and clocks that C answers for, beside those that Python answers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.clock import Clock
from pykvm.devices import pit
from pykvm.devices.hpet import CAPABILITIES, CONFIGURATION, COUNTER, ENABLE_CNF, Hpet
from pykvm.devices.pit import SECOND, Pit8254
from pykvm.devices.pm_timer import PM_TIMER_HZ, AcpiPmTimer
from pykvm.devices.rtc import Rtc146818
from support.front import Front
from support.lines import Line

if TYPE_CHECKING:
    pass


@pytest.mark.parametrize("bits", [24, 32])
@pytest.mark.parametrize(("offset", "size"), [(0, 4), (0, 2), (1, 1), (2, 2), (3, 1)])
def test_a_pm_timer(bits: int, offset: int, size: int) -> None:
    clock = Clock("warp")
    clock.start()
    timer = AcpiPmTimer(clock, bits=bits)
    front = ticking(timer, 4, clock)
    for _ in range(20):
        clock.warp_to(clock.now() + 987_654_321)
        shift, ones = 8 * offset, (1 << 8 * size) - 1
        before = clock.now()
        value = front.read(offset, size)
        after = clock.now()
        ticks = range(before * PM_TIMER_HZ // 10**9, after * PM_TIMER_HZ // 10**9 + 1)
        assert value in {(tick & (1 << bits) - 1) >> shift & ones for tick in ticks}
    assert front.answered == 20


def ticking(device: Any, length: int, clock: Clock) -> Front:
    """`device` where C knows the time."""

    class Later:
        name = device.name
        read, write = device.read, device.write

    front = Front(Later(), length)
    front.dispatch.collected.follow(clock)
    front.bus.replace({device.name: device})
    front.dispatch.rebuild()
    front.device = device
    return front


class RtcSide:
    """A CMOS clock at a time that is moved by hand."""

    def __init__(self, published: bool) -> None:
        self.now = 0
        self.clock = Clock(host_now=lambda: self.now)
        self.line = Line()
        self.rtc = Rtc146818(self.clock, self.line, epoch=1_700_000_000)
        self.front = ticking(self.rtc, 2, self.clock) if published else None
        self.tell_time()

    def tell_time(self) -> None:
        if self.front:
            # As CLOCK_MONOTONIC would have it; a nanosecond there is a day here.
            self.front.dispatch.collected.set_time(time.monotonic_ns() - self.now)

    def step(self, kind: str, number: int, value: int) -> object:
        if kind == "in":
            self.tell_time()
            return self.front.read(number) if self.front else self.rtc.read(number, 1)
        if kind == "out":
            self.tell_time()
            if self.front:
                self.front.write(number, value)
            else:
                self.rtc.write(number, 1, value)
        elif kind == "host":
            self.rtc.nvram[number] = value
        else:
            self.now += number
            if self.front:
                self.front.dispatch.deliver()
            self.clock.run_due(0)
        if self.front:
            self.front.settle()
        return None


# Steps of time that are no multiple of anything, by a millisecond or more from what the chip does.
RTC_STEP = st.one_of(
    st.tuples(st.just("out"), st.just(0), st.sampled_from([*range(14), 0x32, 0x40, 0x8A])),
    st.tuples(st.just("in"), st.just(1), st.just(0)),
    st.tuples(st.just("in"), st.just(1), st.just(0)),
    st.tuples(st.just("in"), st.just(0), st.just(0)),
    st.tuples(st.just("out"), st.just(1), st.integers(0, 255)),
    st.tuples(st.just("host"), st.integers(14, 127), st.integers(0, 255)),
    st.tuples(st.just("time"), st.sampled_from([300_000_007, 1_300_000_007]), st.just(0)),
)


@given(st.lists(RTC_STEP, max_size=60))
def test_a_cmos_clock(steps: list[tuple[str, int, int]]) -> None:
    plain, published = RtcSide(False), RtcSide(True)
    # Without periodic flags: real time passes between two looks at it.
    for number, step in enumerate([("out", 0, 10), ("out", 1, 0x20), *steps]):
        if step[0] == "out" and step[1] == 1:
            step = (*step[:2], step[2] & 0x70 | 0x20 if plain.rtc._index == 10 else step[2])
        assert published.step(*step) == plain.step(*step), (number, step)
    assert published.front is not None
    published.front.dispatch.deliver()
    assert str(published.rtc) == str(plain.rtc)
    assert published.rtc.nvram == plain.rtc.nvram
    assert published.line.level == plain.line.level


def test_the_cmos_ram_needs_no_python_once_it_was_read() -> None:
    side = RtcSide(True)
    front = side.front
    assert front is not None
    side.rtc.nvram[0x40] = 7
    side.tell_time()
    for answered in (1, 3, 5):
        front.write(0, 0x40)
        assert front.read(1) == 7
        assert front.answered == answered
    side.rtc.nvram[0x40] = 8
    front.write(0, 0x40)
    assert front.read(1) == 8
    front.write(0, 0x41)
    front.write(1, 9)
    assert front.read(1) == 9
    assert side.rtc.nvram[0x41] == 9


class PitSide:
    """An 8254 of one pulse a second, at a time that is moved by hand."""

    def __init__(self, published: bool) -> None:
        # In the middle of a pulse: real time passes between two looks at it.
        self.now = SECOND // 2
        self.clock = Clock(host_now=lambda: self.now)
        self.now += SECOND // 2
        self.line = Line()
        self.pit = Pit8254(self.clock, self.line)
        self.front = ticking(self.pit, 4, self.clock) if published else None

    def step(self, kind: str, number: int, value: int) -> object:
        if self.front:
            since = self.clock.now()
            self.front.dispatch.collected.set_time(time.monotonic_ns() - since)
        if kind == "time":
            self.now += number * SECOND
            self.clock.run_due(0)
        elif kind == "gate":
            self.pit.set_gate(number, bool(value))
        elif kind == "reset":
            self.pit.reset()
        elif kind == "out":
            if self.front:
                self.front.write(number, value)
            else:
                self.pit.write(number, 1, value)
        elif self.front:
            return self.front.read(number)
        else:
            return self.pit.read(number, 1)
        return self.pit.out(2)


def program(control: int, low: int, high: int) -> list[tuple[str, int, int]]:
    """A control word and a count, and a pulse more that loads it."""
    counter = control >> 6
    return [("out", 3, control), ("out", counter, low), ("out", counter, high), ("time", 1, 0)]


# Counts that a second's worth of interrupts, here at least one, does not hold up; and reads as
# guests do them, whole or broken off.
_LATCH = st.sampled_from([0x00, 0x0F, 0x80])
PIT_STEPS = st.one_of(
    st.builds(
        program,
        st.sampled_from([0x30, 0x34, 0x36, 0x38, 0xB0, 0xB4, 0xB6, 0x35, 0x14, 0x74]),
        st.sampled_from([0, 3, 100, 255]),
        st.sampled_from([0, 1, 255]),
    ),
    _LATCH.map(lambda byte: [("out", 3, byte), *[("in", byte >> 6, 0)] * 2]),
    _LATCH.map(lambda byte: [("out", 3, byte), *[("in", byte >> 6, 0)] * 3]),
    _LATCH.map(lambda byte: [("out", 3, byte), ("in", byte >> 6, 0)]),
    _LATCH.map(lambda byte: [("out", 3, byte)]),
    st.sampled_from([0, 0, 2]).map(lambda number: [("in", number, 0)]),
    st.integers(0, 255).map(lambda byte: [("out", 3, byte)]),
    st.integers(0, 255).map(lambda byte: [("out", 0, byte)]),
    st.sampled_from([1, 7, 300, 70_000]).map(lambda pulses: [("time", pulses, 0)]),
    st.integers(0, 1).map(lambda level: [("gate", 2, level)]),
    st.just([("reset", 0, 0)]),
)


@given(st.lists(PIT_STEPS, max_size=40))
def test_an_8254(groups: list[list[tuple[str, int, int]]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pit, "PIT_HZ", 1)
        plain, published = PitSide(False), PitSide(True)
        for number, step in enumerate(step for group in groups for step in group):
            assert published.step(*step) == plain.step(*step), (number, step)
        # What C holds is what the device holds.
        for number in range(3):
            assert published.pit.read(number, 1) == plain.pit.read(number, 1)
        assert str(published.pit) == str(plain.pit)
        assert published.line.rises == plain.line.rises


def test_latch_and_reads_of_an_8254_need_no_python_once_it_was_read() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pit, "PIT_HZ", 1)
        side = PitSide(True)
        front = side.front
        assert front is not None
        cycle = [("out", 3, 0), ("in", 0, 0), ("in", 0, 0)]
        for step in [*program(0x34, 100, 1), *cycle]:
            side.step(*step)
        front.answered = 0
        said = []
        for _ in range(3):
            side.step("time", 100, 0)
            said += [side.step(*step) for step in cycle]
        assert front.answered == 9
        counts = [said[at] + 256 * said[at + 1] for at in (1, 4, 7)]  # type: ignore[operator]
        assert counts == [256, 156, 56]
        # Counter 2 was not read, and is asked for.
        front.answered = 0
        side.step("in", 2, 0)
        assert front.answered == 0


@pytest.mark.parametrize("reads", [0, 1])
def test_what_c_has_latched_of_an_8254_stays_when_the_device_is_asked(reads: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pit, "PIT_HZ", 1)
        side = PitSide(True)
        assert side.front is not None
        for step in [*program(0x34, 0, 0), ("time", 6, 0), ("in", 0, 0), ("in", 0, 0)]:
            side.step(*step)
        side.front.answered = 0
        side.step("out", 3, 0)
        for _ in range(reads):
            side.step("in", 0, 0)
        assert side.front.answered == 1 + reads
        side.step("time", 1000, 0)
        side.step("out", 3, 0x80)
        assert [side.step("in", 0, 0) for _ in range(2 - reads)] == [0xFA, 0xFF][reads:]


def test_an_8254_whose_time_stands_still_is_asked() -> None:
    clock = Clock("paused")
    timer = Pit8254(clock)
    front = ticking(timer, 4, clock)
    clock.start()
    for offset, value in ((3, 0x34), (0, 0), (0, 0)):
        front.write(offset, value)
    clock.stop()
    time.sleep(1e-5)
    clock.start()
    front.read(0), front.read(0)
    front.answered = 0
    front.write(3, 0)
    clock.stop()
    assert front.answered == 1
    # What was latched needs no time; the next count does.
    front.read(0), front.read(0)
    assert front.answered == 3
    front.write(3, 0)
    assert front.read(0) | front.read(0) << 8 == timer.channels[0].value
    assert front.answered == 3


def test_a_timer_by_another_clock_is_asked() -> None:
    clock = Clock()
    front = ticking(AcpiPmTimer(clock), 4, Clock("warp"))
    front.read(0, 4)
    assert front.answered == 0


def test_the_hpets_counter() -> None:
    clock = Clock("warp")
    clock.start()
    hpet = Hpet(clock)
    front = ticking(hpet, 0x400, clock)
    front.write(COUNTER, 0x1_2345_6789, 8)
    assert front.read(COUNTER, 8) == 0x1_2345_6789
    assert front.read(COUNTER + 4, 4) == 1
    assert front.read(CAPABILITIES, 8) == hpet.read(CAPABILITIES, 8)
    front.write(CONFIGURATION, ENABLE_CNF, 8)
    front.answered = 0
    for _ in range(20):
        clock.warp_to(clock.now() + 12_345_678_901)
        before, value, after = hpet.counter, front.read(COUNTER, 8), hpet.counter
        assert before <= value <= after
    assert front.answered == 20
    front.write(CONFIGURATION, 0, 8)
    stopped = hpet.counter
    clock.warp_to(clock.now() + 1)
    assert front.read(COUNTER, 4) == stopped & 0xFFFFFFFF
