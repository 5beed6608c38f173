"""Real-mode guests with an interrupt table, over interrupt controllers in software."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pykvm import ConfigError, Machine
from pykvm.bus import Space
from pykvm.irqchip.user import UserIrqChip
from support.host import host_probe
from support.listing import assemble

if TYPE_CHECKING:
    from pykvm.irqchip.wiring import Platform

__all__ = [
    "COUNT",
    "DEADLINE",
    "END",
    "IN_KERNEL_PRIORITIES",
    "VECTOR",
    "count",
    "listen",
    "platform_of",
    "poke",
    "put_handler",
    "with_deadline",
]

VECTOR = 0x41

# Each handler counts in the word at 0x500.
COUNT = """
    FF 06 00 05              inc word [0x500]
    CF                       iret
"""
END = """
    FF 06 00 05              inc word [0x500]
    66 60                    pushad
    66 B9 0B 08 00 00        mov ecx, 0x80b             ; x2APIC: EOI
    66 31 C0                 xor eax, eax
    66 31 D2                 xor edx, edx
    0F 30                    wrmsr
    66 61                    popad
    CF                       iret
"""


IN_KERNEL_PRIORITIES = "in-kernel-lapic-knows-priorities"


@host_probe(IN_KERNEL_PRIORITIES)
def in_kernel_lapic_knows_priorities() -> str | None:
    """Whether a handler that takes interrupts again is spared those of its own class."""
    guest = Path(__file__).parents[2] / "guests" / "build" / "priority.elf"
    with Machine(guest, irqchip="kernel") as machine:
        result = machine.run(timeout=20)
    return None if result.exit_code == 0 else "a handler is interrupted by its own class"


DEADLINE = "+tsc_deadline_timer"


def with_deadline(irqchip: str) -> str:
    """The CPU model that has the TSC-deadline timer, if a local APIC can have it on this host."""
    try:
        Machine(irqchip=irqchip, cpu=DEADLINE).close()
    except ConfigError:
        return "baseline"
    return DEADLINE


def platform_of(machine: Machine) -> Platform:
    """The interrupt controllers and clocks of a machine, which exist from now on."""
    irqchip = machine._board.irqchip
    assert isinstance(irqchip, UserIrqChip)
    irqchip.make()
    assert irqchip.platform is not None
    return irqchip.platform


def poke(machine: Machine, address: int, value: int, size: int = 4) -> None:
    """Write a register, of a port below 64 KiB, as the guest would."""
    space = Space.PIO if address < 0x10000 else Space.MMIO
    assert machine.bus.write(space, address, size, value)


def put_handler(machine: Machine, handler: str, *, vector: int = VECTOR) -> None:
    """Put a handler at a vector."""
    code = 0x600 + 0x20 * (vector % 16)
    machine.memory.write(code, assemble(handler))
    machine.memory.write_u32(4 * vector, code)


def listen(
    machine: Machine, handler: str = COUNT, *, vector: int = VECTOR, x2apic: bool = False
) -> Platform:
    """Put a handler at a vector, and enable the local APICs."""
    put_handler(machine, handler, vector=vector)
    platform = platform_of(machine)
    for lapic in platform.lapics:
        lapic.write(0xF0, 4, 0x1FF)
        if x2apic:
            lapic.base |= 0x400
    return platform


def count(machine: Machine) -> int:
    """How many interrupts were handled."""
    return machine.memory.read_u16(0x500)
