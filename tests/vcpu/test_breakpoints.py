"""Breakpoints and steps of the host's: they end a run, and the next goes on past them."""

from __future__ import annotations

import pytest

from pykvm import Outcome, RunStopped
from pykvm.exits import Debug
from support.debugging import BREAKPOINTS, STEPS
from support.guest import MakeGuest

pytestmark = pytest.mark.kvm

# 7c00 (an address a line) counts in BX, and ends with that count after three rounds.
COUNT = """
    43           inc bx
    90           nop
    80 FB 03     cmp bl, 3
    75 F9        jne 0x7c00
    88 D8        mov al, bl
    E6 F4        out 0xf4, al
"""
INC, NOP, CMP, MOV = 0x7C00, 0x7C01, 0x7C02, 0x7C07


@pytest.mark.parametrize("quirks", ["on", "off"])
@pytest.mark.needs_host(BREAKPOINTS)
def test_a_breakpoint_in_a_loop_is_met_once_a_round(guest: MakeGuest, quirks: str) -> None:
    machine = guest(COUNT, quirks=quirks)
    cpu = machine.vcpus[0]
    cpu.debug.set_breakpoints("test", [NOP])
    for count in (1, 2, 3):
        result = machine.run(timeout=10)
        assert result.outcome is Outcome.DEBUG
        assert (cpu.regs.rip, cpu.regs.rbx) == (NOP, count)
        assert isinstance(result.exit, Debug)
        assert result.sentence == "a breakpoint stopped the guest at 0x7c01"
    with pytest.raises(RunStopped, match="a breakpoint stopped the guest"):
        result.check()
    assert machine.run(timeout=10).exit_code == 3


@pytest.mark.needs_host(BREAKPOINTS)
def test_a_breakpoint_where_the_guest_starts(guest: MakeGuest) -> None:
    machine = guest(COUNT)
    machine.vcpus[0].debug.set_breakpoints("test", [INC])
    # It has not been met yet, wherever the vCPU stands.
    assert machine.run(timeout=10).outcome is Outcome.DEBUG
    assert machine.vcpus[0].regs.rbx == 0
    assert machine.run(timeout=10).outcome is Outcome.DEBUG
    assert machine.vcpus[0].regs.rbx == 1


@pytest.mark.needs_host(BREAKPOINTS)
def test_breakpoints_on_two_instructions_in_a_row(guest: MakeGuest) -> None:
    machine = guest(COUNT)
    cpu = machine.vcpus[0]
    cpu.debug.set_breakpoints("test", [NOP, CMP])
    where = []
    while machine.run(timeout=10).outcome is Outcome.DEBUG:
        where.append(cpu.regs.rip)
    assert where == [NOP, CMP] * 3


@pytest.mark.needs_host(BREAKPOINTS)
def test_setting_rip_back_meets_a_breakpoint_again(guest: MakeGuest) -> None:
    machine = guest(COUNT)
    cpu = machine.vcpus[0]
    cpu.debug.set_breakpoints("test", [NOP])
    assert machine.run(timeout=10).outcome is Outcome.DEBUG
    cpu.regs.rip = INC
    assert machine.run(timeout=10).outcome is Outcome.DEBUG
    assert (cpu.regs.rip, cpu.regs.rbx) == (NOP, 2)


@pytest.mark.needs_host(BREAKPOINTS, STEPS)
def test_a_step_at_a_time(guest: MakeGuest) -> None:
    machine = guest(COUNT)
    cpu = machine.vcpus[0]
    cpu.debug.single_step(True)
    # The breakpoint that a step comes to has been met.
    cpu.debug.set_breakpoints("test", [NOP])
    result = machine.run(timeout=10)
    assert result.outcome is Outcome.DEBUG
    assert cpu.regs.rip == NOP
    result = machine.run(timeout=10)
    assert result.sentence == "a single step stopped the guest at 0x7c02"
    cpu.debug.single_step(False)
    assert machine.run(timeout=10).outcome is Outcome.DEBUG
    assert (cpu.regs.rip, cpu.regs.rbx) == (NOP, 2)


@pytest.mark.needs_host(STEPS)
def test_a_step_starts_at_registers_that_were_just_set(guest: MakeGuest) -> None:
    """KVM keeps where a step starts, and drops it if RIP is another by the time it runs."""
    machine = guest(COUNT)
    cpu = machine.vcpus[0]
    cpu.regs.rip = NOP
    cpu.debug.single_step(True)
    assert cpu.kvm.get_regs().rip == NOP
    assert machine.run(timeout=10).outcome is Outcome.DEBUG
    assert cpu.regs.rip == NOP + 1
    cpu.regs.rip = INC
    result = machine.run(timeout=10)
    assert (result.outcome, cpu.regs.rip) == (Outcome.DEBUG, NOP)


@pytest.mark.needs_host(BREAKPOINTS)
def test_the_sentence_names_the_symbol_of_a_breakpoint(guests: object) -> None:
    from pykvm import Machine

    with Machine(f"{guests}/hello.elf") as machine:
        machine.vcpus[0].debug.set_breakpoints("test", [machine.symbols["main"]])
        result = machine.run(timeout=10)
        assert result.sentence.endswith(f"at {machine.symbols['main']:#x} (main)")
        assert machine.run(timeout=10).ok
