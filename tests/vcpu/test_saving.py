"""`CPU.save` and `CPU.load`: a vCPU in its own state again, or in that of another machine's."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from pykvm import CPU, ConfigError, Machine, Mode, Outcome, StateError
from pykvm._core import lib
from pykvm.devices.post import PostPort
from pykvm.errors import KVMError
from pykvm.exits import Hlt, IoIn, IoOut
from pykvm.kvm import Cap, System, uapi
from pykvm.kvm.constants import KVM_VCPUEVENT_VALID_TRIPLE_FAULT
from pykvm.kvm.handle import name_of
from pykvm.values.state import decode, encode
from pykvm.vcpu import transfer
from pykvm.vcpu.msr_list import IA32_TSC
from pykvm.vcpu.saved import VcpuState
from pykvm.vcpu.saving import at_one_time
from support.debugging import BREAKPOINTS
from support.guest import MakeGuest
from support.host import HostCannot
from support.interrupts import COUNT, VECTOR, count, put_handler, with_deadline
from support.saving import differing, saved

pytestmark = pytest.mark.kvm

PORT = 0x90
IF = 1 << 9
CHIPS = ("user", "kernel", "split", "none")

#: A number, one higher each time.
COUNTING = """
    FE C0        inc al
    E6 90        out 0x90, al
    EB FA        jmp $-4
"""
#: What is read is written.
ECHO = """
    E4 90        in al, 0x90
    E6 91        out 0x91, al
    EB FA        jmp $-4
"""
EXIT_3 = """
    B0 03        mov al, 3
    E6 F4        out 0xf4, al
"""
HALT = """
    FA           cli
    F4           hlt
    EB FD        jmp $-1
"""
FOUR_NOPS = "90 90 90 90   nop, four times"
WAIT = (
    """
    FB           sti
    F4           hlt
"""
    + EXIT_3
)


class Log:
    """What is written to it; reads count from 0."""

    name = "log"
    length = 2

    def __init__(self) -> None:
        self.written: list[int] = []
        self.read_so_far = 0

    def read(self, offset: int, size: int) -> int:
        self.read_so_far += 1
        return self.read_so_far - 1

    def write(self, offset: int, size: int, value: int) -> None:
        self.written.append(value)


def require_cap(cap: Cap) -> None:
    with System() as system:
        if not system.check_extension(cap):
            raise HostCannot(cap.name, "this host does not offer it")


def deadline_model(irqchip: str) -> str:
    """The CPU model whose local APIC has the TSC-deadline timer."""
    model = with_deadline(irqchip)
    if model == "baseline":
        raise HostCannot("KVM_CAP_TSC_DEADLINE_TIMER", "no local APIC of KVM's has it here")
    return model


@pytest.fixture
def logging(guest: MakeGuest) -> Callable[[str], tuple[Machine, Log]]:
    def make(listing: str, **options: Any) -> tuple[Machine, Log]:
        machine, log = guest(listing, **options), Log()
        machine.add(log, pio=PORT)
        return machine, log

    return make


@pytest.fixture(params=["itself", "twin"])
def again(request: pytest.FixtureRequest, guest: MakeGuest) -> Callable[..., Machine]:
    """The machine that a state is loaded into: the one that it is of, or one made alike."""

    def other(machine: Machine, listing: str, **options: Any) -> Machine:
        return machine if request.param == "itself" else guest(listing, **options)

    return other


@pytest.fixture(params=CHIPS)
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


def test_an_exit_that_nobody_has_dealt_with(guest: MakeGuest) -> None:
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


# PAT, MTRRs (a default type, a fixed and a variable one), DEBUGCTL (BTF), XSS, STAR, TSC_AUX,
# MC0_CTL: not every host lets the VMM set each of them.
MSRS = {
    0x277: 0x0606_0606_0606_0006,
    0x2FF: 0xC06,
    0x250: 0x0606_0606_0606_0606,
    0x200: 0x8000_0006,
    0x201: 0x8000_0800,
    0x1D9: 2,
    0xDA0: 1 << 8,
    0xC000_0081: 0x0023_0010_0000_0000,
    0xC000_0103: 5,
    0x400: (1 << 64) - 1,
}


def test_msrs_are_kept(guest: MakeGuest) -> None:
    machine, twin = guest(COUNTING), guest(COUNTING)
    cpu = machine.vcpus[0]
    beginning = saved(machine)
    was = {index: cpu.kvm.get_msrs([index], partial=True) for index in MSRS}
    accepted = {
        index: value
        for index, value in MSRS.items()
        if cpu.kvm.set_msrs({index: value}, partial=True)
        and cpu.kvm.get_msrs([index]) == {index: value}
    }
    assert accepted.keys() >= {0x277, 0x2FF, 0x250, 0x200, 0x201, 0xC000_0081}
    state = saved(machine)
    assert dict(state.vcpus[0].msrs).items() >= accepted.items()
    beginning.load(machine)
    for index in accepted:
        assert cpu.kvm.get_msrs([index]) == was[index], hex(index)
    for other in (twin, machine):
        state.load(other)
        assert other.vcpus[0].kvm.get_msrs(accepted) == accepted


STORE_XMM0 = """
    0F 11 04 25 00 80 00 00   movups [0x8000], xmm0
    B0 03                     mov al, 3
    E6 F4                     out 0xf4, al
