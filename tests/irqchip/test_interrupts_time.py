"""Guest time on a real vCPU: hours that pass at once, and hours that pass unseen."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from machine.storms import Access, Storm, What

from pykvm import Machine, Outcome
from support.guest import MakeGuest
from support.host import host_probe
from support.interrupts import (
    COUNT,
    DEADLINE,
    VECTOR,
    count,
    listen,
    platform_of,
    poke,
    with_deadline,
)
from support.irqchips import IRQCHIPS

pytestmark = pytest.mark.kvm

LAPIC = 0xFEE00000
HPET = 0xFED00000
MS = 1_000_000
SECOND = 1_000_000_000
HOUR = 3600 * SECOND

# Sleeps until [0x502] interrupts were handled.
SLEEP = """
    FB                       sti
    F4                       hlt
    FA                       cli
    A1 00 05                 mov ax, [0x500]
    3B 06 02 05              cmp ax, [0x502]
    75 F4                    jne $-10
    B0 00                    mov al, 0
    E6 F4                    out 0xf4, al
"""
# The APIC's page is out of a real-mode guest's reach.
COUNT_AND_END = """
    FF 06 00 05              inc word [0x500]
    E6 E8                    out 0xe8, al
    CF                       iret
"""
SPIN = "EB FE  jmp $"


def io_apic(machine: Machine, pin: int) -> None:
    """Lead a pin to VECTOR, edge-triggered."""
    poke(machine, 0xFEC00000, 0x10 + 2 * pin)
    poke(machine, 0xFEC00010, VECTOR)


def by_lapic(machine: Machine) -> int:
    """36 times 100 seconds: its counter is of 32 bits."""
    poke(machine, LAPIC + 0x3E0, 0xA)  # by 128
    poke(machine, LAPIC + 0x320, 0x20000 | VECTOR)
    poke(machine, LAPIC + 0x380, 100 * SECOND // 128)
    return 36


def by_hpet(machine: Machine) -> int:
    io_apic(machine, 11)
    poke(machine, HPET + 0x100, 11 << 9 | 4)
    poke(machine, HPET + 0x108, 3600 * 100_000_000, 8)
    return 1


def by_rtc(machine: Machine) -> int:
    """The alarm, an hour after a time that the guest sets."""
    io_apic(machine, 8)
    for index, value in (
        (0xB, 0x82),
        (0xA, 0x70),
        (4, 0x10),
        (2, 0),
        (0, 0),
        (5, 0x11),
        (3, 0),
        (1, 0),
        (0xA, 0x26),
        (0xB, 0x22),
    ):
        poke(machine, 0x70, index, 1)
        poke(machine, 0x71, value, 1)
    return 1


def by_pit(machine: Machine) -> int:
    """18 ticks, a second: what it can count in one go is 55 ms."""
    io_apic(machine, 2)
    for port, value in ((0x43, 0x34), (0x40, 0xFF), (0x40, 0xFF)):
        poke(machine, port, value, 1)
    return 18


def read_pit(machine: Machine) -> int:
    poke(machine, 0x43, 0, 1)
    pit: Any = machine.devices["pit"]
    low, high = pit.read(0, 1), pit.read(0, 1)
    return int(high << 8 | low)


@pytest.mark.parametrize(
    ("program", "length"),
    [(by_lapic, HOUR), (by_hpet, HOUR), (by_rtc, HOUR), (by_pit, SECOND)],
    ids=["lapic", "hpet", "rtc", "pit"],
)
def test_a_wait_is_skipped_and_all_clocks_agree_on_it(
    guest: MakeGuest, program: Any, length: int
) -> None:
    machine = guest(SLEEP, clock="warp")
    platform = listen(machine, COUNT_AND_END)
    machine.add(EndOfInterrupt(platform.lapics[0]), pio=0xE8, length=1)
    poke(machine, HPET + 0x10, 1)
    machine.memory.write_u16(0x502, program(machine))
    pm_before, rtc_before = pm_timer(machine), platform.rtc.time
    clock_before, hpet_before = machine.clock.now(), platform.hpet.counter
    pit_before = read_pit(machine)

    result = machine.run(timeout=30)

    assert result.exit_code == 0, result
    assert result.seconds < 5
    passed = machine.clock.now() - clock_before
    # The PIT loads its count with its next tick; the RTC's seconds begin half a second in.
    assert length - SECOND < passed < length + 5 * SECOND

    assert abs((platform.hpet.counter - hpet_before) * 10 - passed) < MS
    pm_ticks = (pm_timer(machine) - pm_before) % (1 << 24)
    assert abs(difference(pm_ticks, passed * 3_579_545 // SECOND, 1 << 24)) < 3580
    assert abs(platform.rtc.time - rtc_before - passed // SECOND) <= 1
    if program is by_pit:
        pit_ticks = (pit_before - read_pit(machine)) % 0xFFFF
        assert abs(difference(pit_ticks, passed * 1_193_182 // SECOND, 0xFFFF)) < 1194


def difference(a: int, b: int, modulus: int) -> int:
    return (a - b + modulus // 2) % modulus - modulus // 2


class EndOfInterrupt:
    """A port whose write is the local APIC's EOI."""

    name = "eoi"

    def __init__(self, lapic: Any) -> None:
        self._lapic = lapic

    def write(self, offset: int, size: int, value: int) -> None:
        self._lapic.eoi()


