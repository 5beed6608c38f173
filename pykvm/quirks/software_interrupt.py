"""INT n from ring 3 that is #UD.

A breakpoint on the guest's #UD handler ends KVM_RUN before the handler has done anything.  If an
INT n stands where the frame on its stack says, the vCPU is taken to where INT n leads: through the
gate n, or to #GP or #NP where the gate is not for ring 3 (SDM 2A, INT n; SDM 3A 6.12, 6.14).
"""

from __future__ import annotations

import struct

from pykvm.errors import ConfigError, MemoryRangeError
from pykvm.quirks.quirk import Quirk
from pykvm.typed import TYPE_CHECKING, Protocol
from pykvm.values.frozen import NamedTuple
from pykvm.x86.descriptors import Gate, decode_segment
from pykvm.x86.registers import RFLAGS
from pykvm.x86.tss import decode_tss

if TYPE_CHECKING:
    from pykvm.quirks.probe_vm import ProbeVM
    from pykvm.x86.descriptors import SegmentDescriptor

__all__ = ["QUIRK", "Arrival", "View", "arrival"]

INVALID_OPCODE, NOT_PRESENT, GENERAL_PROTECTION = 6, 11, 13
INT_N = 0xCD
_INT = struct.Struct("<BB")

_GATE_SIZE = 16
_INTERRUPT_GATE, _TRAP_GATE = 0xE, 0xF
# An error code's bit that says "in the IDT" (SDM 3A 6.13).
_IN_IDT = 1 << 1

_TSS_SIZE = 104
_STACK_ALIGNMENT = 16
# What the processor clears on its way through any gate (SDM 3A 6.12.1.3, 6.14).
_CLEARED = RFLAGS.TF | RFLAGS.NT | RFLAGS.RF | RFLAGS.VM


class View(Protocol):
    """The vCPU at the first instruction of its #UD handler."""

    #: Where the frame is.
    rsp: int
    #: The code segment's selector.
    cs: int
    idt_base: int
    idt_limit: int
    gdt_base: int
    gdt_limit: int
    tss_base: int

    def read(self, address: int, length: int, /) -> bytes:
        """Guest-virtual memory.  Raises MemoryRangeError."""


class Frame(NamedTuple):
    """What the processor pushes (SDM 3A 6.14.2), an error code apart."""

    rip: int
    cs: int
    rflags: int
    rsp: int
    ss: int


_FRAME = struct.Struct("<5Q")


class Arrival(NamedTuple):
    """Where an INT n arrives: registers to set, and the frame to write at `rsp`.

    `cs` is None where it stays as it is.
    """

    rip: int
    rsp: int
    rflags: int
    frame: bytes
    cs: tuple[int, SegmentDescriptor] | None


class _Unusable(Exception):
    """The guest's tables do not lead anywhere: it gets to see the host's #UD."""


def arrival(view: View) -> Arrival | None:
    """Where INT n leads, if it is what brought the vCPU to its #UD handler.

    None for an ordinary #UD, and where the guest's tables or stacks are broken.
    """
    try:
        frame = Frame(*_FRAME.unpack(view.read(view.rsp, _FRAME.size)))
        if frame.cs & 3 != 3:
            return None
        opcode, vector = _INT.unpack(view.read(frame.rip, _INT.size))
        return _arrive(view, frame, vector) if opcode == INT_N else None
    except (MemoryRangeError, ConfigError, _Unusable):
        return None


def _arrive(view: View, frame: Frame, vector: int) -> Arrival:
    fault = _fault(view, vector)
    if fault is None:
        gate = _gate(view, vector)
        frame = frame._replace(
            rip=(frame.rip + _INT.size) % (1 << 64), rflags=frame.rflags & ~RFLAGS.RF
        )
        words: tuple[int, ...] = frame
    else:
        gate = _gate(view, fault)
        if not _usable(gate):
            raise _Unusable
        words = (vector * 8 | _IN_IDT, *frame)
    rflags = frame.rflags & ~_CLEARED
    if gate.type == _INTERRUPT_GATE:
        rflags &= ~RFLAGS.IF
    data = struct.pack(f"<{len(words)}Q", *words)
    rsp = (_stack(view, gate) - len(data)) % (1 << 64)
    return Arrival(gate.offset, rsp, rflags, data, _code_segment(view, gate.selector))


def _fault(view: View, vector: int) -> int | None:
    """The exception that INT n is for ring 3 in place of an interrupt, or None."""
    try:
        gate = _gate(view, vector)
    except _Unusable:
        return GENERAL_PROTECTION
    if gate.type not in (_INTERRUPT_GATE, _TRAP_GATE) or gate.dpl < 3:
        return GENERAL_PROTECTION
    return None if gate.present else NOT_PRESENT


def _gate(view: View, vector: int) -> Gate:
    offset = vector * _GATE_SIZE
    if offset + _GATE_SIZE - 1 > view.idt_limit:
        raise _Unusable
    return Gate.decode(view.read(view.idt_base + offset, _GATE_SIZE), long=True)


def _usable(gate: Gate) -> bool:
    return bool(gate.present) and gate.type in (_INTERRUPT_GATE, _TRAP_GATE)


def _stack(view: View, gate: Gate) -> int:
    """The top of the stack that a gate leads to (SDM 3A 6.14.5)."""
    if gate.ist == _gate(view, INVALID_OPCODE).ist:
        return view.rsp + _FRAME.size
    tss = decode_tss(view.read(view.tss_base, _TSS_SIZE), 64)
    return tss[f"ist{gate.ist}" if gate.ist else "rsp0"] & -_STACK_ALIGNMENT


def _code_segment(view: View, selector: int) -> tuple[int, SegmentDescriptor] | None:
    """The segment that a gate names, None for the one that is loaded."""
    selector &= ~3
    if selector == view.cs:
        return None
    if selector & 4 or selector + 7 > view.gdt_limit:
        raise _Unusable
    descriptor = decode_segment(view.read(view.gdt_base, selector + 8), selector)
    if not (descriptor.s and descriptor.type & 8 and descriptor.present and descriptor.l):
        raise _Unusable
    if descriptor.dpl:
        raise _Unusable
    return selector, descriptor


def _is_invalid(vm: ProbeVM) -> bool:
    return vm.run(bytes([INT_N, 0x80]), 3).vector == INVALID_OPCODE


QUIRK = Quirk(
    "int-n",
    "INT n in ring 3 is #UD, except for vectors 3 and 4",
    _is_invalid,
    "a breakpoint on the guest's #UD handler, where pykvm goes through the gate",
    "an exit for each INT n and each #UD of the guest",
)