"""


def test_sse_state_arrives_in_the_guest(guest: MakeGuest) -> None:
    machine, twin = (guest(STORE_XMM0, Mode.LONG) for _ in range(2))
    cpu = machine.vcpus[0]
    cpu.regs.cr4 |= 1 << 9
    area = cpu.kvm.get_xsave()
    area[160:176] = bytes(range(16))  # XMM0
    area[512] |= 3  # XSTATE_BV: x87, SSE
    cpu.kvm.set_xsave(area)
    state = saved(machine)
    state.load(twin)
    assert twin.run(timeout=20).exit_code == 3
    assert twin.memory.read(0x8000, 16) == bytes(range(16))


def test_debug_registers_and_xcr0(guest: MakeGuest) -> None:
    machine, twin = guest(COUNTING), guest(COUNTING)
    cpu = machine.vcpus[0]
    cpu.kvm.set_debugregs({"db": [1, 2, 3, 4], "dr6": 0xFFFF_0FF1, "dr7": 0x401})
    state = saved(machine)
    state.load(twin)
    found = twin.vcpus[0].kvm.get_debugregs()
    assert (found.db, found.dr6, found.dr7) == ([1, 2, 3, 4], 0xFFFF_0FF1, 0x401)
    assert twin.vcpus[0].kvm.get_xcrs() == cpu.kvm.get_xcrs()


def test_cr8_of_the_page(guest: MakeGuest) -> None:
    machine = guest(EXIT_3)
    cpu = machine.vcpus[0]
    cpu.engine.page.cast("Q")[2] = 5
    state = cpu.save()
    assert state.cr8 == 5
    cpu.engine.page.cast("Q")[2] = 0
    cpu.load(state)
    assert machine.run(timeout=20).exit_code == 3
    assert cpu.regs.cr8 == 5


@pytest.mark.parametrize("irqchip", ["kernel", "split"])
def test_a_tsc_deadline_fires_after_it(guest: MakeGuest, irqchip: str) -> None:
    model = deadline_model(irqchip)
    machine, twin = (guest(WAIT, irqchip=irqchip, cpu=model) for _ in range(2))
    for each in (machine, twin):
        put_handler(each, COUNT)
    cpu = machine.vcpus[0]
    lapic = bytearray(cpu.kvm.get_lapic())
    lapic[0xF0:0xF4] = (0x1FF).to_bytes(4, "little")
    lapic[0x320:0x324] = (0x40000 | VECTOR).to_bytes(4, "little")
    cpu.kvm.set_lapic(lapic)
    now, khz = cpu.kvm.get_msrs([0x10])[0x10], cpu.kvm.get_tsc_khz()
    cpu.kvm.set_msrs({0x6E0: now + khz * 100})
    state = saved(machine)
    assert dict(state.vcpus[0].msrs)[0x6E0] == now + khz * 100
    for _ in range(2):
        state.load(twin)
        assert twin.run(timeout=20).exit_code == 3
    assert count(twin) == 1


def test_a_deadline_that_has_passed_fires_at_once(guest: MakeGuest) -> None:
    model = deadline_model("kernel")
    machine, twin = (guest(WAIT, irqchip="kernel", cpu=model) for _ in range(2))
    put_handler(machine, COUNT)
    cpu = machine.vcpus[0]
    lapic = bytearray(cpu.kvm.get_lapic())
    lapic[0xF0:0xF4] = (0x1FF).to_bytes(4, "little")
    lapic[0x320:0x324] = (0x40000 | VECTOR).to_bytes(4, "little")
    cpu.kvm.set_lapic(lapic)
    cpu.kvm.set_msrs({0x6E0: cpu.kvm.get_msrs([0x10])[0x10] + 1000})
    time.sleep(0.01)
    state = saved(machine)
    state.load(twin)
    assert twin.run(timeout=20).exit_code == 3
    assert count(twin) == 1


def test_tscs_are_as_far_apart_as_they_were(guest: MakeGuest) -> None:
    machine, twin = (guest(COUNTING, vcpus=2) for _ in range(2))
    state = saved(machine)
    state.load(twin)
    assert [vcpu.tsc_offset for vcpu in saved(twin).vcpus] == [
        vcpu.tsc_offset for vcpu in state.vcpus
    ]


def test_tscs_of_vcpus_that_left_the_guest_one_after_the_other(cpu: CPU) -> None:
    """Where KVM moves the offsets, each TSC stands since its vCPU's last exit."""

    def at(tsc: int, adjust: int) -> VcpuState:
        msrs = dict(state.msrs) | {0x10: tsc % (1 << 64), 0x3B: adjust}
        return changed(state, tsc_offset=None, msrs=tuple(msrs.items()))

    def tscs(cpus: tuple[VcpuState, ...]) -> list[int]:
        return [dict(cpu.msrs)[0x10] for cpu in cpus]

    state = cpu.save()
    assert tscs(at_one_time((at(500, 0), at(900, 0), at(700, 300)))) == [900, 900, 1200]
    assert tscs(at_one_time((at(-5, 0), at(7, 0)))) == [7, 7]
    one = (changed(at(5, 0), tsc_offset=5), changed(at(7, 0), tsc_offset=7))
    assert at_one_time(one) == one