def pm_timer(machine: Machine) -> int:
    device: Any = machine.devices["pm-timer"]
    return int(device.read(0, 4)) % (1 << 24)


def test_an_hour_takes_no_time(guest: MakeGuest) -> None:
    machine = guest(SLEEP, clock="warp")
    listen(machine)
    poke(machine, HPET + 0x10, 1)
    machine.memory.write_u16(0x502, by_hpet(machine))
    result = machine.run(timeout=30)
    assert result.exit_code == 0
    # Some milliseconds; here is room for a busy host.
    assert result.seconds < 2


# MSR_KVM_SYSTEM_TIME_NEW: kvmclock's page is at 0x600, and it is on.
START_KVMCLOCK = """
    66 B9 01 4D 56 4B        mov ecx, 0x4b564d01
    66 B8 01 06 00 00        mov eax, 0x601
    66 31 D2                 xor edx, edx
    0F 30                    wrmsr
"""


def test_kvmclock_agrees_on_the_hour(guest: MakeGuest) -> None:
    machine = guest(START_KVMCLOCK + SLEEP, clock="warp")
    listen(machine)
    poke(machine, HPET + 0x10, 1)
    machine.memory.write_u16(0x502, by_hpet(machine))
    vm = machine._board.vm
    assert vm is not None
    seen: list[tuple[int, int, int]] = []

    def look(machine: Machine) -> bool:
        before = machine.clock.now()
        seen.append((before, int(vm.get_clock().clock), machine.clock.now()))
        return False

    assert machine.run(timeout=30, until=look).exit_code == 0
    after_an_hour = [times for times in seen if times[0] >= 3600 * SECOND]
    assert after_an_hour
    for before, kvmclock, after in after_an_hour:
        assert before - MS < kvmclock < after + MS
    # pvclock_vcpu_time_info: the guest's own page says so too (system_time, at 16).
    assert machine.memory.read_u64(0x610) >= HOUR


def test_a_kvmclock_that_kvm_refuses_is_a_fault(guest: MakeGuest) -> None:
    machine = guest("0F 30  wrmsr", clock="warp")
    listen(machine)
    # The address of the page is out of memory's reach: bit 63.
    machine.vcpus[0].regs.rcx, machine.vcpus[0].regs.rax = 0x4B564D01, 1
    machine.vcpus[0].regs.rdx = 1 << 31
    assert machine.run(timeout=30).outcome is not Outcome.EXITED


def test_without_a_deadline_there_is_nothing_to_skip_to(guest: MakeGuest) -> None:
    machine = guest(SLEEP, clock="warp")
    listen(machine)
    assert machine.run(timeout=30).outcome is Outcome.HALTED
    assert machine.clock.now() < 20 * SECOND


@host_probe("tsc-deadline-in-software")
def tsc_deadline_in_software() -> str | None:
    return None if with_deadline("user") == DEADLINE else "KVM swallows IA32_TSC_DEADLINE"


@host_probe("has-ia32-tsc-adjust")
def has_ia32_tsc_adjust() -> str | None:
    with Machine(cpu="host") as machine:
        found = machine.vcpus[0].kvm.get_msrs([0x3B], partial=True)
    return None if found else "IA32_TSC_ADJUST cannot be read"


@pytest.mark.needs_host("tsc-deadline-in-software")
def test_a_tsc_deadline_does_not_make_time_run_away(guest: MakeGuest) -> None:
    """Where the guest's TSC cannot be moved, time cannot skip to what it has to reach."""
    machine = guest(SLEEP, clock="warp", cpu=DEADLINE)
    platform = listen(machine)
    machine.memory.write_u16(0x502, 1)
    poke(machine, LAPIC + 0x320, 0x40000 | VECTOR)
    clock = machine.clock
    platform.lapics[0].write_msr(0x6E0, clock.tsc() + clock.tsc_khz * 500)
    result = machine.run(timeout=30)
    assert result.exit_code == 0, result
    assert count(machine) == 1
    assert clock.now() < 30 * SECOND


