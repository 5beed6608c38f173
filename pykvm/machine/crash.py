"""How a guest died, in a sentence: from the exit and the state of the vCPU to a GuestError."""

from __future__ import annotations

from pykvm.errors import GuestError, MemoryRangeError, PykvmError
from pykvm.exits import (
    FailEntry,
    InternalError,
    IoIn,
    IoOut,
    MemoryFault,
    MmioRead,
    MmioWrite,
    Shutdown,
    SystemEvent,
)
from pykvm.kvm.constants import (
    KVM_INTERNAL_ERROR_DELIVERY_EV,
    KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
)
from pykvm.typed import TYPE_CHECKING
from pykvm.values.spelling import in_python, option

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.exits import Exit
    from pykvm.vcpu import CPU
    from pykvm.x86.state import CpuState

__all__ = ["NO_BIOS_HINT", "crash_of", "located", "through_a_zero_vector"]

# Intel SDM volume 3, appendix C: basic exit reasons that mean a failed entry.
_ENTRY_FAILURES = {
    0x80000021: "invalid guest state",
    0x80000022: "MSR loading",
    0x80000029: "machine-check event",
}

_SUBERRORS = {
    KVM_INTERNAL_ERROR_EMULATION: "KVM cannot emulate the instruction",
    KVM_INTERNAL_ERROR_SIMUL_EX: "simultaneous exceptions",
    KVM_INTERNAL_ERROR_DELIVERY_EV: "an exit while an event was delivered",
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON: "an exit that KVM does not expect",
}

NO_BIOS_HINT = (
    "there is no BIOS under this guest: it can set the vector itself, use ports instead, or be "
    "started by firmware"
)


def _unclaimed_hint() -> str:
    return (
        f"let unclaimed accesses find an open bus ({option('unclaimed', 'open-bus')})"
        f"{in_python(', or add a device there')}"
    )


def _place(cpu: CPU, symbol: Callable[[int], str]) -> str:
    rip = cpu.state.linear_rip
    name = symbol(rip)
    return f"at {rip:#x} ({name})" if name else f"at {rip:#x}"


def _bytes(data: bytes) -> str:
    return data.hex(" ") if data else "unknown bytes"


def _instruction(cpu: CPU, exit: InternalError) -> bytes:
    if exit.instruction:
        return exit.instruction
    try:
        return cpu.read(cpu.state.linear_rip, 15)
    except PykvmError:
        return b""


def _explain(cpu: CPU) -> str:
    from pykvm.x86.diagnose import explain

    def read(address: int, length: int) -> bytes:
        return cpu.memory.read(address, length)

    return explain(cpu.state, read)


def _limit(limit: str) -> tuple[str, str, str]:
    return (
        "host limit",
        f"this host's {limit} (tried just now)",
        "run it on a host with VT-x or SVM; `pykvm info` lists what this one gets wrong",
    )


def _shutdown(cpu: CPU, exit: Shutdown) -> tuple[str, str, str]:
    if _was_reset(cpu.state):
        return (
            "triple fault",
            "its cause is not known: the vCPU is in the state that a reset leaves, as KVM puts it "
            "on some hosts at a triple fault",
            "`pykvm info` lists the quirk `triple-fault` if this host's KVM does; a trace shows "
            f"the last exits before it ({option('on_exit')})",
        )
    return "triple fault", _explain(cpu), ""


def _was_reset(state: CpuState) -> bool:
    """Whether these are the registers after INIT (SDM 3A table 10-1), whatever came before.

    The SVM manual leaves the guest's state undefined after a shutdown (APM 2 15.14.3), so KVM
    initialises the vCPU before it reports one.
    """
    from pykvm.x86.entry import reset

    def essence(state: CpuState) -> tuple[int, ...]:
        return state.rip, state.rsp, state.rbp, state.cr3, state.cs.base, state.cs.selector

    return essence(state) == essence(reset())


def begins_anew(cpu: CPU, exit: Exit) -> bool:
    """Whether the exit is of a vCPU that KVM has reset by INIT and that found nothing to execute.

    No code reaches these registers by itself: the base of CS is out of its reach.
    """
    return not isinstance(exit, Shutdown) and _was_reset(cpu.state)


def _internal_error(cpu: CPU, exit: InternalError, name: str, why: str) -> tuple[str, str, str]:
    what = _SUBERRORS.get(exit.suberror, f"suberror {exit.suberror}")
    if exit.suberror != 1:
        data = " ".join(f"{word:#x}" for word in exit.data)
        return "KVM internal error", f"{what} (data: {data or 'none'})", ""
    lost = _unbacked(cpu)
    if lost:
        return "wild jump", lost, ""
    code = _instruction(cpu, exit)
    called = f"{name} ({_bytes(code)})" if name else f"that starts with {_bytes(code)}"
    return (
        "refused instruction",
        f"{what} {called}" + (f", nor can pykvm: {why}" if why else ""),
        "the state is as before the instruction: set registers and RIP by hand to go on",
    )


