"""VM exits in words, for traces and for the stepping prompt."""

from __future__ import annotations

from pykvm.bus import Space
from pykvm.exits import IoIn, IoOut, MmioRead, MmioWrite
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from pykvm.exits import Exit
    from pykvm.machine import Machine
    from pykvm.vcpu import CPU

__all__ = ["exit_fields", "linear_rip", "location", "target"]


def linear_rip(cpu: CPU) -> int:
    """The linear address that RIP stands for."""
    base: int = cpu.engine.sregs().cs.base
    rip: int = cpu.engine.regs().rip
    return (base + rip) & (1 << 64) - 1


def location(machine: Machine, address: int) -> str:
    """A code address with its symbol: "0x100123 main+0x12"."""
    name = machine.symbol_at(address)
    return f"{address:#x} {name}" if name else f"{address:#x}"


def target(exit: Exit) -> tuple[Space, int] | None:
    """The port or the address that an exit is about, if it is about one."""
    match exit:
        case IoIn(port=port) | IoOut(port=port):
            return Space.PIO, port
        case MmioRead(address=address) | MmioWrite(address=address):
            return Space.MMIO, address
    return None


def device_name(machine: Machine, exit: Exit) -> str:
    """Who answers this exit: a device's name, "nobody", or nothing where that is no question."""
    where = target(exit)
    if where is None:
        return ""
    found = machine.bus.find(*where)
    return "nobody" if found is None else found.name


def exit_fields(exit: Exit) -> dict[str, Any]:
    """An exit as JSON knows it: bytes in hex, tuples as lists.

    >>> exit_fields(IoOut(port=0x80, size=1, data=b"A"))
    {'exit': 'IoOut', 'port': 128, 'size': 1, 'data': '41'}
    """
    fields: dict[str, Any] = {"exit": type(exit).__name__}
    names: tuple[str, ...] = type(exit).__match_args__
    for name in names:
        value = getattr(exit, name)
        fields[name] = value.hex() if isinstance(value, bytes) else value
    return fields
