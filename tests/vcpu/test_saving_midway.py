"""A vCPU saved in the middle of something: an access half done, HLT, a run that has ended."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pykvm import Machine, Mode, Outcome, StateError
from pykvm.devices.post import PostPort
from pykvm.exits import Hlt, IoIn, IoOut
from support.guest import MakeGuest
from support.saving import (
    COUNTING,
    ECHO,
    EXIT_3,
    HALT,
    PORT,
    WAIT,
    Log,
    saved,
)

pytestmark = pytest.mark.kvm


def test_an_out_is_neither_repeated_nor_lost(
    logging: Callable[..., tuple[Machine, Log]], again: Callable[..., Machine]
) -> None:
    machine, log = logging(COUNTING)
    assert machine.run(until=lambda _: len(log.written) == 5, timeout=20).ok
    state = saved(machine)
    machine.run(until=lambda _: len(log.written) == 9, timeout=20)
    assert log.written == list(range(1, 10))

    other = again(machine, COUNTING)
    if other is not machine:
        log = Log()
        other.add(log, pio=PORT)
    for _ in range(3):
        del log.written[:]
        state.load(other)
        other.run(until=lambda _: len(log.written) >= 4, timeout=20)
        assert log.written == [6, 7, 8, 9]


def test_what_was_read_arrives(
    logging: Callable[..., tuple[Machine, Log]], again: Callable[..., Machine]
) -> None:
    machine, log = logging(ECHO)
    machine.run(until=lambda _: log.read_so_far == 3, timeout=20)
    state = saved(machine)
    assert log.written == [0, 1]

    other = again(machine, ECHO)
    if other is not machine:
        log = Log()
        other.add(log, pio=PORT)
    for _ in range(3):
        log.read_so_far, log.written = 3, []
        state.load(other)
        other.run(until=lambda _: len(log.written) >= 3, timeout=20)
        assert log.written == [2, 3, 4]


STRING = (
    """
    BE 00 10     mov si, 0x1000
    B9 08 00     mov cx, 8
    BA 90 00     mov dx, 0x90
    F3 6E        rep outsb
