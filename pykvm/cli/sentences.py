"""A VM exit in a sentence: why it happened, and who answers it."""

from __future__ import annotations

from pykvm.cli.describe import target
from pykvm.exits import (
    Debug,
    FailEntry,
    Hlt,
    InternalError,
    IoIn,
    IoOut,
    IrqWindowOpen,
    MmioRead,
    MmioWrite,
    RdMsr,
    SetTpr,
    Shutdown,
    WrMsr,
)
from pykvm.kvm.constants import KVM_INTERNAL_ERROR_EMULATION
from pykvm.typed import TYPE_CHECKING
from pykvm.vcpu.guest_debug import debug_event
from pykvm.x86.msr_names import msr_name

if TYPE_CHECKING:
    from pykvm.exits import Exit
    from pykvm.machine import Machine

__all__ = ["answer", "reason"]

_X2APIC = range(0x800, 0x900)


def reason(exit: Exit) -> str:
    r"""Why the guest has left.

    >>> reason(IoOut(port=0x3F8, size=1, data=b"A"))
    "writes 0x41 'A' to port 0x3f8"
    >>> reason(IoIn(port=0x1F0, size=2, count=256))
    'reads 256 times 2 bytes from port 0x1f0'
    >>> reason(RdMsr(index=0x1B, why=4))
    'reads the MSR 0x1b (IA32_APIC_BASE)'
    """
    match exit:
        case IoIn(port=port, size=size, count=count):
            times = f"{count} times " if count > 1 else ""
            return f"reads {times}{_bytes(size)} from port {port:#x}"
        case IoOut(port=port, size=size, data=data) if len(data) > size:
            return f"writes {len(data) // size} times {_bytes(size)} to port {port:#x}"
        case IoOut(port=port, size=size, value=value):
            return f"writes {_value(value, size)} to port {port:#x}"
        case MmioRead(address=address, size=size):
            return f"reads {_bytes(size)} at {address:#x}, where there is no memory"
        case MmioWrite(address=address, data=data, value=value):
            return f"writes {_value(value, len(data))} at {address:#x}, where there is no RAM"
        case Hlt():
            return "halts until an interrupt comes"
        case RdMsr(index=index):
            return f"reads the MSR {_msr(index)}"
        case WrMsr(index=index, value=value):
            return f"writes {value:#x} to the MSR {_msr(index)}"
        case Debug(exception=exception, dr6=dr6, dr7=dr7):
            event = debug_event(exception, dr6, dr7)
            return f"stops {'after' if event == 'a single step' else 'at'} {event}"
        case IrqWindowOpen():
            return "can take the interrupt that waits for it"
        case SetTpr():
            return "has lowered its task priority (CR8)"
        case InternalError(suberror=suberror) if suberror == KVM_INTERNAL_ERROR_EMULATION:
            return "executes an instruction that KVM refuses"
        case Shutdown():
            return "has died of a triple fault"
        case FailEntry():
            return "cannot be entered: the processor refuses the state of its registers"
    # The first line of what the class says of itself: "KVM_EXIT_HYPERCALL: a hypercall that ...".
    told = (type(exit).__doc__ or "").strip().split("\n")[0].rstrip(".")
    return f"leaves with {told or type(exit).__name__}"


def answer(machine: Machine, exit: Exit) -> str:
    """Who answers an exit that is not answered by hand; empty where that is no question."""
    where = target(exit)
    if where is not None:
        found = machine.bus.find(*where)
        reads = isinstance(exit, (IoIn, MmioRead))
        if found is not None:
            return f"{found.name} answers" if reads else f"{found.name} gets it"
        if not machine.open_bus:
            return "no device is there: the run would end as a crash"
        return f"no device is there: {'it reads all ones' if reads else 'it goes nowhere'}"
    match exit:
        case RdMsr() | WrMsr():
            return "the interrupt controllers and clocks answer, or it is #GP"
        case InternalError(suberror=suberror) if suberror == KVM_INTERNAL_ERROR_EMULATION:
            return "pykvm's emulator executes it"
    return ""


def _bytes(size: int) -> str:
    return "1 byte" if size == 1 else f"{size} bytes"


def _value(value: int, size: int) -> str:
    if size == 1:
        return f"{value:#x} {chr(value)!r}" if 32 <= value < 127 else f"{value:#x}"
    return f"{value:#x} ({_bytes(size)})"


def _msr(index: int) -> str:
    if index in _X2APIC:
        return f"{index:#x} (x2APIC register {index - _X2APIC.start:#x})"
    name = msr_name(index)
    return f"{index:#x} ({name})" if name else f"{index:#x}"
