"""The guests that show clocks and interrupts: each prints one line and ends with 0."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from pykvm import Machine
from support.host import host_probe, require_host

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


@host_probe("in-kernel-lapic-knows-priorities")
def in_kernel_lapic_knows_priorities() -> str | None:
    """Whether a handler that takes interrupts again is spared those of its own class."""
    guest = Path(__file__).parents[2] / "guests" / "build" / "priority.elf"
    with Machine(guest, irqchip="kernel") as machine:
        result = machine.run(timeout=20)
    return None if result.exit_code == 0 else "a handler is interrupted by its own class"


@pytest.mark.parametrize(("irqchip", "clock"), SETTINGS)
@pytest.mark.parametrize("name", GUESTS)
def test_it_shows_what_it_is_for(guests: Path, name: str, irqchip: str, clock: str) -> None:
    shown = GUESTS[name]
    if name == "priority" and irqchip != "user":
        require_host("in-kernel-lapic-knows-priorities")
    with Machine(
        guests / f"{name}.elf", vcpus=shown.vcpus, irqchip=irqchip, clock=clock
    ) as machine:
        result = machine.run(timeout=20)
        said = machine.serial.text
    assert re.fullmatch(f"{shown.line}\n", said), f"{said!r}; {result}"
    assert result.exit_code == 0, result


def test_the_time_stamp_counter(guests: Path) -> None:
    """Where guests cannot have a counter of their own they see that, or are offered no register."""
    with Machine(guests / "tsc.elf") as machine:
        result = machine.run(timeout=20)
        said = machine.serial.text, result.exit_code
        movable = machine.clock.tsc_movable
    if movable:
        assert said == ("TSC: set ahead by 2^40, set back by IA32_TSC_ADJUST\n", 0), result
    else:
        assert said in [
            ("TSC: no IA32_TSC_ADJUST\n", 3),
            ("TSC: a write has no effect on this host\n", 4),
        ], result


def test_more_processors(guests: Path) -> None:
    with Machine(guests / "smp.elf", vcpus=4, args=["4"]) as machine:
        result = machine.run(timeout=20)
        assert machine.serial.text == "SMP: 4 processors, 50 rounds of ping-pong\n", result


def test_a_processor_that_does_not_come(guests: Path) -> None:
    with Machine(guests / "smp.elf", vcpus=1, args=["2"], clock="warp") as machine:
        result = machine.run(timeout=20)
        assert machine.serial.text == "SMP: 1 of 2 processors\n", result
        assert result.exit_code == 1
