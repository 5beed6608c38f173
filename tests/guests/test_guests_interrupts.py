"""The guests that show clocks and interrupts: each prints one line and ends with 0."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from pykvm import Machine, Outcome
from pykvm.irqchip.tsc_offset import offset_is_kept, tsc_offset
from support.host import require_host
from support.interrupts import DEADLINE, IN_KERNEL_PRIORITIES, with_deadline

pytestmark = pytest.mark.kvm

SETTINGS = (
    ("user", "realtime"),
    ("user", "paused"),
    ("user", "warp"),
    ("split", "realtime"),
    ("kernel", "realtime"),
    ("kernel", "paused"),
)


class Shown(NamedTuple):
    """What a guest says, as a regular expression, and how many processors it wants."""

    line: str
    vcpus: int = 1


GUESTS = {
    "hpet": Shown(r"HPET: 3 timers at \d+ Hz, one-shot, periodic \(5\)"),
    "ioapic": Shown("IOAPIC: this line was sent by interrupts"),
    "lapic_timer": Shown(r"LAPIC timer: one-shot, periodic \(5\), TSC deadline"),
    "nmi": Shown("NMI: 2 with interrupts off, the second after the first"),
    "pit": Shown("PIT: 10 ticks at 1000 Hz through the 8259"),
    "priority": Shown(r"priority: \(H\)2"),
    "rtc": Shown("RTC: alarm at midnight, 2000-1-1"),
    "smp": Shown("SMP: 2 processors, 50 rounds of ping-pong", vcpus=2),
    "spurious": Shown("spurious: IRQ (7|15) with nothing in service"),
    "tasks": Shown("tasks: two loops in ring 3 took turns"),
    "tpr": Shown("TPR: class 5 waited for CR8 to fall to 4"),
}


@pytest.mark.parametrize(("irqchip", "clock"), SETTINGS)
@pytest.mark.parametrize("name", GUESTS)
def test_each_guest_prints_its_line_and_exits_with_0(
    guests: Path, name: str, irqchip: str, clock: str
) -> None:
    shown = GUESTS[name]
    if name == "priority" and irqchip != "user":
        require_host(IN_KERNEL_PRIORITIES)
    line, cpu = shown.line, with_deadline(irqchip)
    if name == "lapic_timer" and cpu != DEADLINE:
        line += " not offered"
    with Machine(
        guests / f"{name}.elf", vcpus=shown.vcpus, irqchip=irqchip, clock=clock, cpu=cpu
    ) as machine:
        result = machine.run(timeout=20)
        said = machine.serial.text
    assert re.fullmatch(f"{line}\n", said), f"{said!r}; {result}"
    assert result.exit_code == 0, result


def test_the_time_stamp_counter_can_be_set_where_the_host_lets_it(guests: Path) -> None:
    with Machine(guests / "tsc.elf", cpu="host") as machine:
        cpu = machine.vcpus[0]
        leaf7 = [leaf.ebx for leaf in cpu.kvm.get_cpuid2() if leaf.function == 7]
        movable = offset_is_kept(cpu, tsc_offset(cpu)) or machine.clock.tsc_by_kvm
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


def test_seen_exit_by_exit(guests: Path) -> None:
    with Machine(guests / "priority.elf") as machine:
        seen: list[object] = []
        result = machine.run(timeout=30, on_exit=lambda cpu, exit: seen.append(exit))
        assert result.exit_code == 0, result
        assert len(seen) > 20


def test_without_controllers_they_do_not_get_far(guests: Path) -> None:
    with Machine(guests / "pit.elf", irqchip="none") as machine:
        assert machine.run(timeout=30).outcome is Outcome.CRASHED


def test_more_processors(guests: Path) -> None:
    with Machine(guests / "smp.elf", vcpus=4, args=["4"]) as machine:
        result = machine.run(timeout=20)
        assert machine.serial.text == "SMP: 4 processors, 50 rounds of ping-pong\n", result


def test_a_processor_that_does_not_come(guests: Path) -> None:
    with Machine(guests / "smp.elf", vcpus=1, args=["2"], clock="warp") as machine:
        result = machine.run(timeout=20)
        assert machine.serial.text == "SMP: 1 of 2 processors\n", result
        assert result.exit_code == 1
