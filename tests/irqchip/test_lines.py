"""A device's wire, an MSI and an irqfd: the same guest over each irqchip."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pykvm import ConfigError, Machine, Outcome
from support.guest import MakeGuest
from support.host import require_host
from support.interrupts import IN_KERNEL_PRIORITIES
from support.irqchips import IRQCHIPS
from support.listening import (
    LEVEL,
    VECTOR,
    Attached,
    Source,
    count,
    listening,
    once_ready,
    run_until,
)

pytestmark = pytest.mark.kvm


def assert_interrupted(machine: Machine, *, times: int) -> None:
    """So often, and not once more."""
    assert machine.run(timeout=0.05).outcome is Outcome.TIMEOUT
    assert count(machine) == times


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_a_level_interrupts_until_the_device_lets_go(
    guest: MakeGuest, guests: Path, irqchip: str
) -> None:
    """The handler's EOI asks again while the line is up; with split, KVM reports it by an exit."""
    if irqchip == "kernel":
        # Where nothing is ever in service, a level comes again as soon as it is taken.
        require_host(IN_KERNEL_PRIORITIES)
    machine = listening(guest, irqchip, LEVEL | VECTOR)
    line = machine.line(5)
    machine.add(Source(line, times=3), pio=0x11, length=1)
    thread = once_ready(machine, lambda: line.set(True))
    run_until(machine, 3)
    thread.join()
    assert_interrupted(machine, times=3)


@pytest.mark.parametrize("irqchip", IRQCHIPS)
@pytest.mark.parametrize("attached", [False, True])
def test_an_edge_interrupts_once(guest: MakeGuest, irqchip: str, attached: bool) -> None:
    """By a line of the machine's, or by the one that a device was placed with."""
    machine = listening(guest, irqchip, VECTOR)
    if attached:
        device = Attached(times=1)
        machine.add(device, pio=0x11, irq=5)
        line = device.line
    else:
        line = machine.line(5)
        machine.add(Source(line, times=1), pio=0x11, length=1)
    thread = once_ready(machine, lambda: line.set(True))
    run_until(machine, 1)
    thread.join()
    assert_interrupted(machine, times=1)


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_a_message_reaches_the_local_apic(guest: MakeGuest, irqchip: str) -> None:
    machine = listening(guest, irqchip, 1 << 16)
    machine.add(Source(machine.line(5), times=1), pio=0x11, length=1)
    assert machine.send_msi(0xFEE00000, VECTOR) is False, "the local APIC is not enabled yet"
    taken = []
    thread = once_ready(machine, lambda: taken.append(machine.send_msi(0xFEE00000, VECTOR)))
    run_until(machine, 1)
    thread.join()
    assert taken == [True]


def test_an_eventfd_raises_its_interrupt_without_us(guest: MakeGuest) -> None:
    machine = listening(guest, "kernel", VECTOR)
    machine.add(Source(machine.line(6), times=1), pio=0x11, length=1)
    event = os.eventfd(0)
    try:
        machine.irqfd(event, 5)
        thread = once_ready(machine, lambda: os.eventfd_write(event, 1))
        run_until(machine, 1)
        thread.join()
    finally:
        os.close(event)


@pytest.mark.parametrize("irqchip", ["user", "split"])
def test_only_the_kernel_listens_to_an_eventfd(irqchip: str) -> None:
    with Machine(irqchip=irqchip) as machine, pytest.raises(ConfigError, match="irqfd needs KVM"):
        machine.irqfd(0, 5)


def test_wires_that_do_not_exist(kvm: None) -> None:
    with Machine() as machine:
        for irq in (-1, 2, 16):
            with pytest.raises(ConfigError, match=f"^irq.*not {irq}\n|^irq={irq}:"):
                machine.line(irq)
    with Machine(irqchip="none") as machine, pytest.raises(ConfigError, match="no interrupt"):
        machine.line(5)