def _unbacked(cpu: CPU) -> str:
    """Why no instruction can be fetched at RIP, or the empty string."""
    rip = cpu.state.linear_rip
    walk = cpu.walk(rip, access="execute")
    if walk.physical is None:
        return f"the code at {rip:#x} is not mapped: {walk.fault}"
    try:
        cpu.memory.read(walk.physical, 1)
    except MemoryRangeError:
        return f"there is no memory at {walk.physical:#x}, where the guest executes"
    return ""


def _fail_entry(cpu: CPU, exit: FailEntry) -> tuple[str, str, str]:
    reason = exit.hardware_entry_failure_reason
    problems = cpu.state.problems()
    name = _ENTRY_FAILURES.get(reason, "a reason that the CPU's manual may list")
    return (
        "entry failure",
        f"the processor refused to enter the guest: {name} ({reason:#x}, on host CPU {exit.cpu})",
        "; ".join(problems)
        or "compare the vCPU's state with the checks of SDM volume 3, chapter 27",
    )


def _access(cpu: CPU, exit: IoIn | IoOut | MmioRead | MmioWrite) -> tuple[str, str, str]:
    if isinstance(exit, IoIn):
        what = f"read {exit.size} byte(s) from port {exit.port:#x}"
    elif isinstance(exit, IoOut):
        what = f"wrote {_bytes(exit.data[:8])} to port {exit.port:#x}"
    elif isinstance(exit, MmioRead):
        what = f"read {exit.size} byte(s) at physical address {exit.address:#x}"
    else:
        what = f"wrote {_bytes(exit.data)} at physical address {exit.address:#x}"
    if isinstance(exit, IoIn | IoOut):
        where = "no device"
    else:
        rom = cpu.memory.region_at(exit.address)
        where = f"ROM ({rom.name})" if rom is not None else "no memory and no device"
    return "wild access", f"the guest {what}, where there is {where}", _unclaimed_hint()


def _memory_fault(cpu: CPU, exit: MemoryFault) -> tuple[str, str, str]:
    return (
        "memory fault",
        f"the host cannot give the guest {exit.size:#x} bytes at physical address "
        f"{exit.address:#x} (flags {exit.flags:#x})",
        "",
    )


def through_a_zero_vector(cpu: CPU) -> str:
    """That the guest came here by an interrupt whose vector in real mode's table is 0000:0000."""
    from pykvm.x86.diagnose import zero_vector

    return zero_vector(cpu.state, cpu.memory.read) or ""


def crash_of(
    cpu: CPU,
    exit: Exit,
    symbol: Callable[[int], str],
    refusal: tuple[str, str] = ("", ""),
    limit: str = "",
) -> GuestError:
    """What killed the guest, given the exit that told it.

    `symbol` names a guest-virtual address, or gives the empty string.  `refusal` is the name of an
    instruction that KVM refused, and why pykvm could not emulate it, as far as that is known.
    `limit` is what this host's KVM does wrong with the instruction at RIP, if it was found to.
    """
    known = not (isinstance(exit, Shutdown) and _was_reset(cpu.state))
    way = through_a_zero_vector(cpu) if known else ""
    match exit:
        case Shutdown() if limit:
            kind, cause, hint = _limit(limit)
        case Shutdown():
            kind, cause, hint = _shutdown(cpu, exit)
        case InternalError():
            kind, cause, hint = _internal_error(cpu, exit, *refusal)
        case FailEntry():
            kind, cause, hint = _fail_entry(cpu, exit)
        case IoIn() | IoOut() | MmioRead() | MmioWrite():
            kind, cause, hint = _access(cpu, exit)
        case MemoryFault():
            kind, cause, hint = _memory_fault(cpu, exit)
        case SystemEvent():
            kind, cause, hint = "guest panic", f"the guest reported a crash ({exit!r})", ""
        case _:
            kind, cause, hint = "unexpected exit", repr(exit), ""
    if way:
        kind, cause, hint = "wild interrupt", f"{way}, and then: {kind}: {cause}", NO_BIOS_HINT
    return GuestError(
        kind,
        f"{cause}, {_place(cpu, symbol)}" if known else cause,
        exit=exit,
        registers=dict(cpu.regs),
        hint=hint,
    )


def located(error: GuestError, cpu: CPU, exit: Exit, symbol: Callable[[int], str]) -> GuestError:
    """The same error with where the guest is, its registers and the exit."""
    return GuestError(
        error.kind,
        f"{error.cause}, {_place(cpu, symbol)}",
        exit=exit,
        registers=dict(cpu.regs),
        hint=error.hint,
    )
