"""Tables of the processor as text: GDT, IDT and IVT, TSS, page tables."""

from __future__ import annotations

from pykvm.bus import Space
from pykvm.errors import ConfigError, MemoryRangeError
from pykvm.typed import TYPE_CHECKING
from pykvm.vcpu.registers import SEGMENTS
from pykvm.x86.descriptors import Gate, SegmentDescriptor
from pykvm.x86.tss import decode_tss

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pykvm.machine import Machine
    from pykvm.vcpu import CPU

__all__ = ["gdt_lines", "idt_lines", "tss_lines", "walk_lines"]

# A table has 8,192 entries at most (SDM 3A 3.5.1); so many lines no one reads.
_MOST = 256
_LMA = 1 << 10
_PE = 1
_TSS_BITS = {1: 16, 3: 16, 9: 32, 11: 32}
_TSS_SIZES = {16: 44, 32: 104, 64: 104}


def gdt_lines(cpu: CPU) -> list[str]:
    """The entries of the GDT that are not null, and which segment registers name them."""
    state = cpu.state
    long = bool(state.efer & _LMA)
    image = _table(cpu, state.gdt.base, state.gdt.limit)
    lines = [f"GDT at {state.gdt.base:#x}, limit {state.gdt.limit:#x}"]
    at = 0
    while at + 8 <= len(image):
        raw = image[at : at + 8]
        # A system descriptor of long mode is 16 bytes long.
        system = long and not raw[5] & 0x10 and raw[5] & 0xF != 0
        size = 16 if system and at + 16 <= len(image) else 8
        if any(raw):
            descriptor = SegmentDescriptor.decode(image[at : at + size], long=size == 16)
            users = ", ".join(
                name
                for name in SEGMENTS
                if not getattr(state, name).unusable and getattr(state, name).selector & ~7 == at
            )
            lines.append(f"  {at:04x} {descriptor}" + (f"  <- {users}" if users else ""))
        at += size
    return lines


def idt_lines(machine: Machine, cpu: CPU) -> list[str]:
    """The gates of the IDT that are present, or the handlers of real mode's vector table."""
    state = cpu.state
    image = _table(cpu, state.idt.base, state.idt.limit)
    if not state.cr0 & _PE:
        lines = [f"interrupt vector table at {state.idt.base:#x}, limit {state.idt.limit:#x}"]
        for vector in range(min(len(image) // 4, _MOST)):
            offset = int.from_bytes(image[4 * vector : 4 * vector + 2], "little")
            segment = int.from_bytes(image[4 * vector + 2 : 4 * vector + 4], "little")
            if offset or segment:
                lines.append(f"  {vector:02x} {segment:04x}:{offset:04x}")
        return lines
    long = bool(state.efer & _LMA)
    size = 16 if long else 8
    lines = [f"IDT at {state.idt.base:#x}, limit {state.idt.limit:#x}"]
    for vector in range(min(len(image) // size, _MOST)):
        gate = Gate.decode(image[size * vector : size * (vector + 1)], long=long)
        if gate.present:
            name = machine.symbol_at(gate.offset)
            lines.append(f"  {vector:02x} {gate}" + (f" {name}" if name else ""))
    if len(lines) == 1:
        lines.append("  no gate is present: any exception or interrupt is a triple fault")
    return lines


def tss_lines(cpu: CPU) -> list[str]:
    """The fields of the task state segment that TR names, but for those that are 0."""
    state = cpu.state
    tr = state.tr
    bits = 64 if state.efer & _LMA else _TSS_BITS.get(tr.type, 0)
    if not bits or tr.unusable or not tr.present:
        raise ConfigError("TR names no task state segment")
    fields = decode_tss(cpu.read(tr.base, _TSS_SIZES[bits]), bits)
    told = " ".join(f"{name}={value:x}" for name, value in fields.items() if value)
    return [f"{bits}-bit TSS at {tr.base:#x}, limit {tr.limit:#x}", f"  {told or 'all zero'}"]


def walk_lines(machine: Machine, cpu: CPU, address: int) -> list[str]:
    """How an address is translated, and what is at the end of that."""
    walk = cpu.walk(address)
    lines = str(walk).split("\n")
    if not walk.levels and walk.fault is None:
        lines[0] = f"{address:#x} without paging: linear addresses are physical ones"
    if walk.physical is not None:
        lines.append(f"  in {_place(machine, walk.physical)}")
    return lines


def _place(machine: Machine, address: int) -> str:
    for region in machine.memory.regions:
        if region.start <= address < region.end:
            return str(region)
    found = machine.bus.find(Space.MMIO, address)
    return str(found) if found is not None else "no memory, and no device is there"


def _table(cpu: CPU, base: int, limit: int) -> bytes:
    """As much of a descriptor table as can be read, page by page."""
    found = b""
    end = base + limit + 1
    for start, length in _pages(base, end):
        piece = _page(cpu, start, length)
        found += piece
        if not piece:
            break
    return found


def _page(cpu: CPU, start: int, length: int) -> bytes:
    try:
        return cpu.read(start, length)
    except MemoryRangeError:
        return b""


def _pages(start: int, end: int) -> Iterator[tuple[int, int]]:
    while start < end:
        length = min(0x1000 - start % 0x1000, end - start)
        yield start, length
        start += length
