"""The registers of a vCPU by name: `cpu.regs.rip`, `cpu.regs.cr3`, `cpu.regs.cs.selector`.

General registers are read and written in the shared kvm_run page (KVM_CAP_SYNC_REGS), so that a
handler that asks for them costs no ioctl from the second time on.  The others go through
KVM_GET_SREGS and KVM_SET_SREGS.
"""

from __future__ import annotations

from operator import attrgetter

from pykvm.kvm.uapi import kvm_sregs
from pykvm.typed import TYPE_CHECKING, Protocol, overload
from pykvm.values.checks import word
from pykvm.x86.registers import EFER
from pykvm.x86.state import CpuState, SegmentRegister, TableRegister, check_record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

__all__ = ["CONTROL", "GENERAL", "SEGMENTS", "TABLES", "Registers", "sregs_of", "state_of"]

GENERAL = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags"),
)
CONTROL = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")
SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
TABLES = ("gdt", "idt")

_SEGMENT_FIELDS = SegmentRegister.__slots__
_LIMIT = 1 << 64

# As kvm_segment and kvm_sregs have them.
_segment_fields = attrgetter(
    *("base", "limit", "selector", "type", "present", "dpl", "db", "s", "l", "g", "avl"), "unusable"
)
_control_fields = attrgetter(*CONTROL)
_NO_INTERRUPTS = (0, 0, 0, 0)


class RegisterFile(Protocol):
    """Where registers come from and go to: a vCPU's engine."""

    def regs(self) -> Any:
        """The current struct kvm_regs."""

    def dirty_regs(self) -> None:
        """Called before a general register is written."""

    def sregs(self) -> Any:
        """The current struct kvm_sregs."""

    def set_sregs(self, sregs: Any) -> None:
        """Write struct kvm_sregs back."""


class _General:
    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, registers: None, owner: type) -> _General: ...
    @overload
    def __get__(self, registers: Registers, owner: type) -> int: ...
    def __get__(self, registers: Registers | None, owner: type) -> int | _General:
        if registers is None:
            return self
        value: int = getattr(registers.source.regs(), self.name)
        return value

    def __set__(self, registers: Registers, value: int) -> None:
        if type(value) is not int or not 0 <= value < _LIMIT:
            value = word(self.name, value, 64)
        registers.source.dirty_regs()
        setattr(registers.source.regs(), self.name, value)


class _Control:
    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, registers: None, owner: type) -> _Control: ...
    @overload
    def __get__(self, registers: Registers, owner: type) -> int: ...
    def __get__(self, registers: Registers | None, owner: type) -> int | _Control:
        if registers is None:
            return self
        value: int = getattr(registers.source.sregs(), self.name)
        return value

    def __set__(self, registers: Registers, value: int) -> None:
        value = word(self.name, value, 64)
        sregs = registers.source.sregs()
        setattr(sregs, self.name, value)
        registers.source.set_sregs(sregs)


def _segment(sregs: Any, name: str) -> SegmentRegister:
    fields = getattr(sregs, name)
    segment = SegmentRegister(**{field: getattr(fields, field) for field in _SEGMENT_FIELDS})
    segment.long = bool(sregs.efer & EFER.LMA and not segment.s)
    return segment


class _Segment:
    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, registers: None, owner: type) -> _Segment: ...
    @overload
    def __get__(self, registers: Registers, owner: type) -> SegmentRegister: ...
    def __get__(self, registers: Registers | None, owner: type) -> SegmentRegister | _Segment:
        if registers is None:
            return self
        return _segment(registers.source.sregs(), self.name)

    def __set__(self, registers: Registers, value: SegmentRegister) -> None:
        check_record(self.name, value, SegmentRegister)
        sregs = registers.source.sregs()
        segment = getattr(sregs, self.name)
        for field in _SEGMENT_FIELDS:
            setattr(segment, field, getattr(value, field))
        registers.source.set_sregs(sregs)


class _Table:
    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, registers: None, owner: type) -> _Table: ...
    @overload
    def __get__(self, registers: Registers, owner: type) -> TableRegister: ...
    def __get__(self, registers: Registers | None, owner: type) -> TableRegister | _Table:
        if registers is None:
            return self
        table = getattr(registers.source.sregs(), self.name)
        return TableRegister(base=table.base, limit=table.limit)

    def __set__(self, registers: Registers, value: TableRegister) -> None:
        check_record(self.name, value, TableRegister)
        sregs = registers.source.sregs()
        table = getattr(sregs, self.name)
        table.base, table.limit = value.base, value.limit
        registers.source.set_sregs(sregs)


def sregs_of(state: CpuState) -> bytearray:
    """The struct kvm_sregs of a state; with its interrupt_bitmap of 0, what is injected stays."""
    values: list[int] = []
    for name in SEGMENTS:
        values += *_segment_fields(getattr(state, name)), 0
    for name in TABLES:
        table = getattr(state, name)
        values += table.base, table.limit, 0, 0, 0
    return bytearray(kvm_sregs.packer.pack(*values, *_control_fields(state), *_NO_INTERRUPTS))


def state_of(sregs: Any, regs: Any = None) -> CpuState:
    """The CpuState of a struct kvm_sregs, and of a kvm_regs where there is one."""
    values: dict[str, Any] = {name: getattr(sregs, name) for name in CONTROL}
    if regs is not None:
        values.update((name, getattr(regs, name)) for name in GENERAL)
    for name in SEGMENTS:
        values[name] = _segment(sregs, name)
    for name in TABLES:
        table = getattr(sregs, name)
        values[name] = TableRegister(base=table.base, limit=table.limit)
    return CpuState(**values)


class Registers:
    """The registers of one vCPU.  Reading gives the current value, assigning sets it.

    General registers and control registers are ints; segment registers are `SegmentRegister` and
    GDTR and IDTR `TableRegister`, copies that take effect when they are assigned back.

    Setting a register while a port or memory read waits for its answer raises StateError.
    At the exit of an OUT, RIP may be at the instruction or past it: KVM does not say.
    """

    __slots__ = ("source",)

    rax = _General()
    rbx = _General()
    rcx = _General()
    rdx = _General()
    rsi = _General()
    rdi = _General()
    rsp = _General()
    rbp = _General()
    r8 = _General()
    r9 = _General()
    r10 = _General()
    r11 = _General()
    r12 = _General()
    r13 = _General()
    r14 = _General()
    r15 = _General()
    rip = _General()
    rflags = _General()

    cr0 = _Control()
    cr2 = _Control()
    cr3 = _Control()
    cr4 = _Control()
    cr8 = _Control()
    efer = _Control()
    apic_base = _Control()

    cs = _Segment()
    ds = _Segment()
    es = _Segment()
    fs = _Segment()
    gs = _Segment()
    ss = _Segment()
    tr = _Segment()
    ldt = _Segment()

    gdt = _Table()
    idt = _Table()

    def __init__(self, source: RegisterFile) -> None:
        self.source = source

    def __setattr__(self, name: str, value: Any) -> None:
        if not hasattr(type(self), name):
            raise AttributeError(f"there is no register {name!r}")
        object.__setattr__(self, name, value)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """Name and value of the general registers, RIP and RFLAGS."""
        regs = self.source.regs()
        return iter([(name, getattr(regs, name)) for name in GENERAL])

    def __repr__(self) -> str:
        return "<Registers " + " ".join(f"{name}={value:#x}" for name, value in self) + ">"