def test_a_tsc_whose_offset_kvm_moves_goes_on_from_where_it_was(guest: MakeGuest) -> None:
    """Also from where KVM takes a write of IA32_TSC for an attempt to synchronise."""
    machine = guest(COUNTING)
    cpu = machine.vcpus[0]
    state = cpu.save()
    if state.tsc_offset is not None:
        raise HostCannot("tsc-offset-moves", "the TSC offset stays where it was set")

    def tsc() -> int:
        value: int = cpu.kvm.get_msrs([IA32_TSC])[IA32_TSC]
        return value

    second = state.tsc_khz * 1000
    for value in (1 << 50, (1 << 50) + second // 2, 1 << 40, (1 << 40) + second // 2, 1 << 40):
        at = changed(state, msrs=tuple((dict(state.msrs) | {IA32_TSC: value}).items()))
        time.sleep(0.01)
        cpu.load(at)
        # It stands until the vCPU runs.
        assert value <= tsc() < value + second // 4
        assert dict(cpu.save().msrs)[IA32_TSC] < value + second // 4


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


WALL_CLOCK = 0x4B56_4D00


def test_memory_stays_though_kvm_writes_the_time_there(guest: MakeGuest) -> None:
    """KVM writes the wall clock when its MSR is set: the state's memory has that of the past."""
    machine, twin = guest(COUNTING), guest(COUNTING)
    cpu = machine.vcpus[0]
    if not cpu.kvm.set_msrs({WALL_CLOCK: 0x9000}, partial=True):
        raise HostCannot("KVM_FEATURE_CLOCKSOURCE2", "no kvmclock on this host")
    assert any(machine.memory.read(0x9000, 12))
    machine.memory.write(0x9000, b"long ago....")
    state = saved(machine)
    for other in (twin, machine):
        for _ in range(2):
            state.load(other)
            assert other.memory.read(0x9000, 12) == b"long ago...."
            assert other.vcpus[0].kvm.get_msrs([WALL_CLOCK]) == {WALL_CLOCK: 0x9000}


def test_a_local_apic_in_x2apic_mode(guest: MakeGuest) -> None:
    """Its registers are in another format, so APIC_BASE comes before them."""
    machine, twin = (guest(HALT, irqchip="kernel", cpu="+x2apic", vcpus=2) for _ in range(2))
    for cpu in machine.vcpus:
        cpu.regs.apic_base |= 0xC00
    state = saved(machine)
    for other in (twin, machine):
        state.load(other)
        for cpu, wanted in zip(other.vcpus, state.vcpus, strict=True):
            assert not differing(cpu.save(), wanted)
            assert cpu.regs.apic_base & 0xC00 == 0xC00


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


@pytest.fixture
def cpu(guest: MakeGuest) -> CPU:
    return guest(COUNTING).vcpus[0]


def test_a_processor_without_xsave_has_no_xcrs(cpu: CPU) -> None:
    """KVM_SET_XCRS is refused there, and not called: XCR0 stays what it is."""
    before = cpu.kvm.get_xcrs()
    cpu.load(changed(cpu.save(), xcrs=bytes(uapi.kvm_xcrs.size)))
    assert cpu.kvm.get_xcrs() == before
    state = changed(cpu.save(), xcrs=bytes(uapi.kvm_xcrs.size))
    calls = [name_of(request) for request, _, _ in cpu.engine.transfer._packed(state).calls]
    assert "KVM_SET_XCRS" not in calls


def changed(state: VcpuState, **fields: Any) -> VcpuState:
    return VcpuState(**{name: getattr(state, name) for name in VcpuState.__fields__} | fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"regs": b""}, "0 bytes of regs"),
        ({"sregs": bytes(1000)}, "1000 bytes of sregs"),
        ({"xsave": bytes(10)}, "10 bytes of xsave"),
        ({"events": bytes(65)}, "65 bytes of events"),
        ({"lapic": bytes(1024)}, "1024 bytes of lapic; this vCPU has 0"),
        ({"nested": bytes(128)}, "nested"),
        ({"msrs": ((0x12345, 0),)}, "MSR 0x12345"),
        ({"cr8": 16}, "CR8 = 0x10"),
    ],
)
def test_a_state_that_is_none(cpu: CPU, fields: dict[str, Any], message: str) -> None:
    state = cpu.save()
    with pytest.raises(ConfigError, match=message):
        cpu.load(changed(state, **fields))
    cpu.load(state)
    assert not differing(cpu.save(), state)


