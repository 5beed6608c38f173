"""ACPI's PM1 registers: events, the power button, the timer's status, sleeping."""

from __future__ import annotations

from contextlib import suppress

import pytest
from clock.fake_host import Host
from hypothesis import given
from hypothesis import strategies as st

from pykvm.bus import GuestPowerOff
from pykvm.devices.acpi_pm import AcpiPm
from pykvm.devices.pm_timer import PM_TIMER_HZ
from support.attach import attach
from support.lines import Line

STATUS, ENABLE, CONTROL = 0, 2, 4
TMR, PWRBTN = 1 << 0, 1 << 8
SCI_EN, SLP_EN = 1 << 0, 1 << 13

#: The PM timer's bit 31 changes every 2**31 ticks: (ns, rounded up).
HALF = -(-(1 << 31) * 10**9 // PM_TIMER_HZ)


class TestEvents:
    def test_the_button_sets_its_status_until_a_one_is_written(self) -> None:
        pm = AcpiPm()
        pm.press_power_button()
        assert pm.read(STATUS, 2) == PWRBTN
        pm.write(STATUS, 2, 0xFFFF & ~PWRBTN)
        assert pm.read(STATUS, 2) == PWRBTN
        pm.write(STATUS, 2, PWRBTN)
        assert pm.read(STATUS, 2) == 0

    def test_the_line_is_high_while_an_enabled_event_is_there(self) -> None:
        pm, line = AcpiPm(), Line()
        attach(pm, line)
        pm.press_power_button()
        assert line.changes == [], "not enabled"
        pm.write(ENABLE, 2, PWRBTN)
        assert line.changes == [True]
        pm.press_power_button()
        assert line.changes == [True]
        pm.write(STATUS, 2, PWRBTN)
        assert line.changes == [True, False]
        pm.press_power_button()
        pm.write(ENABLE, 2, 0)
        assert line.changes == [True, False, True, False]

    def test_a_line_that_comes_late_learns_the_level(self) -> None:
        pm, line = AcpiPm(), Line()
        pm.write(ENABLE, 2, PWRBTN)
        pm.press_power_button()
        attach(pm, line)
        assert line.changes == [True]
        pm.reset()
        assert line.changes == [True, False]
        assert pm.read(0, 4) == 0

    def test_whether_the_button_would_interrupt(self) -> None:
        pm = AcpiPm()
        assert not pm.receives
        pm.write(ENABLE, 2, PWRBTN)
        assert pm.receives

    def test_undefined_bits_are_not_kept(self) -> None:
        pm = AcpiPm()
        pm.write(ENABLE, 2, 0xFFFF)
        assert pm.read(ENABLE, 2) == 0x0721

    def test_any_width_will_do(self) -> None:
        pm = AcpiPm()
        pm.press_power_button()
        pm.write(ENABLE + 1, 1, PWRBTN >> 8)
        assert pm.read(0, 4) == PWRBTN << 16 | PWRBTN
        assert [pm.read(at, 1) for at in range(6)] == [0, 1, 0, 1, SCI_EN, 0]
        pm.write(0, 4, PWRBTN)
        assert pm.read(0, 8) == SCI_EN << 32
        assert pm.read(6, 2) == 0xFFFF


class TestSleeping:
    @pytest.mark.parametrize(
        ("offset", "size", "value"), [(4, 2, 0x2000), (5, 1, 0x20), (4, 4, 0x2001), (4, 2, 0xE0FF)]
    )
    def test_s5_switches_off(self, offset: int, size: int, value: int) -> None:
        pm = AcpiPm()
        with pytest.raises(GuestPowerOff, match="ACPI S5"):
            pm.write(offset, size, value)
        assert pm.read(CONTROL, 2) & SLP_EN == 0

    @pytest.mark.parametrize("kind", range(1, 8))
    def test_there_is_no_other_state(self, kind: int) -> None:
        pm = AcpiPm()
        pm.write(CONTROL, 2, kind << 10 | SLP_EN)
        assert pm.read(CONTROL, 2) == kind << 10 | SCI_EN

    def test_the_type_alone_does_nothing_and_is_heeded_later(self) -> None:
        pm = AcpiPm()
        pm.write(CONTROL, 2, 0)
        pm.write(CONTROL, 2, 5 << 10)
        assert pm.read(CONTROL, 2) == 5 << 10 | SCI_EN
        pm.write(CONTROL + 1, 1, 0)
        with pytest.raises(GuestPowerOff):
            pm.write(CONTROL + 1, 1, SLP_EN >> 8)

    def test_acpi_cannot_be_switched_off(self) -> None:
        pm = AcpiPm()
        pm.write(CONTROL, 2, 0)
        assert pm.read(CONTROL, 2) == SCI_EN
        pm.write(CONTROL, 2, 0x0006)
        assert pm.read(CONTROL, 2) == 0x0003, "GBL_RLS reads 0"


class TestTimerStatus:
    def test_it_is_set_when_the_top_bit_changes(self) -> None:
        host, pm = Host(), AcpiPm()
        attach(pm, clock=host.clock())
        host.now += HALF - 1
        assert pm.read(STATUS, 2) == 0
        host.now += 1
        assert pm.read(STATUS, 2) == TMR
        pm.write(STATUS, 2, TMR)
        assert pm.read(STATUS, 2) == 0
        host.now += HALF
        assert pm.read(STATUS, 2) == TMR

    def test_writing_it_clears_what_was_there_up_to_then(self) -> None:
        host, pm = Host(), AcpiPm()
        attach(pm, clock=host.clock())
        host.now += HALF
        pm.write(STATUS, 2, TMR)
        assert pm.read(STATUS, 2) == 0

    def test_it_interrupts_in_time(self) -> None:
        host, pm, line = Host(), AcpiPm(), Line()
        clock = host.clock("warp")
        attach(pm, line, clock=clock)
        assert clock.next_deadline(0) is None
        pm.write(ENABLE, 2, TMR)
        for number in (1, 2, 3):
            deadline = clock.next_deadline(0)
            assert deadline == -(-(number << 31) * 10**9 // PM_TIMER_HZ)
            clock.warp_to(deadline)
            clock.run_due(0)
            assert line.changes == [True]
            assert clock.next_deadline(0) is None, "it has nothing to add"
            pm.write(STATUS, 2, TMR)
            assert line.changes.pop(0)
            assert line.changes.pop(0) is False
        pm.write(ENABLE, 2, 0)
        assert clock.next_deadline(0) is None

    def test_what_was_before_does_not_count(self) -> None:
        host, pm = Host(), AcpiPm()
        clock = host.clock()
        host.now += 3 * HALF
        attach(pm, clock=clock)
        assert pm.read(STATUS, 2) == 0


@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.sampled_from([1, 2, 4, 8]), st.integers(0, (1 << 64) - 1)),
        max_size=40,
    )
)
def test_the_line_says_what_the_registers_say(writes: list[tuple[int, int, int]]) -> None:
    host, pm, line = Host(), AcpiPm(), Line()
    clock = host.clock("warp")
    attach(pm, line, clock=clock)
    for offset, size, value in writes:
        pm.press_power_button()
        clock.warp_to(clock.now() + value % HALF)
        with suppress(GuestPowerOff):
            pm.write(offset, size, value & (1 << 8 * size) - 1)
        clock.run_due(0)
        high = bool(pm.read(STATUS, 2) & pm.read(ENABLE, 2))
        clock.run_due(0)
        assert (line.changes or [False])[-1] is high
    assert all(a is not b for a, b in zip(line.changes, line.changes[1:], strict=False))
