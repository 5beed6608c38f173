"""Breakpoints and single steps of several users, made into one KVM_SET_GUEST_DEBUG."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pykvm.errors import ConfigError
from pykvm.vcpu.guest_debug import GuestDebug

ENABLE, STEP, HARDWARE = 1, 2, 0x20000


class Recorder:
    """Keeps what KVM was told last, and counts how often."""

    def __init__(self) -> None:
        self.control = 0
        self.registers: list[int] = []
        self.calls = 0

    def set_guest_debug(self, control: int, debugreg: Sequence[int] = ()) -> None:
        self.control, self.registers = control, list(debugreg)
        self.calls += 1


@pytest.fixture
def kvm_told() -> Recorder:
    return Recorder()


@pytest.fixture
def debug(kvm_told: Recorder) -> GuestDebug:
    return GuestDebug(kvm_told)


def test_breakpoints_of_two_owners_stand_side_by_side(
    debug: GuestDebug, kvm_told: Recorder
) -> None:
    debug.set_breakpoints("one", [0x1000, 0x2000])
    debug.set_breakpoints("two", [0x3000])
    assert kvm_told.control == ENABLE | HARDWARE
    assert kvm_told.registers == [0x1000, 0x2000, 0x3000, 0, 0, 0, 0, 0x400 | 0b101010]
    debug.set_breakpoints("one", [])
    assert kvm_told.registers == [0x3000, 0, 0, 0, 0, 0, 0, 0x402]
    debug.set_breakpoints("two", [])
    assert (kvm_told.control, kvm_told.registers) == (0, [])


def test_one_place_wanted_by_two_takes_one_register(debug: GuestDebug, kvm_told: Recorder) -> None:
    debug.set_breakpoints("one", [0x1000])
    debug.set_breakpoints("two", [0x1000])
    assert kvm_told.registers == [0x1000, 0, 0, 0, 0, 0, 0, 0x402]
    debug.set_breakpoints("one", [])
    assert debug.addresses == (0x1000,)


def test_single_steps_leave_breakpoints_alone(debug: GuestDebug, kvm_told: Recorder) -> None:
    debug.set_breakpoints("one", [0x1000])
    debug.single_step(True)
    assert kvm_told.control == ENABLE | STEP | HARDWARE
    debug.single_step(False)
    assert kvm_told.control == ENABLE | HARDWARE
    assert kvm_told.registers[0] == 0x1000


def test_kvm_is_told_changes_only(debug: GuestDebug, kvm_told: Recorder) -> None:
    debug.single_step(False)
    debug.hide("unknown")
    assert kvm_told.calls == 0
    debug.set_breakpoints("one", [0x1000])
    debug.set_breakpoints("one", [0x1000])
    assert kvm_told.calls == 1


def test_a_fifth_breakpoint_is_refused_and_changes_nothing(
    debug: GuestDebug, kvm_told: Recorder
) -> None:
    debug.set_breakpoints("one", [1, 2, 3])
    with pytest.raises(ConfigError, match="5 breakpoints: a processor has 4"):
        debug.set_breakpoints("two", [4, 5])
    assert debug.addresses == (1, 2, 3)
    assert kvm_told.registers[:4] == [1, 2, 3, 0]


def test_hidden_ones_are_out_and_come_back(debug: GuestDebug, kvm_told: Recorder) -> None:
    debug.set_breakpoints("one", [0x1000])
    debug.set_breakpoints("two", [0x2000])
    debug.hide("one")
    assert debug.addresses == (0x2000,)
    debug.set_breakpoints("one", [0x1800])
    assert kvm_told.registers[:2] == [0x2000, 0]
    debug.hide()
    assert sorted(kvm_told.registers[:2]) == [0x1800, 0x2000]


def test_stepping_over_takes_every_breakpoint_out_for_one_step(
    debug: GuestDebug, kvm_told: Recorder
) -> None:
    debug.set_breakpoints("one", [0x1000])
    debug.step_over()
    assert (kvm_told.control, kvm_told.registers) == (ENABLE | STEP, [])
    assert debug.stepped()
    assert (kvm_told.control, kvm_told.registers[0]) == (ENABLE | HARDWARE, 0x1000)
    assert not debug.stepped()


def test_a_step_that_somebody_waits_for_is_not_swallowed(debug: GuestDebug) -> None:
    debug.single_step(True)
    debug.step_over()
    assert not debug.stepped()


def test_a_run_goes_on_past_the_breakpoint_that_has_ended_the_last(
    debug: GuestDebug, kvm_told: Recorder
) -> None:
    debug.set_breakpoints("me", [0x1000])
    debug.ended(0x1000)
    debug.begin(0x1000)
    assert kvm_told.control == ENABLE | STEP, "one instruction without breakpoints"
    assert debug.stepped()
    assert kvm_told.control == ENABLE | HARDWARE
    # Once: the next time that the guest comes there it is met.
    debug.begin(0x1000)
    assert kvm_told.control == ENABLE | HARDWARE


@pytest.mark.parametrize(("ended", "begun"), [(0x1000, 0x1001), (0x2000, 0x1000), (0x2000, 0x2000)])
def test_any_other_place_is_no_such_breakpoint(
    debug: GuestDebug, kvm_told: Recorder, ended: int, begun: int
) -> None:
    debug.set_breakpoints("me", [0x1000])
    debug.ended(ended)
    debug.set_breakpoints("me", [0x1000, 0x2000])
    debug.begin(begun)
    assert kvm_told.control == ENABLE | HARDWARE