@pytest.mark.parametrize(
    "fields",
    [
        {"sregs": b"\xff" * uapi.kvm_sregs2.size},
        {"xcrs": b"\xff" * uapi.kvm_xcrs.size},
        {"debugregs": b"\xff" * uapi.kvm_debugregs.size},
        {"events": b"\xff" * uapi.kvm_vcpu_events.size},
        {"mp_state": 77},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_state_that_kvm_refuses(cpu: CPU, fields: dict[str, Any]) -> None:
    state = cpu.save()
    with pytest.raises(KVMError, match="EINVAL"):
        cpu.load(changed(state, **fields))
    cpu.load(state)
    assert not differing(cpu.save(), state)


def test_an_msr_that_cannot_be_set(cpu: CPU) -> None:
    """IA32_ARCH_CAPABILITIES or PAT: which of them takes any value depends on the host."""
    state, ones = cpu.save(), (1 << 64) - 1
    msrs = dict(state.msrs)
    strict = [
        index
        for index in (0x10A, 0x277)
        if index in msrs and not cpu.kvm.set_msrs({index: ones}, partial=True)
    ]
    if not strict:
        raise HostCannot("an-msr-refuses-values", "IA32_ARCH_CAPABILITIES and PAT take any")
    cpu.load(state)
    with pytest.raises(KVMError, match=f"MSR {strict[0]:#x} cannot be set to 0xffff"):
        cpu.load(changed(state, msrs=tuple((msrs | {strict[0]: ones}).items())))
    cpu.load(state)
    assert not differing(cpu.save(), state)


@pytest.mark.parametrize("irqchip", ["user", "kernel"])
def test_a_state_goes_through_a_file(guest: MakeGuest, irqchip: str) -> None:
    state = guest(COUNTING, irqchip=irqchip).vcpus[0].save()
    assert decode(json.loads(json.dumps(encode(state))), VcpuState) == state
