"""A device's wire, an MSI and an irqfd: the same guest over each irqchip."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from pykvm import ConfigError, Machine, Mode, Outcome
from pykvm.x86.descriptors import idt, interrupt_gate
from pykvm.x86.state import TableRegister
from support.guest import MakeGuest
from support.host import require_host
from support.interrupts import IN_KERNEL_PRIORITIES
from support.listing import assemble

pytestmark = pytest.mark.kvm

CHIPS = ("user", "split", "kernel")
VECTOR = 0x41
HANDLER = 0x9000
LEVEL = 1 << 15

# Enables the local APIC, programs I/O APIC pin 5 with the entry at 0x600, and halts for ever.
LISTEN = """
    B0 FF                              mov al, 0xff
    E6 21                              out 0x21, al             ; the 8259s are off
    E6 A1                              out 0xa1, al
    BB 00 00 E0 FE                     mov ebx, 0xfee00000
    B9 00 00 C0 FE                     mov ecx, 0xfec00000
    C7 83 F0 00 00 00 FF 01 00 00      mov dword [rbx + 0xf0], 0x1ff
    C7 01 1A 00 00 00                  mov dword [rcx], 0x1a
    8B 04 25 00 06 00 00               mov eax, [0x600]
    89 41 10                           mov [rcx + 0x10], eax
    C7 01 1B 00 00 00                  mov dword [rcx], 0x1b
    C7 41 10 00 00 00 00               mov dword [rcx + 0x10], 0
    E6 10                              out 0x10, al
    FB                                 sti
    F4                                 hlt
    EB FD                              jmp $-1
"""
# Counts at 0x500, tells the device, ends the interrupt.
HANDLE = """
    FF 04 25 00 05 00 00               inc dword [0x500]
    E6 11                              out 0x11, al
    C7 83 B0 00 00 00 00 00 00 00      mov dword [rbx + 0xb0], 0
    48 CF                              iretq
"""


class Ready:
    """Told that the guest listens."""

    name = "ready"

    def __init__(self) -> None:
        self.event = threading.Event()

    def write(self, offset: int, size: int, value: int) -> None:
        self.event.set()


class Source:
    """A level-triggered device: it lowers its line once it was asked often enough."""

    name = "source"

    def __init__(self, line: Any, times: int) -> None:
        self.line = line
        self.left = times

    def write(self, offset: int, size: int, value: int) -> None:
        self.left -= 1
        if self.left <= 0:
            self.line.set(False)


def listening(guest: MakeGuest, irqchip: str, entry: int) -> Machine:
    machine = guest(LISTEN, mode=Mode.LONG, irqchip=irqchip)
    cpu = machine.vcpus[0]
    machine.memory.write_u32(0x600, entry)
    machine.memory.write(HANDLER, assemble(HANDLE))
    machine.memory.write(0x8000, idt({VECTOR: interrupt_gate(cpu.regs.cs.selector, HANDLER)}))
    cpu.regs.idt = TableRegister(base=0x8000, limit=0xFFF)
    machine.add(Ready(), pio=0x10, length=1)
    return machine


def count(machine: Machine) -> int:
    return machine.memory.read_u32(0x500)


def run_until(machine: Machine, counted: int) -> None:
    result = machine.run(timeout=30, until=lambda machine: count(machine) >= counted)
    assert result.outcome is Outcome.UNTIL, f"{result}; {count(machine)} of {counted}"


def once_ready(machine: Machine, action: Any) -> threading.Thread:
    """Do something from another thread once the guest listens."""
    ready = machine.devices["ready"]
    assert isinstance(ready, Ready)

    def wait() -> None:
        assert ready.event.wait(20)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("irqchip", CHIPS)
def test_a_level_interrupts_until_the_device_lets_go(
    guest: MakeGuest, guests: Path, irqchip: str
) -> None:
    """The handler's EOI asks again while the line is up; in the split case KVM tells us of it."""
    if irqchip == "kernel":
        # Where nothing is ever in service, a level comes again as soon as it is taken.
        require_host(IN_KERNEL_PRIORITIES)
    machine = listening(guest, irqchip, LEVEL | VECTOR)
    line = machine.line(5)
    machine.add(Source(line, times=3), pio=0x11, length=1)
    thread = once_ready(machine, lambda: line.set(True))
    run_until(machine, 3)
    thread.join()
    assert machine.run(timeout=0.05).outcome is Outcome.TIMEOUT
    assert count(machine) == 3


@pytest.mark.parametrize("irqchip", CHIPS)
def test_an_edge_interrupts_once(guest: MakeGuest, irqchip: str) -> None:
    machine = listening(guest, irqchip, VECTOR)
    line = machine.line(5)
    machine.add(Source(line, times=1), pio=0x11, length=1)
    thread = once_ready(machine, lambda: line.set(True))
    run_until(machine, 1)
    thread.join()
    assert machine.run(timeout=0.05).outcome is Outcome.TIMEOUT
    assert count(machine) == 1


@pytest.mark.parametrize("irqchip", CHIPS)
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
