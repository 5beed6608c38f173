"""Events for a vCPU: exceptions that an instruction raised, and software interrupts."""

from __future__ import annotations

from pykvm.emulate.fault import DB, GP, NP, PF, Fault, UnsupportedError
from pykvm.emulate.segments import named
from pykvm.typed import TYPE_CHECKING
from pykvm.x86.registers import CR0, DR6, EFER, RFLAGS

if TYPE_CHECKING:
    from typing import Any

    from pykvm.emulate.refused import Operations, Refused

__all__ = ["EVENT_OPERATIONS", "inject", "inject_step", "unblock_nmi"]

_BP, _OF = 3, 4
_PRESENT, _CODE = 0x80, 8
_TASK_GATE = 5
# The types of gates that an IDT may have, in long mode and outside (SDM 3A 6.11, 6.14.1).
_GATES = {True: (0xE, 0xF), False: (_TASK_GATE, 6, 7, 0xE, 0xF)}


def inject(at: Refused, fault: Fault) -> None:
    """Have the guest take the exception instead of the instruction (SDM 3A 6.5, 6.13)."""
    if fault.address is not None and fault.vector == PF:
        at.sregs.cr2 = fault.address
        at.cpu.engine.commit_sregs()
    # Faults save RFLAGS with RF set, so that the instruction can be restarted (SDM 3B 18.3.1.1).
    at.regs.rflags |= RFLAGS.RF
    at.cpu.engine.commit_regs()
    _raise(at, fault.vector, fault.error)


def _raise(at: Refused, vector: int, error: int | None = None) -> None:
    events = _events(at)
    exception = events.exception
    exception.injected, exception.pending, exception.nr = 1, 0, vector
    # Exceptions push no error code in real mode.
    protected = bool(at.sregs.cr0 & CR0.PE)
    exception.has_error_code = int(error is not None and protected)
    exception.error_code = error or 0
    at.cpu.engine.commit_events()


def _events(at: Refused) -> Any:
    """What is under way, without the shadow of STI or MOV SS: that was one instruction long."""
    events = at.cpu.engine.sync_regs().events
    events.interrupt.shadow = 0
    return events


def inject_step(at: Refused) -> None:
    """#DB after an instruction that began with RFLAGS.TF set (SDM 3B 18.3.1.4)."""
    registers = at.cpu.kvm.get_debugregs()
    registers.dr6 |= DR6.BS
    at.cpu.kvm.set_debugregs(registers)
    _raise(at, DB)


def unblock_nmi(at: Refused) -> None:
    """Let NMIs in again, as each IRET does, whether from their handler or not (SDM 3A 6.7.1)."""
    events = at.cpu.engine.sync_regs().events
    if events.nmi.masked:
        events.nmi.masked = 0
        at.cpu.engine.commit_events()


def _trap(at: Refused, vector: int) -> None:
    """An exception whose RIP is past the instruction."""
    at.finish()
    _raise(at, vector)


def _int3(at: Refused) -> None:
    at.no_lock()
    _check_gate(at, _BP)
    _trap(at, _BP)


def _int1(at: Refused) -> None:
    at.no_lock()
    _trap(at, DB)


def _into(at: Refused) -> None:
    at.no_lock()
    if at.bits == 64:
        raise UnsupportedError("INTO is no instruction of 64-bit code")
    if at.regs.rflags & RFLAGS.OF:
        _check_gate(at, _OF)
        _trap(at, _OF)


def _int(at: Refused) -> None:
    at.no_lock()
    vector = at.instruction.immediate
    _check_gate(at, vector)
    at.finish()
    if vector in (_BP, _OF):
        _raise(at, vector)
        return
    events = _events(at)
    interrupt = events.interrupt
    interrupt.injected, interrupt.soft, interrupt.nr = 1, 1, vector
    at.cpu.engine.commit_events()


def _check_gate(at: Refused, vector: int) -> None:
    """Raise what the processor does unless the gate may be used (SDM 3A 6.12, 2A INT n).

    KVM delivers what it is told to without a look at the gate's code segment.
    """
    if not at.sregs.cr0 & CR0.PE:
        return
    long = bool(at.sregs.efer & EFER.LMA)
    size = 16 if long else 8
    table = at.sregs.idt
    # With the IDT bit: it is the gate that is at fault.
    number = vector * 8 + 2
    if vector * size + size - 1 > table.limit:
        raise Fault(GP, number)
    gate = at.memory.read_as_system(table.base + vector * size, 8)
    kind = gate[5] & 0x1F
    if kind not in _GATES[long] or gate[5] >> 5 & 3 < at.cpl:
        raise Fault(GP, number)
    if not gate[5] & _PRESENT:
        raise Fault(NP, number)
    if kind != _TASK_GATE:
        _check_code_segment(at, int.from_bytes(gate[2:4], "little"), long)


def _check_code_segment(at: Refused, selector: int, long: bool) -> None:
    selected = selector & ~3
    found = named(at, selector).descriptor
    if not (found.s and found.type & _CODE) or found.dpl > at.cpl:
        raise Fault(GP, selected)
    if long and not (found.l and not found.db):
        raise Fault(GP, selected)
    if not found.present:
        raise Fault(NP, selected)


EVENT_OPERATIONS: Operations = {
    "cc": ("int3", _int3),
    "cd": ("int", _int),
    "ce": ("into", _into),
    "f1": ("int1", _int1),
}
