"""A vCPU saved with an interrupt, an NMI or an exception on its way."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pykvm import Machine
from pykvm._core import lib
from pykvm.kvm import Cap, System, uapi
from pykvm.kvm.constants import KVM_VCPUEVENT_VALID_TRIPLE_FAULT
from support.guest import MakeGuest
from support.host import HostCannot
from support.interrupts import COUNT, VECTOR, count, put_handler
from support.saving import COUNTING, EXIT_3, FOUR_NOPS, IF, changed, saved

pytestmark = pytest.mark.kvm


def require_cap(cap: Cap) -> None:
    with System() as system:
        if not system.check_extension(cap):
            raise HostCannot(cap.name, "this host does not offer it")


@pytest.mark.parametrize("shadow", [1, 2], ids=["MOV SS", "STI"])
def test_the_shadow_of_an_instruction(guest: MakeGuest, shadow: int) -> None:
    machine, twin = guest(COUNTING), guest(COUNTING)
    cpu = machine.vcpus[0]
    events = cpu.kvm.get_vcpu_events()
    events.interrupt.shadow = shadow
    cpu.kvm.set_vcpu_events(events)
    before = cpu.kvm.get_vcpu_events()
    assert before.interrupt.shadow & shadow
    state = saved(machine)
    events.interrupt.shadow = 0
    cpu.kvm.set_vcpu_events(events)
    for other in (machine, twin):
        state.load(other)
        found = other.vcpus[0].kvm.get_vcpu_events()
        assert found.interrupt == before.interrupt


@pytest.mark.parametrize("times", [1, 2], ids=["first", "again"])
def test_an_interrupt_on_its_way_comes_once(
    guest: MakeGuest, again: Callable[..., Machine], times: int
) -> None:
    machine = guest(FOUR_NOPS + EXIT_3)
    cpu = machine.vcpus[0]
    cpu.regs.rflags |= IF
    cpu.kvm.set_regs(cpu.kvm.get_regs().as_dict() | {"rip": cpu.regs.rip, "rflags": IF | 2})
    put_handler(machine, COUNT)
    cpu.kvm.interrupt(VECTOR)
    state = saved(machine)
    assert cpu.kvm.get_sregs().interrupt_bitmap[VECTOR // 64]

    other = again(machine, FOUR_NOPS + EXIT_3)
    for _ in range(times):
        state.load(other)
    assert other.run(timeout=20).exit_code == 3
    assert count(other) == 1


def test_none_comes_that_was_not_on_its_way(guest: MakeGuest) -> None:
    machine = guest(FOUR_NOPS + EXIT_3)
    cpu = machine.vcpus[0]
    cpu.regs.rflags |= IF
    put_handler(machine, COUNT)
    state = saved(machine)
    for _ in range(2):
        cpu.kvm.interrupt(VECTOR)
        state.load(machine)
        assert machine.run(timeout=20).exit_code == 3
        assert count(machine) == 0


@pytest.mark.parametrize("masked", [False, True])
def test_nmis(guest: MakeGuest, masked: bool) -> None:
    machine, twin = guest(COUNTING), guest(COUNTING)
    cpu = machine.vcpus[0]
    events = cpu.kvm.get_vcpu_events()
    events.nmi.masked = masked
    cpu.kvm.set_vcpu_events(events)
    cpu.kvm.nmi()
    before = cpu.kvm.get_vcpu_events()
    assert before.nmi.pending
    state = saved(machine)
    state.load(twin)
    assert twin.vcpus[0].kvm.get_vcpu_events().nmi == before.nmi


def test_an_exception_that_waits_with_its_payload(guest: MakeGuest) -> None:
    """A page fault whose address is not in CR2 yet."""
    require_cap(Cap.KVM_CAP_EXCEPTION_PAYLOAD)
    machine, twin = guest(COUNTING), guest(COUNTING)
    saved(machine)  # has KVM show them
    cpu = machine.vcpus[0]
    events = cpu.kvm.get_vcpu_events()
    events.exception.pending, events.exception.nr = 1, 14
    events.exception.has_error_code = 1
    events.exception_has_payload, events.exception_payload = 1, 0x1234
    cpu.kvm.set_vcpu_events(events)
    before = cpu.kvm.get_vcpu_events()
    state = saved(machine)
    for _ in range(2):
        state.load(twin)
        assert twin.vcpus[0].kvm.get_vcpu_events() == before
        # KVM takes what waits in the page, and does not enter the guest.
        assert lib.pykvm_complete(twin.vcpus[0].engine.core) == 0
        assert twin.vcpus[0].kvm.get_vcpu_events() == before
    assert before.exception_payload == 0x1234


def test_what_may_not_wait_in_the_page(guest: MakeGuest) -> None:
    """PDPTRs, which kvm_sregs has not."""
    cpu = guest(COUNTING).vcpus[0]
    state = cpu.save()
    cpu.load(state)
    put = cpu.engine.transfer
    assert put.may_wait(state)
    flags = uapi.kvm_sregs2.offset_of("flags")
    with_pdptrs = changed(state, sregs=state.sregs[:flags] + b"\1" + state.sregs[flags + 1 :])
    put._putting[id(with_pdptrs)] = with_pdptrs, put._packed(state), []
    assert not put.may_wait(with_pdptrs)


def test_a_triple_fault_that_waits(guest: MakeGuest) -> None:
    require_cap(Cap.KVM_CAP_X86_TRIPLE_FAULT_EVENT)
    machine, twin = guest(COUNTING), guest(COUNTING)
    before = saved(machine)
    cpu = machine.vcpus[0]
    events = cpu.kvm.get_vcpu_events()
    events.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT
    events.triple_fault.pending = 1
    cpu.kvm.set_vcpu_events(events)
    state = saved(machine)
    state.load(twin)
    assert twin.vcpus[0].kvm.get_vcpu_events().triple_fault.pending
    before.load(twin)
    assert not twin.vcpus[0].kvm.get_vcpu_events().triple_fault.pending
