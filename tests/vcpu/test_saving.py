"""`CPU.save` and `CPU.load`: a vCPU in its own state again, or in that of another machine's."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from pykvm import Machine, Mode, Outcome
from pykvm.kvm import uapi
from pykvm.kvm.handle import name_of
from pykvm.values.state import decode, encode
from pykvm.vcpu import transfer
from pykvm.vcpu.saved import VcpuState
from support.debugging import BREAKPOINTS
from support.guest import MakeGuest
from support.interrupts import COUNT, VECTOR, count, put_handler
from support.irqchips import IRQCHIPS
from support.saving import (
    COUNTING,
    EXIT_3,
    FOUR_NOPS,
    HALT,
    IF,
    PORT,
    Log,
    differing,
    saved,
)

pytestmark = pytest.mark.kvm

ALL_IRQCHIPS = (*IRQCHIPS, "none")


@pytest.fixture(params=ALL_IRQCHIPS)
def chip(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.value)
def test_what_is_loaded_is_saved_again(guest: MakeGuest, mode: Mode, chip: str) -> None:
    machine = guest(EXIT_3, mode, irqchip=chip)
    beginning = machine.vcpus[0].save()
    assert machine.run(timeout=20).exit_code == 3
    end = machine.vcpus[0].save()
    twin = guest(EXIT_3, mode, irqchip=chip)

    for cpu in (machine.vcpus[0], twin.vcpus[0]):
        # Each of them twice: the second time part of it waits in the kvm_run page.
        for state in (beginning, end, beginning, beginning, end):
            cpu.load(state)
            assert not differing(cpu.save(), state)
    twin.vcpus[0].load(beginning)
    assert twin.run(timeout=20).exit_code == 3
    found = differing(twin.vcpus[0].save(), end)
    if chip in ("kernel", "split") and twin.clock.tsc_movable:
        # Their runs set the offset by the clock, and each machine has its own.
        found.pop("tsc_offset", None)
    assert not found


def test_registers_set_and_not_yet_taken_are_saved(guest: MakeGuest) -> None:
    cpu = guest(COUNTING).vcpus[0]
    cpu.regs.rbx = 0x1234
    cpu.regs.cr2 = 0x5678
    state = cpu.save()
    for _ in range(3):
        cpu.regs.rbx = cpu.regs.cr2 = 0
        assert (cpu.regs.rbx, cpu.regs.cr2) == (0, 0)
        cpu.load(state)
        assert (cpu.regs.rbx, cpu.regs.cr2) == (0x1234, 0x5678)
        assert cpu.kvm.get_sregs().cr2 == 0x5678


def test_registers_are_those_of_the_state_at_once(
    logging: Callable[..., tuple[Machine, Log]],
) -> None:
    machine, log = logging(COUNTING)
    cpu = machine.vcpus[0]
    state, registers = cpu.save(), cpu.state
    for _ in range(3):
        del log.written[:]
        assert machine.run(until=lambda _: len(log.written) == 3, timeout=20).ok
        assert cpu.state != registers
        cpu.load(state)
        assert cpu.state == registers
        assert cpu.engine.sync_regs().regs.rip == registers.rip
        assert cpu.state.rip == registers.rip


def test_of_two_states_the_last_counts(guest: MakeGuest) -> None:
    """On a vCPU that has never run, whatever waits in the kvm_run page."""
    cpu = guest(COUNTING).vcpus[0]
    states = []
    for number in (1, 2):
        cpu.regs.rbx, cpu.regs.cr2 = number, 0x1000 * number
        states.append(cpu.save())
    twin = guest(COUNTING).vcpus[0]
    for number in (1, 2, 1):
        twin.load(states[number - 1])
    assert (twin.regs.rbx, twin.regs.cr2) == (1, 0x1000)
    for number in (1, 2, 1, 2, 2, 1):
        cpu.load(states[number - 1])
        assert (cpu.regs.rbx, cpu.regs.cr2) == (number, 0x1000 * number)
        assert not differing(cpu.save(), states[number - 1])


def test_events_in_the_page_are_those_of_the_state(guest: MakeGuest) -> None:
    machine = guest(FOUR_NOPS + HALT)
    cpu = machine.vcpus[0]
    cpu.engine.sync_regs()  # from now on each exit brings them
    events = cpu.kvm.get_vcpu_events()
    events.nmi.masked = 1
    cpu.kvm.set_vcpu_events(events)
    state = cpu.save()
    for _ in range(2):
        events.nmi.masked = 0
        cpu.kvm.set_vcpu_events(events)
        assert machine.run(timeout=20).outcome is Outcome.HALTED
        assert not cpu.engine.sync_regs().events.nmi.masked
        cpu.load(state)
        assert cpu.engine.sync_regs().events.nmi.masked


@pytest.mark.needs_host(BREAKPOINTS)
def test_a_breakpoint_that_has_stopped_it_is_gone_past(guest: MakeGuest) -> None:
    machine = guest(FOUR_NOPS + EXIT_3)
    cpu = machine.vcpus[0]
    cpu.debug.set_breakpoints("me", [0x7C01])
    assert machine.run(timeout=20).outcome is Outcome.DEBUG
    state = saved(machine)
    assert state.vcpus[0].at_breakpoint
    for _ in range(2):
        assert machine.run(timeout=20).exit_code == 3
        state.load(machine)
        assert cpu.debug.addresses == (0x7C01,)
    assert machine.run(timeout=20).exit_code == 3


BOTH = """
    66 FF 01     inc dword [bx+di]
    E6 90        out 0x90, al
    EB F9        jmp $-5
