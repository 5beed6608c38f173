"""The guests that show interrupts and clocks: each says its line and ends with its code."""

from __future__ import annotations

from pathlib import Path

import pytest

from pykvm import Machine, Outcome
from pykvm.chipset import offset_is_kept, tsc_offset

pytestmark = pytest.mark.kvm

LINES = {
    "pit": "PIT: 10 ticks at 1000 Hz through the 8259",
    "lapic_timer": "LAPIC timer: one-shot, periodic (5), TSC deadline",
    "hpet": "HPET: 3 timers at 100000000 Hz, one-shot, periodic (5)",
    "rtc": "RTC: alarm at midnight, 2000-1-1",
    "ioapic": "IOAPIC: this line was sent by interrupts",
    "nmi": "NMI: 2 with interrupts off, the second after the first",
    "priority": "priority: (H)2",
    "spurious": "spurious: IRQ 15 with nothing in service",
    "tpr": "TPR: class 5 waited for CR8 to fall to 4",
    "tasks": "tasks: two loops in ring 3 took turns",
}


@pytest.mark.parametrize("name", LINES)
def test_its_line_and_its_code(guests: Path, name: str) -> None:
    with Machine(guests / f"{name}.elf") as machine:
        result = machine.run(timeout=30)
        assert (machine.serial.text, result.exit_code) == (LINES[name] + "\n", 0), result


@pytest.mark.parametrize("policy", ["paused", "warp"])
@pytest.mark.parametrize("name", ["pit", "hpet", "rtc", "ioapic"])
def test_under_the_other_policies_of_time(guests: Path, name: str, policy: str) -> None:
    with Machine(guests / f"{name}.elf", clock=policy) as machine:
        result = machine.run(timeout=30)
        assert (machine.serial.text, result.exit_code) == (LINES[name] + "\n", 0), result


def test_seen_exit_by_exit(guests: Path) -> None:
    with Machine(guests / "priority.elf") as machine:
        seen: list[object] = []
        result = machine.run(timeout=30, on_exit=lambda cpu, exit: seen.append(exit))
        assert (machine.serial.text, result.exit_code) == (LINES["priority"] + "\n", 0)
        assert len(seen) > 20


def test_the_time_stamp_counter_can_be_set_where_the_host_lets_it(guests: Path) -> None:
    with Machine(guests / "tsc.elf", cpu="host") as machine:
        cpu = machine.vcpus[0]
        leaf7 = [leaf.ebx for leaf in cpu.kvm.get_cpuid2() if leaf.function == 7]
        movable = offset_is_kept(cpu, tsc_offset(cpu))
        result = machine.run(timeout=30)
        if not any(ebx & 2 for ebx in leaf7):
            expected = 3, "TSC: no IA32_TSC_ADJUST\n"
        elif movable:
            expected = 0, "TSC: set ahead by 2^40, set back by IA32_TSC_ADJUST\n"
        else:
            expected = 4, "TSC: a write has no effect on this host\n"
        assert (result.exit_code, machine.serial.text) == expected


def test_the_baseline_has_no_tsc_adjust(guests: Path) -> None:
    with Machine(guests / "tsc.elf") as machine:
        assert machine.run(timeout=30).exit_code == 3


@pytest.mark.parametrize("processors", [2, 4])
def test_smp(guests: Path, processors: int) -> None:
    with Machine(guests / "smp.elf", vcpus=processors, args=[str(processors)]) as machine:
        result = machine.run(timeout=50)
        line = f"SMP: {processors} processors, 50 rounds of ping-pong\n"
        assert (machine.serial.text, result.exit_code) == (line, 0), result


def test_smp_with_fewer_processors_than_asked_for(guests: Path) -> None:
    with Machine(guests / "smp.elf", vcpus=2, args=["3"]) as machine:
        result = machine.run(timeout=50)
        assert (machine.serial.text, result.exit_code) == ("SMP: 2 of 3 processors\n", 1), result


@pytest.mark.parametrize("irqchip", ["none"])
def test_without_controllers_they_do_not_get_far(guests: Path, irqchip: str) -> None:
    with Machine(guests / "pit.elf", irqchip=irqchip) as machine:
        assert machine.run(timeout=30).outcome is Outcome.CRASHED