"""
    + EXIT_3
)


@pytest.mark.parametrize("written", range(1, 9))
def test_in_the_middle_of_a_string(
    logging: Callable[..., tuple[Machine, Log]], guest: MakeGuest, written: int
) -> None:
    machine, log = logging(STRING)
    machine.memory.write(0x1000, b"abcdefgh")
    machine.run(until=lambda _: len(log.written) >= written, timeout=20)
    state = saved(machine)
    so_far = len(log.written)
    other, rest = guest(STRING), Log()
    other.add(rest, pio=PORT)
    for _ in range(2):
        del rest.written[:]
        state.load(other)
        assert other.run(timeout=20).exit_code == 3
        assert bytes(log.written[:so_far] + rest.written) == b"abcdefgh"


TWICE = "FF 05 00 00 00 D0   inc dword [0xd0000000]" + EXIT_3


def test_an_instruction_with_two_accesses(guest: MakeGuest) -> None:
    """Between its read and its write there is no state: the write is carried out first."""
    machine = guest(TWICE, mode=Mode.PROTECTED)
    log = Log()
    machine.add(log, mmio=0xD0000000, length=4)
    machine.run(until=lambda _: log.read_so_far == 1, timeout=20)
    with pytest.raises(StateError, match="in the middle of an instruction"):
        machine.vcpus[0].save()
    assert log.written == []
    state = saved(machine)
    assert log.written == [1]

    twin, rest = guest(TWICE, mode=Mode.PROTECTED), Log()
    twin.add(rest, mmio=0xD0000000, length=4)
    for other in (machine, twin):
        state.load(other)
        assert other.run(timeout=20).exit_code == 3
    assert (log.written, rest.written) == ([1], [])


def has_posted(machine: Machine) -> bool:
    post = machine.devices["post"]
    assert isinstance(post, PostPort)
    return bool(post.history)


def test_a_run_that_ended_before_its_last_exit(guest: MakeGuest) -> None:
    """Posted writes come to their device first, and one of them ends the run."""
    listing = "E6 80        out 0x80, al" + COUNTING
    machine, log = guest(listing), Log()
    machine.add(log, pio=PORT)
    assert machine.run(until=has_posted, timeout=20).ok
    so_far = list(log.written)
    with pytest.raises(StateError, match="in the middle of an instruction"):
        machine.vcpus[0].save()
    state = saved(machine)
    assert log.written == [*so_far, 1]
    twin, rest = guest(listing), Log()
    twin.add(rest, pio=PORT)
    state.load(twin)
    twin.run(until=lambda _: len(rest.written) >= 2, timeout=20)
    assert rest.written[:2] == [2, 3]
    machine.run(until=lambda _: len(log.written) >= 3, timeout=20)
    assert log.written == [1, 2, 3]


def test_a_run_that_ended_before_it_saw_the_hlt(guest: MakeGuest) -> None:
    listing = "E6 80        out 0x80, al" + WAIT
    machine, twin = guest(listing), guest(listing)
    for each in (machine, twin):
        each.line(4)
    assert machine.run(until=has_posted, timeout=20).ok
    state = saved(machine)
    assert state.vcpus[0].halted
    for other in (twin, machine):
        state.load(other)
        assert other.run(timeout=0.1).outcome is Outcome.TIMEOUT


def test_an_exit_that_was_not_dealt_with(guest: MakeGuest) -> None:
    machine = guest(ECHO)
    exits = machine.exits(timeout=20)
    read = next(exits)
    assert isinstance(read, IoIn)
    with pytest.raises(StateError, match="IoIn.*has not been dealt with"):
        machine.vcpus[0].save()
    read.answer(7)
    state = machine.vcpus[0].save()
    assert next(exits) == IoOut(port=0x91, size=1, data=b"\7")
    with pytest.raises(StateError, match="IoOut.*has not been dealt with"):
        machine.vcpus[0].save()
    machine.vcpus[0].load(state)
    assert next(machine.exits(timeout=20)) == IoOut(port=0x91, size=1, data=b"\7")


def test_in_a_loop_by_hand(guest: MakeGuest) -> None:
    cpu = guest(ECHO).vcpus[0]
    exits = cpu.raw_exits()
    read = next(exits)
    assert isinstance(read, IoIn)
    with pytest.raises(StateError, match="waits for an answer"):
        cpu.save()
    read.answer(9)
    state = cpu.save()
    for _ in range(3):
        assert next(exits) == IoOut(port=0x91, size=1, data=b"\t")
        cpu.load(state)


def test_no_state_of_a_running_vcpu(guest: MakeGuest) -> None:
    machine = guest(COUNTING)
    state = machine.vcpus[0].save()

    class Asking(Log):
        def write(self, offset: int, size: int, value: int) -> None:
            with pytest.raises(StateError, match="vCPU 0 is running"):
                machine.vcpus[0].save()
            with pytest.raises(StateError, match="vCPU 0 is running"):
                machine.vcpus[0].load(state)
            self.written.append(value)

    log = Asking()
    machine.add(log, pio=PORT)
    assert machine.run(until=lambda _: bool(log.written), timeout=20).ok


def test_it_waits_in_hlt_on(guest: MakeGuest, again: Callable[..., Machine]) -> None:
    machine = guest(WAIT)
    machine.line(4)  # which could wake it
    assert machine.run(timeout=0.05).outcome is Outcome.TIMEOUT
    state = saved(machine)
    assert state.vcpus[0].halted

    other = again(machine, WAIT)
    other.line(4)
    for _ in range(2):
        state.load(other)
        result = other.run(timeout=0.1)
        assert result.outcome is Outcome.TIMEOUT
        assert result.exits == {}


def test_it_was_handed_the_hlt(guest: MakeGuest) -> None:
    machine = guest(WAIT)
    machine.line(4)
    assert next(machine.exits(timeout=20)) == Hlt()
    state = saved(machine)
    assert state.vcpus[0].halted
    twin = guest(WAIT)
    twin.line(4)
    state.load(twin)
    assert twin.run(timeout=0.1).outcome is Outcome.TIMEOUT


def test_one_that_is_past_hlt_goes_on(guest: MakeGuest) -> None:
    machine = guest(WAIT)
    machine.line(4)
    beginning = saved(machine)
    machine.run(timeout=0.05)
    beginning.load(machine)
    assert not machine.vcpus[0].loop.halted
    machine.vcpus[0].regs.rip += 2
    assert machine.run(timeout=20).exit_code == 3


def test_parked_vcpus_stay_parked_and_others_do_not(guest: MakeGuest) -> None:
    machine = guest(COUNTING, vcpus=2)
    state = saved(machine)
    assert [vcpu.parked for vcpu in state.vcpus] == [False, True]
    machine.vcpus[1].parked = False
    state.load(machine)
    assert machine.vcpus[1].parked


def test_a_vcpu_that_kvm_keeps_waiting(guest: MakeGuest) -> None:
    """Where local APICs are KVM's, parked and halted are states of its own."""
    machine = guest(HALT, irqchip="kernel", vcpus=2)
    assert machine.run(timeout=20).outcome is Outcome.HALTED
    state = saved(machine)
    assert [vcpu.mp_state for vcpu in state.vcpus] == [3, 1]
    twin = guest(HALT, irqchip="kernel", vcpus=2)
    state.load(twin)
    assert [cpu.kvm.get_mp_state() for cpu in twin.vcpus] == [3, 1]
