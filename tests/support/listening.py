"""A guest that waits for the interrupt of I/O APIC pin 5, and counts it."""

from __future__ import annotations

import threading
from typing import Any

from pykvm import Machine, Mode, Outcome
from pykvm.x86.descriptors import idt, interrupt_gate
from pykvm.x86.state import TableRegister
from support.guest import MakeGuest
from support.listing import assemble

__all__ = ["LEVEL", "VECTOR", "Attached", "Source", "count", "listening", "once_ready", "run_until"]

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
# Counts at 0x500, writes to the device, ends the interrupt.
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


class Attached(Source):
    """One that gets its line where it is placed."""

    length = 1

    def __init__(self, times: int) -> None:
        super().__init__(None, times)

    def attach(self, lines: Any, memory: Any, clock: Any) -> None:
        self.line = lines.own


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
