"""What a guest writes to IA32_TSC stays when the TSC offset is set afterwards."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from clock.fake_host import Host

from pykvm import Machine, Mode
from pykvm.exits import IoOut
from pykvm.irqchip.tsc_offset import follow_tsc_writes, show_tscs
from support.guest import MakeGuest
from support.host import HostCannot, host_probe
from support.interrupts import VECTOR, with_deadline
from support.listing import assemble

KEPT = "the-clock-moves-the-tsc"
LIMIT = 1 << 64

# Writes 0x4000 << 32 to IA32_TSC, and the upper half of its TSC to port 0x98 again and again.
WRITE_TSC = """
    66 B9 10 00 00 00    mov ecx, 0x10
    66 BA 00 40 00 00    mov edx, 0x4000
    66 31 C0             xor eax, eax
    0F 30                wrmsr
    0F 31                rdtsc
    66 89 D0             mov eax, edx
    66 E7 98             out 0x98, eax
    EB F6                jmp $-8
"""
# A second's worth of such halves is less than one.
WRITTEN = range(0x4000, 0x4100)


@host_probe(KEPT)
def tsc_offset_is_kept() -> str | None:
    with Machine(assemble("F4 hlt"), mode=Mode.REAL, memory="1M") as machine:
        movable = machine.clock.tsc_movable
    return None if movable else "KVM ignores a TSC offset, or moves it by itself"


class Sink:
    """Takes what is written."""

    name = "sink"
    length = 4
    stateless = True

    def write(self, offset: int, size: int, value: int) -> None:
        pass

    def clone(self) -> Sink:
        return Sink()


def shown(machine: Machine) -> int:
    """What RDTSC next gives the guest, in units of 4 G."""
    for exit in machine.exits(timeout=60):
        if isinstance(exit, IoOut) and exit.port == 0x98:
            return exit.value
    raise AssertionError("the guest has ended")


@pytest.mark.kvm
@pytest.mark.needs_host(KEPT)
@pytest.mark.parametrize("clock", ["realtime", "paused"])
@pytest.mark.parametrize("irqchip", ["user", "kernel", "split", "none"])
def test_what_the_guest_wrote_outlives_a_reset(guest: MakeGuest, irqchip: str, clock: str) -> None:
    machine = guest(WRITE_TSC, irqchip=irqchip, clock=clock)
    machine.add(Sink(), pio=0x98)
    before = machine.snapshot()
    assert shown(machine) in WRITTEN
    after = machine.snapshot()
    assert shown(machine) in WRITTEN
    for _ in range(2):
        machine.reset(after)
        assert machine.snapshot().digest() == after.digest()
        assert shown(machine) in WRITTEN
        machine.reset(before)
        assert machine.snapshot().digest() == before.digest()
        assert machine.clock.tsc() < WRITTEN.start << 32
        assert shown(machine) in WRITTEN
    with after.fork() as twin:
        assert shown(twin) in WRITTEN


@pytest.mark.kvm
@pytest.mark.needs_host(KEPT)
@pytest.mark.parametrize("clock", ["realtime", "paused"])
@pytest.mark.parametrize("irqchip", ["kernel", "split"])
def test_a_deadline_comes_no_sooner_for_a_host_with_another_tsc(
    guest: MakeGuest, irqchip: str, clock: str
) -> None:
    """As one has on which a file is loaded, or the same one after its next boot."""
    model = with_deadline(irqchip)
    if model == "baseline":
        raise HostCannot("KVM_CAP_TSC_DEADLINE_TIMER", "no local APIC of KVM's has it here")
    machine = guest("F4 hlt", irqchip=irqchip, clock=clock, cpu=model)
    cpu = machine.vcpus[0]
    lapic = bytearray(cpu.kvm.get_lapic())
    lapic[0xF0:0xF4] = (0x1FF).to_bytes(4, "little")
    lapic[0x320:0x324] = (0x40000 | VECTOR).to_bytes(4, "little")
    cpu.kvm.set_lapic(lapic)
    deadline = cpu.kvm.get_msrs([0x10])[0x10] + cpu.kvm.get_tsc_khz() * 3_600_000
    cpu.kvm.set_msrs({0x6E0: deadline})
    saved = machine.snapshot()
    (state,) = saved.state.cpus
    assert state.tsc_offset is not None
    saved.state = saved.state.__replace__(
        cpus=(state.__replace__(tsc_offset=(state.tsc_offset + (1 << 60)) % LIMIT),)
    )
    with saved.fork() as twin:
        machine.reset(saved)
        for each in (machine, twin):
            each.run(timeout=0.01)
            each.vcpus[0].engine.deliver_timers()
            assert each.vcpus[0].kvm.get_msrs([0x6E0])[0x6E0] == deadline


class Vcpu:
    """A vCPU of a KVM that keeps a TSC offset, and takes the guest's writes of IA32_TSC."""

    def __init__(self, index: int, offset: int) -> None:
        self.index, self.offset = index, offset % LIMIT
        self.kvm = SimpleNamespace(
            get_device_attr=lambda *_: self.offset, set_device_attr=self._set
        )

    def _set(self, group: int, attribute: int, value: int) -> None:
        self.offset = value


def test_the_offset_follows_time_and_what_was_written() -> None:
    host = Host()
    clock = host.clock("paused")
    cpus: Any = [Vcpu(0, 0), Vcpu(1, 0)]
    show_tscs(cpus, clock)
    clock.start()
    follow_tsc_writes(cpus, clock)
    show_tscs(cpus, clock)
    assert [cpu.offset for cpu in cpus] == [clock.tsc_offset % LIMIT] * 2
    # KVM moves the offset by as much as the counter.
    cpus[1].offset = (cpus[1].offset - 1_000) % LIMIT
    for _ in range(3):
        host.now += 5_000_000
        clock.stop()
        host.now += 7_000_000
        clock.start()
        follow_tsc_writes(cpus, clock)
        show_tscs(cpus, clock)
        assert cpus[0].offset == clock.tsc_offset % LIMIT
        assert cpus[1].offset == (clock.tsc_offset - 1_000) % LIMIT
    assert clock.tsc_adjust(1) == -1_000 % LIMIT


def test_where_the_offset_is_not_kept_there_is_nothing_to_follow() -> None:
    clock = Host().clock(movable=False)
    cpus: Any = [Vcpu(0, 77)]
    follow_tsc_writes(cpus, clock)
    show_tscs(cpus, clock)
    assert (cpus[0].offset, clock.tsc_adjust(0)) == (77, 0)
