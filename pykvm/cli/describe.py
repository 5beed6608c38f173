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

__all__ = [
    "UNCLAIMED",
    "answer_of",
    "device_name",
    "exit_fields",
    "linear_rip",
    "location",
    "target",
]

#: Stands for a device where there is none.
UNCLAIMED = "unclaimed"

# Answers up to this many bytes are numbers, longer ones are strings of them.
_NUMBER = 8


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
    """Who answers this exit: a device's name, "unclaimed", or nothing where that is no question."""
    where = target(exit)
    if where is None:
        return ""
    found = machine.bus.find(*where)
    return UNCLAIMED if found is None else found.name


def answer_of(exit: Exit) -> str:
    """What the guest gets: "0x60", the bytes of a long read, "#GP", "done" for a WRMSR."""
    data = exit.answered
    if data is None:
        # Some accesses are done with at once: no answer waits in the page.
        return "#GP" if exit.awaits_answer and not exit.is_over else ""
    if not data:
        return "done"
    return f"{int.from_bytes(data, 'little'):#x}" if len(data) <= _NUMBER else repr(data)


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
