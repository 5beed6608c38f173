"""The 8254 on its board: ports, interrupts that come late, port 0x61."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.bus import Bus, Space
from pykvm.clock import Clock, ticks_at, time_of
from pykvm.devices.pit import PIT_HZ, SHORTEST, Pit8254
from pykvm.devices.port61 import REFRESH_NS, Port61
from support.lines import Lines

MS = 1_000_000
SECOND = 1_000_000_000

# Control words.
ONE_SHOT, RATE, SQUARE = 0x30, 0x34, 0x36
CHANNEL_2 = 0x80


class Rig:
    """A timer, port 0x61 and a host clock that is moved by hand."""

    def __init__(self) -> None:
        self.host = 0
        self.clock = Clock(host_now=lambda: self.host)
        self.lines = Lines(self.clock)
        self.line = self.lines[0]
        self.pit = Pit8254(self.clock, self.line)
        self.bus = Bus()
        self.bus.add_pio(0x40, 4, self.pit)
        self.bus.add_pio(0x61, 1, Port61(self.clock, self.pit))

    @property
    def rises(self) -> list[int]:
        """The guest times at which the line rose."""
        return self.lines.times()

    def inb(self, port: int) -> int:
        value = self.bus.read(Space.PIO, port, 1)
        assert value is not None
        return value

    def out(self, port: int, *values: int) -> None:
        for value in values:
            self.bus.write(Space.PIO, port, 1, value)

    def start(self, control: int, count: int) -> None:
        self.out(0x43, control)
        self.out(0x40 + (control >> 6), count & 0xFF, count >> 8)

    def count(self, channel: int = 0) -> int:
        self.out(0x43, channel << 6)
        low = self.inb(0x40 + channel)
        return low | self.inb(0x40 + channel) << 8

    def status(self, channel: int = 0) -> int:
        self.out(0x43, 0xE0 | 2 << channel)
        return self.inb(0x40 + channel)

    def run(self, until: int, *, late: int = 0) -> None:
        """Pass the time, `late` nanoseconds behind every deadline."""
        while (when := self.clock.next_deadline(0)) is not None and when + late <= until:
            self.host = max(self.host, when + late)
            self.clock.run_due(0)
        self.host = until


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_nothing_happens_before_it_is_programmed(rig: Rig) -> None:
    assert rig.clock.next_deadline(0) is None
    assert [rig.status(channel) & 0xC0 for channel in range(3)] == [0xC0] * 3
    rig.run(10 * SECOND)
    assert rig.rises == []


def test_the_control_word_cannot_be_read(rig: Rig) -> None:
    assert rig.inb(0x43) == 0xFF


def test_each_channel_has_its_port(rig: Rig) -> None:
    for channel in range(3):
        rig.start(RATE | channel << 6, 1000 * (channel + 1))
    rig.host = time_of(1, PIT_HZ)
    assert [rig.count(channel) for channel in range(3)] == [1000, 2000, 3000]


def test_wide_accesses_are_byte_accesses(rig: Rig) -> None:
    rig.bus.write(Space.PIO, 0x42, 2, 0xB400)  # channel 2's count is lost, then its control word
    rig.out(0x42, 0x34, 0x12)
    rig.host = time_of(1, PIT_HZ)
    assert rig.count(2) == 0x1234


def test_the_count_follows_time(rig: Rig) -> None:
    rig.start(RATE, 10_000)
    for now in (1 * MS, 5 * MS, 60 * MS, 3600 * SECOND):
        rig.host = now
        assert rig.count() == 10_000 - (ticks_at(now, PIT_HZ) - 1) % 10_000


def test_read_back_latches_what_it_names(rig: Rig) -> None:
    for channel in range(3):
        rig.start(RATE | channel << 6, 1000)
    rig.host = time_of(11, PIT_HZ)
    rig.out(0x43, 0xC0 | 0x20 | 0b0010)  # the status of channel 0
    rig.out(0x43, 0xC0 | 0x10 | 0b0100)  # the count of channel 1
    rig.host = time_of(101, PIT_HZ)
    assert rig.inb(0x40) == 0xB4, "OUT, both bytes, mode 2"
    assert rig.inb(0x40) | rig.inb(0x40) << 8 == 900
    assert rig.inb(0x41) | rig.inb(0x41) << 8 == 990
    rig.out(0x43, 0xC0 | 0b1000)  # both of channel 2, whose gate is low
    assert rig.inb(0x42) == 0xB4
    assert rig.inb(0x42) | rig.inb(0x42) << 8 == 1000


class TestInterrupts:
    def test_one_shot(self, rig: Rig) -> None:
        rig.start(ONE_SHOT, 1193)
        rig.run(SECOND)
        assert rig.rises == [time_of(1194, PIT_HZ)]
        assert rig.clock.next_deadline(0) is None
        rig.out(0x40, 0xA9)
        assert not rig.line.level, "OUT falls with the first byte"
        rig.out(0x40, 0x04)
        rig.run(2 * SECOND)
        assert len(rig.rises) == 2

    @pytest.mark.parametrize("control", [RATE, SQUARE])
    def test_periodic_does_not_drift(self, rig: Rig, control: int) -> None:
        rig.start(control, 1193)
        rig.run(10 * SECOND)
        assert rig.rises == [
            time_of(1 + 1193 * (n + 1), PIT_HZ) for n in range((10 * PIT_HZ - 1) // 1193)
        ]
        assert rig.pit.missed == 0

    def test_lateness_does_not_add_up(self, rig: Rig) -> None:
        rig.start(RATE, 1193)
        rig.run(10 * SECOND, late=400_000)
        assert len(rig.rises) == (10 * PIT_HZ - 1 - 1193) // 1193 + 1
        assert rig.pit.missed == 0

    def test_what_was_late_is_made_up_for_at_twice_the_rate(self, rig: Rig) -> None:
        rig.start(RATE, 1193)
        rig.run(5 * MS + MS // 2)
        rig.run(20 * MS + MS // 2, late=15 * MS)  # one stall
        rig.run(60 * MS + MS // 2)
        assert len(rig.rises) == 60
        gaps = [b - a for a, b in zip(rig.rises[6:], rig.rises[7:], strict=False)]
        assert min(gaps) >= time_of(1193, PIT_HZ) // 2
        assert rig.pit.missed == 0

    def test_only_a_second_is_made_up_for(self, rig: Rig) -> None:
        rig.start(RATE, 1193)
        rig.host = 10 * SECOND
        rig.clock.run_due(0)
        rig.run(20 * SECOND)
        expected = (20 * PIT_HZ - 1) // 1193
        assert len(rig.rises) + rig.pit.missed == expected
        assert 8990 <= rig.pit.missed <= 9010

    @pytest.mark.parametrize("count", [1, 2, 10, 59])
    def test_no_storms(self, rig: Rig, count: int) -> None:
        rig.start(RATE, count)
        rig.run(SECOND // 10)
        gaps = [b - a for a, b in zip(rig.rises, rig.rises[1:], strict=False)]
        assert min(gaps) >= SHORTEST
        assert len(rig.rises) == pytest.approx(SECOND // 10 / SHORTEST, abs=2)

    def test_a_new_control_word_forgets_what_is_owed(self, rig: Rig) -> None:
        rig.start(RATE, 1193)
        rig.host = 5 * MS + MS // 2
        rig.start(ONE_SHOT, 1193)
        assert len(rig.rises) == 1, "one has reached the controller"
        assert rig.pit.missed == 4
        rig.run(SECOND)
        assert len(rig.rises) == 2

    def test_a_one_shot_that_is_over_is_not_lost_by_the_next(self, rig: Rig) -> None:
        rig.start(ONE_SHOT, 1193)
        rig.host = 5 * MS
        rig.out(0x40, 0xA9, 0x04)
        assert len(rig.rises) == 1
        rig.run(SECOND)
        assert len(rig.rises) == 2
        assert rig.pit.missed == 0

    def test_out_rises_when_the_mode_changes(self, rig: Rig) -> None:
        rig.start(ONE_SHOT, 0)
        assert not rig.line.level
        rig.out(0x43, RATE)
        assert rig.line.level

    @pytest.mark.parametrize("mode", [1, 5])
    def test_channel_0_has_no_trigger(self, rig: Rig, mode: int) -> None:
        rig.start(0x30 | mode << 1, 100)
        rig.run(SECOND)
        assert rig.rises == []

    def test_software_strobe(self, rig: Rig) -> None:
        rig.start(0x38, 100)
        rig.run(SECOND)
        assert rig.rises == [time_of(102, PIT_HZ)]

    def test_the_other_channels_do_not_interrupt(self, rig: Rig) -> None:
        rig.start(0x74, 100)
        rig.start(0xB4, 100)
        assert rig.clock.next_deadline(0) is None

    def test_reset(self, rig: Rig) -> None:
        rig.start(RATE, 1193)
        rig.run(SECOND)
        rig.pit.reset()
        assert not rig.line.level
        assert rig.clock.next_deadline(0) is None
        assert rig.status() & 0xC0 == 0xC0


class TestPort61:
    def test_bits_read_back(self, rig: Rig) -> None:
        rig.out(0x61, 0xFF)
        assert rig.inb(0x61) & 0xCF == 0x0F

    def test_channel_2_measures_a_time(self, rig: Rig) -> None:
        """As kernels calibrate their TSC: one-shot, gate, wait for bit 5."""
        rig.out(0x61, 0)
        rig.start(CHANNEL_2 | ONE_SHOT, 0xFFFF)
        assert not rig.inb(0x61) & 0x20
        rig.run(SECOND)
        assert not rig.inb(0x61) & 0x20, "the gate is closed"
        rig.out(0x61, 1)
        rig.host = SECOND + time_of(0xFFFF - 2, PIT_HZ)
        assert not rig.inb(0x61) & 0x20
        rig.host = SECOND + time_of(0xFFFF + 2, PIT_HZ)
        assert rig.inb(0x61) & 0x20

    def test_a_gate_triggers_a_one_shot(self, rig: Rig) -> None:
        rig.start(0xB2, 1000)
        assert rig.inb(0x61) & 0x20
        rig.out(0x61, 1)
        rig.host = time_of(2, PIT_HZ)
        assert not rig.inb(0x61) & 0x20
        rig.host = time_of(1002, PIT_HZ)
        assert rig.inb(0x61) & 0x20

    def test_refresh_toggles(self, rig: Rig) -> None:
        seen = []
        for _ in range(6):
            seen.append(bool(rig.inb(0x61) & 0x10))
            rig.host += REFRESH_NS
        assert seen == [False, True] * 3

    def test_speaker(self, rig: Rig) -> None:
        port = Port61(rig.clock, rig.pit)
        rig.start(CHANNEL_2 | SQUARE, 1193)
        rig.host = MS
        port.write(0, 1, 3)
        rig.host = 2 * MS
        rig.inb(0x42)
        assert port.speaker
        assert "speaker on" in str(port)
        port.reset()
        assert not port.speaker


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0x40, 0x40, 0x41, 0x42, 0x43, 0x43, 0x61]),
            st.one_of(st.none(), st.integers(0, 255)),
            st.one_of(st.integers(0, 5 * MS), st.integers(0, 1 << 62)),
            st.booleans(),
        ),
        max_size=60,
    )
)
def test_whatever_a_guest_does(
    steps: list[tuple[int, int | None, int, bool]],
) -> None:
    rig = Rig()
    for port, value, pause, polls in steps:
        if value is None:
            assert 0 <= rig.inb(port) <= 0xFF
        else:
            rig.out(port, value)
        rig.host = min(rig.host + pause, 1 << 61)
        if polls:
            assert rig.clock.run_due(0) <= 1, "a timer that is behind waits for its next turn"
        when = rig.clock.next_deadline(0)
        shown = rig.pit._shown
        assert shown <= rig.pit.channels[0].rises
        assert when is None or when >= rig.pit._shown_at + SHORTEST or shown == 0
    assert len(rig.rises) + rig.pit.missed == rig.pit._shown
    assert str(rig.pit).count("\n") == 3