@pytest.mark.parametrize("policy", ["paused", "warp"])
def test_what_passes_between_two_runs_is_not_seen(guest: MakeGuest, policy: str) -> None:
    machine = guest(SPIN, clock=policy)
    platform = platform_of(machine)
    poke(machine, HPET + 0x10, 1)
    time.sleep(0.05)
    assert machine.clock.now() == 0, "before the first run"
    assert machine.run(timeout=0.05).outcome is Outcome.TIMEOUT
    before = machine.clock.now(), platform.hpet.counter
    assert before[0] > 0
    time.sleep(0.2)
    assert abs(machine.clock.now() - before[0]) < MS
    assert abs(platform.hpet.counter - before[1]) < MS // 10
    assert machine.run(timeout=0.05).outcome is Outcome.TIMEOUT
    assert machine.clock.now() > before[0]


@pytest.mark.parametrize("policy", ["paused", "warp"])
def test_what_passes_while_a_loop_by_hand_looks_at_an_exit_is_not_seen(
    guest: MakeGuest, policy: str
) -> None:
    machine = guest("E6 10  out 0x10, al\nEB FC  jmp $-2", clock=policy)
    exits = machine.vcpus[0].raw_exits(timeout=30)
    next(exits)
    before = machine.clock.now()
    assert before > 0, "the guest has run"
    time.sleep(0.2)
    assert machine.clock.now() == before
    for _ in range(10):
        next(exits)
    assert before < machine.clock.now() < before + 190 * MS


def test_a_timer_goes_on_where_it_stood(guest: MakeGuest) -> None:
    machine = guest(SLEEP, clock="paused")
    listen(machine, COUNT)
    machine.memory.write_u16(0x502, 1)
    poke(machine, LAPIC + 0x3E0, 0xB)
    poke(machine, LAPIC + 0x320, VECTOR)
    poke(machine, LAPIC + 0x380, 600 * MS)
    assert machine.run(timeout=0.1).outcome is Outcome.TIMEOUT
    time.sleep(0.7)
    began = time.monotonic()
    assert machine.run(timeout=30).exit_code == 0
    assert machine.clock.now() >= 600 * MS
    assert time.monotonic() - began > 0.2, "it was not due yet when the second run began"


def test_in_real_time_it_is_seen(guest: MakeGuest) -> None:
    machine = guest(SPIN)
    assert machine.run(timeout=0.01).outcome is Outcome.TIMEOUT
    before = machine.clock.now()
    time.sleep(0.05)
    assert machine.clock.now() - before >= 50 * MS


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_a_timer_of_the_run_before_comes_to_a_guest_that_only_spins(
    guest: MakeGuest, irqchip: str
) -> None:
    machine = guest(SPIN, irqchip=irqchip)
    if irqchip == "user":
        platform_of(machine)
    assert machine.run(timeout=0.01).outcome is Outcome.TIMEOUT
    fired: list[int] = []
    timer = machine.clock.timer(fired.append)
    timer.arm(machine.clock.now() + 50 * MS)
    assert machine.run(timeout=0.01).outcome is Outcome.TIMEOUT
    assert fired == []
    result = machine.run(timeout=30, until=lambda machine: fired)
    assert result.outcome is Outcome.UNTIL


@pytest.mark.needs_host("has-ia32-tsc-adjust")
def test_what_the_guest_wrote_to_its_tsc_before_anything_was_made_stays(guests: Path) -> None:
    """KVM keeps IA32_TSC_ADJUST until the guest touches a clock, and pykvm from then on."""
    adjust = (1 << 40) + 5
    storm = Storm(guests, "user", cpu="host")
    with storm.machine:
        write = Access(What.WRMSR, 0x3B, adjust)
        read, tsc = Access(What.RDMSR, 0x3B), Access(What.RDMSR, 0x10)
        touch = Access(What.OUT, 0x43, 0x34, size=1)
        wrote, before, ticks, _, after, later = storm.ask(write, read, tsc, touch, read, tsc)
        assert wrote is not None
        assert before == after == adjust
        assert ticks is not None
        assert later is not None
        assert 0 < later - ticks < 1 << 39
