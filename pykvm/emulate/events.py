"""Events for a vCPU: exceptions that an instruction raised, and software interrupts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm.emulate.fault import DB, GP, PF, Fault, UnsupportedError
from pykvm.x86.registers import CR0, DR6, EFER, RFLAGS

if TYPE_CHECKING:
    from typing import Any

    from pykvm.emulate.refused import Operations, Refused

__all__ = ["EVENT_OPERATIONS", "inject", "inject_step", "unblock_nmi"]

_BP, _OF = 3, 4
_EXCEPTIONS = 32


def inject(at: Refused, fault: Fault) -> None:
    """Have the guest take the exception instead of the instruction (SDM 3A 6.5, 6.13)."""
    if fault.address is not None and fault.vector == PF:
        at.special.cr2 = fault.address
        at.cpu.take_special()
    # Faults save RFLAGS with RF set, so that the instruction can be restarted (SDM 3B 18.3.1.1).
    at.regs.rflags |= RFLAGS.RF
    at.cpu.take_general()
    _raise(at, fault.vector, fault.error)


def _raise(at: Refused, vector: int, error: int | None = None) -> None:
    events = _events(at)
    exception = events.exception
    exception.injected, exception.pending, exception.nr = 1, 0, vector
    # Exceptions push no error code in real mode.
    protected = bool(at.special.cr0 & CR0.PE)
    exception.has_error_code = int(error is not None and protected)
    exception.error_code = error or 0
    at.cpu.take_events()


def _events(at: Refused) -> Any:
    """What is under way, without the shadow of STI or MOV SS: that was one instruction long."""
    events = at.cpu.everything().events
    events.interrupt.shadow = 0
    return events


def inject_step(at: Refused) -> None:
    """#DB behind an instruction that began with RFLAGS.TF set (SDM 3B 18.3.1.4)."""
    registers = at.cpu.kvm.get_debugregs()
    registers.dr6 |= DR6.BS
    at.cpu.kvm.set_debugregs(registers)
    _raise(at, DB)


def unblock_nmi(at: Refused) -> None:
    """Let NMIs in again, as each IRET does, whether from their handler or not (SDM 3A 6.7.1)."""
    events = at.cpu.everything().events
    if events.nmi.masked:
        events.nmi.masked = 0
        at.cpu.take_events()


def _trap(at: Refused, vector: int) -> None:
    """An exception whose RIP is behind the instruction."""
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
    at.cpu.take_events()


def _check_gate(at: Refused, vector: int) -> None:
    """Raise #GP where the gate's DPL keeps this ring out (SDM 3A 6.12.1.2)."""
    if not at.cpl:
        return
    size = 16 if at.special.efer & EFER.LMA else 8
    table = at.special.idt
    selected = vector * 8 + 2
    if vector * size + size - 1 > table.limit:
        raise Fault(GP, selected)
    gate = at.memory.read_as_system(table.base + vector * size, 8)
    if gate[5] >> 5 & 3 < at.cpl:
        raise Fault(GP, selected)


EVENT_OPERATIONS: Operations = {
    "cc": ("int3", _int3),
    "cd": ("int", _int),
    "ce": ("into", _into),
    "f1": ("int1", _int1),
}
