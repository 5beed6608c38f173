"""What of a vCPU is saved beside general registers: MSRs, FPU, debug registers, the TSC."""

from __future__ import annotations

import time
from typing import Any

import pytest

from pykvm import CPU, Mode
from pykvm.kvm import uapi
from pykvm.kvm.handle import name_of
from pykvm.vcpu.msr_list import IA32_TSC, msrs_of
from pykvm.vcpu.saved import VcpuState
from pykvm.vcpu.saving import at_one_time
from support.guest import MakeGuest
from support.host import HostCannot
from support.interrupts import COUNT, VECTOR, count, put_handler, with_deadline
from support.saving import COUNTING, EXIT_3, HALT, WAIT, changed, differing, saved

pytestmark = pytest.mark.kvm


def deadline_model(irqchip: str) -> str:
    """The CPU model whose local APIC has the TSC-deadline timer."""
    model = with_deadline(irqchip)
    if model == "baseline":
        raise HostCannot("KVM_CAP_TSC_DEADLINE_TIMER", "no local APIC of KVM's has it here")
    return model


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


def test_a_priority_that_kvm_has_not_computed_anew_is_no_difference(guest: MakeGuest) -> None:
    state = guest(HALT, irqchip="kernel").vcpus[0].save()
    assert state.lapic is not None
    other = changed(state, lapic=state.lapic[:0xA0] + b"\x40" + state.lapic[0xA1:])
    assert other != state
    assert other.at_rest() == state.at_rest()
    tpr = changed(state, lapic=state.lapic[:0x80] + b"\x40" + state.lapic[0x81:])
    assert tpr.at_rest() != state.at_rest()


class AnyVcpu:
    """One that has every MSR that it is asked for."""

    def get_msrs(self, indices: object, partial: bool) -> dict[int, int]:
        return {}

    def ioctl(self, request: int, msrs: bytearray) -> int:
        return int.from_bytes(msrs[:4], "little")


def test_the_msrs_of_kvm_pvm_are_state() -> None:
    """KVM's list has them on no other host, and a guest that knows them panics without."""
    vcpu: Any = AnyVcpu()
    assert set(range(0x4B56_4DF0, 0x4B56_4DF8)) < set(msrs_of(vcpu, [], []))


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


def test_a_processor_without_xsave_has_no_xcrs(cpu: CPU) -> None:
    """KVM_SET_XCRS is refused there, and not called: XCR0 stays what it is."""
    before = cpu.kvm.get_xcrs()
    cpu.load(changed(cpu.save(), xcrs=bytes(uapi.kvm_xcrs.size)))
    assert cpu.kvm.get_xcrs() == before
    state = changed(cpu.save(), xcrs=bytes(uapi.kvm_xcrs.size))
    calls = [name_of(request) for request, _, _ in cpu.engine.transfer._packed(state).calls]
    assert "KVM_SET_XCRS" not in calls