"""


def test_two_vcpus_go_on_from_where_they_were(guest: MakeGuest) -> None:
    machines = [guest(BOTH, vcpus=2) for _ in range(2)]
    for machine in machines:
        machine.add(Log(), pio=PORT)
        first, second = machine.vcpus
        second.parked = False
        second.state = first.state
        for cpu in machine.vcpus:
            cpu.regs.rbx, cpu.regs.rdi = 0x1000, 0x100 * cpu.index
    machine, twin = machines

    def counts(of: Machine) -> list[int]:
        return [of.memory.read_u32(0x1000 + 0x100 * index) for index in range(2)]

    def further(than: list[int]) -> Callable[[Machine], bool]:
        return lambda of: all(now > then for now, then in zip(counts(of), than, strict=True))

    assert machine.run(until=further([20, 20]), timeout=60).ok
    state, then = saved(machine), counts(machine)
    for other in (twin, machine):
        for _ in range(2):
            state.load(other)
            assert counts(other) == then
            assert other.run(until=further(then), timeout=60).ok


def test_the_order_of_what_is_put(guest: MakeGuest) -> None:
    """See `pykvm.vcpu.transfer` for the reasons."""
    cpu = guest(HALT, irqchip="kernel").vcpus[0]
    state = cpu.save()
    packed = cpu.engine.transfer._packed(state)
    order = [name_of(request).removeprefix("KVM_SET_") for request, _, _ in packed.calls]
    batches = order.index("MP_STATE") - order.index("LAPIC") - 1
    xcrs = ["XCRS"] if uapi.kvm_xcrs.unpack(state.xcrs).nr_xcrs else []
    offset = ["DEVICE_ATTR"] if state.tsc_offset is not None else []
    assert order == [
        *("SREGS2", "REGS", *xcrs, "XSAVE", "DEBUGREGS", "LAPIC"),
        *(["MSRS"] * (batches - len(offset) - 1)),
        *(*offset, "MSRS", "MP_STATE", "VCPU_EVENTS"),
    ]


def test_a_kvm_without_sregs2_and_xsave2(guest: MakeGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux before 5.14 and 5.17: the same state, and no interrupt that comes twice."""
    monkeypatch.setattr(transfer._Host.get(), "sregs2", False)
    monkeypatch.setattr(transfer._Host.get(), "xsave2", False)
    machine, twin = (guest(FOUR_NOPS + EXIT_3) for _ in range(2))
    cpu = machine.vcpus[0]
    put_handler(machine, COUNT)
    cpu.regs.rflags |= IF
    cpu.kvm.set_regs(cpu.kvm.get_regs().as_dict() | {"rip": cpu.regs.rip, "rflags": IF | 2})
    cpu.kvm.interrupt(VECTOR)
    state = saved(machine)
    assert not any(state.vcpus[0].sregs[uapi.kvm_sregs2.offset_of("flags") :])
    for other in (twin, machine):
        for _ in range(2):
            state.load(other)
            assert not differing(other.vcpus[0].save(), state.vcpus[0])
            assert other.run(timeout=20).exit_code == 3
            assert count(other) == 1


@pytest.mark.parametrize("irqchip", ["user", "kernel"])
def test_a_state_goes_through_a_file(guest: MakeGuest, irqchip: str) -> None:
    state = guest(COUNTING, irqchip=irqchip).vcpus[0].save()
    assert decode(json.loads(json.dumps(encode(state))), VcpuState) == state
