"""The workarounds of one machine: their breakpoints, what they wait for, and their counts.

Both wait at the first instruction of an exception handler of the guest's, which its IDT
names.  KVM does not report that a guest loads an IDT or changes a gate.  So the gates are read at
the exits that follow a change or the start, at each tick, and when the guest writes SYSCALL's MSRs,
which exit for that purpose.
"""

from __future__ import annotations

from _thread import allocate_lock

from pykvm._core import ffi, lib
from pykvm.errors import ConfigError, MemoryRangeError
from pykvm.exits import Debug, Shutdown, WrMsr
from pykvm.quirks import software_interrupt, syscall
from pykvm.quirks.signs import LSTAR, MSRS, OCCASIONS, OWNER, STAR, write_msr
from pykvm.quirks.software_interrupt import arrival
from pykvm.typed import TYPE_CHECKING
from pykvm.x86.descriptors import Gate
from pykvm.x86.registers import EFER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from pykvm.exits import Exit
    from pykvm.memory import GuestMemory
    from pykvm.memory.regions import Region
    from pykvm.vcpu import CPU
    from pykvm.vcpu.msr_exits import MsrExits
    from pykvm.x86.descriptors import SegmentDescriptor

__all__ = ["WITH_WORKAROUND", "QuirkWorkarounds"]

WITH_WORKAROUND = (syscall.QUIRK, software_interrupt.QUIRK)

PAGE_FAULT, INVALID_OPCODE = 14, 6
_GATE_SIZE = 16
_GATES = (0xE, 0xF)  # interrupt and trap gate
_CANONICAL = 47
# DR6 (SDM 3B 18.2.3): the exit was a single step.
_BS = 1 << 14


class QuirkWorkarounds:
    """The workarounds of one machine."""

    def __init__(
        self,
        cpus: Sequence[CPU],
        memory: GuestMemory,
        msr_exits: MsrExits,
        quirks: frozenset[str],
        *,
        by_hand: bool = True,
    ) -> None:
        """`quirks` are the names of those that the host has.

        Unless `by_hand`, a run is under way, and writes of SYSCALL's MSRs exit already.
        """
        self._memory = memory
        self._msr_exits = msr_exits
        self._lock = allocate_lock()
        self._by_hand = by_hand
        self._regions: tuple[Region, ...] = ()
        self._table: Any = ffi.NULL
        self._views: list[Any] = []
        self._syscall = syscall.QUIRK.name in quirks
        self._vcpus = [
            _Vcpu(cpu, syscalls=self._syscall, interrupts=software_interrupt.QUIRK.name in quirks)
            for cpu in cpus
        ]
        if not self._syscall:
            msr_exits.ask(OWNER)
        for vcpu in self._vcpus:
            vcpu.cpu.loop.on_begin = lambda pykvm, vcpu=vcpu: self._begin(vcpu, pykvm)

    def _begin(self, vcpu: _Vcpu, pykvm: bool) -> None:
        """A loop begins, of pykvm's (`pykvm`) or by hand, which sees no exit of ours."""
        with self._lock:
            if self._syscall and self._by_hand == pykvm:
                self._msr_exits.ask(OWNER, writes=MSRS if pykvm else ())
                self._by_hand = not pykvm
            if pykvm:
                self._follow_memory()
        vcpu.begin(pykvm)

    def _follow_memory(self) -> None:
        """Tell the core where guest memory is; the views keep it from being unmapped."""
        regions = self._memory.regions
        if regions is self._regions:
            return
        table = ffi.new("struct pykvm_region[]", len(regions))
        views = []
        for entry, region in zip(table, regions, strict=True):
            view = region.mapping.pin()
            views.append(view)
            entry.start, entry.size = region.start, len(view)
            entry.host = ffi.cast("uint8_t *", view)
        for vcpu in self._vcpus:
            vcpu.core.regions, vcpu.core.region_count = table, len(regions)
        self._regions, self._table, self._views = regions, table, views

    def close(self) -> None:
        """Let go of guest memory."""
        for vcpu in self._vcpus:
            vcpu.core.region_count = 0
        for view in self._views:
            ffi.release(view)
        self._views.clear()
        self._regions = ()

    def look(self, cpu: CPU) -> None:
        """An occasion to see whether the guest has other handlers now."""
        self._begun(cpu).look()

    def _begun(self, cpu: CPU) -> _Vcpu:
        """The one of a vCPU, whose loop may have begun before these were made."""
        vcpu = self._vcpus[cpu.index]
        if not vcpu.begun and not self._by_hand:
            self._begin(vcpu, pykvm=True)
        return vcpu

    def take(self, cpu: CPU, exit: Exit) -> bool:
        """Set the vCPU right after `exit`, so that the guest goes on; False if it is not ours."""
        vcpu = self._begun(cpu)
        match exit:
            case WrMsr(index=index) if index in MSRS:
                vcpu.write_msr(exit)
                return True
            case Debug() | Shutdown() if vcpu.works_around_syscall():
                return True
            case Debug(dr6=dr6) if dr6 & _BS:
                return cpu.debug.stepped()
            case Debug(exception=1, pc=pc):
                return vcpu.at_breakpoint(pc)
        return False

    def counts(self) -> Mapping[str, int]:
        """How often each workaround was needed so far."""
        counts = {
            "SYSCALL in ring 3": sum(vcpu.core.worked_around for vcpu in self._vcpus),
            "INT n in ring 3": sum(vcpu.interrupts for vcpu in self._vcpus),
        }
        return {what: count for what, count in counts.items() if count}


class _Vcpu:
    """One vCPU: its handlers, and what SYSCALL does there."""

    def __init__(self, cpu: CPU, *, syscalls: bool, interrupts: bool) -> None:
        self.cpu = cpu
        #: struct pykvm_syscall
        self.core: Any = ffi.new("struct pykvm_syscall *")
        #: INT n that were taken where they lead.
        self.interrupts = 0
        #: Whether a loop has begun since these were made.
        self.begun = False
        self._wants_syscall, self._wants_interrupts = syscalls, interrupts
        self._gates: tuple[bytes, bytes] = (b"", b"")
        self._invalid_opcode: int | None = None
        self._buffer: Any = ffi.new("uint8_t[]", _GATE_SIZE)

    def works_around_syscall(self) -> bool:
        """Whether the exit was SYSCALL's, and its handler is where the vCPU stands now."""
        return bool(lib.pykvm_work_around_syscall(self.core, self.cpu.engine.run_address))

    def begin(self, pykvm: bool) -> None:
        """A loop begins; see `QuirkWorkarounds`."""
        self.begun = True
        # The end of the last one may have come before that of a step.
        self.cpu.debug.stepped()
        if pykvm:
            self.cpu.engine.core.syscall = self.core
            self.cpu.debug.hide()
            self.cpu.engine.sync_regs()
            if self._wants_syscall:
                self._read_msrs()
            self.look()
            self._watch()
        else:
            self.cpu.engine.core.syscall = ffi.NULL
            self.cpu.debug.hide(OWNER)

    def _watch(self) -> None:
        self.cpu.engine.core.watched, self.cpu.engine.core.watched_idt = OCCASIONS, 0

    def _read_msrs(self) -> None:
        for index, value in self.cpu.kvm.get_msrs(MSRS, partial=True).items():
            self._know_msr(index, value)

    def _know_msr(self, index: int, value: int) -> None:
        if index == STAR:
            self.core.cs = syscall.selector_of(value)
        elif index == LSTAR:
            self.core.lstar = value
        else:
            self.core.fmask = value

    def write_msr(self, exit: WrMsr) -> None:
        """The guest says where SYSCALL is to lead."""
        if not write_msr(self.cpu, exit):
            return
        self._know_msr(exit.index, exit.value)
        self._arm()
        self.look()
        self._watch()

    def look(self) -> None:
        """Read the two gates, and follow if they have changed."""
        sregs = self.cpu.engine.sync_regs().sregs
        gates = self._gate(sregs, PAGE_FAULT), self._gate(sregs, INVALID_OPCODE)
        if gates != self._gates:
            self._gates = gates
            self._arm()
            self._watch()

    def _gate(self, sregs: Any, vector: int) -> bytes:
        """A gate's bytes; none where there is none in 64-bit mode."""
        offset = vector * _GATE_SIZE
        if not sregs.efer & EFER.LMA or offset + _GATE_SIZE - 1 > sregs.idt.limit:
            return b""
        try:
            return self.read(sregs.idt.base + offset, _GATE_SIZE)
        except MemoryRangeError:
            return b""

    def _arm(self) -> None:
        """Set the breakpoints that the gates and the MSRs ask for."""
        page_fault, invalid_opcode = map(_handler, self._gates)
        wanted = []
        self.core.handler, self._invalid_opcode = 0, None
        if self._wants_syscall and self.core.lstar and page_fault is not None:
            self.core.handler = page_fault
            wanted.append(page_fault)
        if self._wants_interrupts and invalid_opcode is not None:
            self._invalid_opcode = invalid_opcode
            wanted.append(invalid_opcode)
        self.core.shared = self._invalid_opcode == self.core.handler
        try:
            self.cpu.debug.set_breakpoints(OWNER, wanted)
        except ConfigError:
            # The debug registers are in use by someone who debugs this guest.
            self.cpu.debug.set_breakpoints(OWNER, [])

    def at_breakpoint(self, pc: int) -> bool:
        """The exit is a breakpoint; whether it is one of ours, and was dealt with."""
        if pc == self._invalid_opcode and self._take_interrupt():
            return True
        if pc == self.core.handler:
            self.core.passed_on += 1
        elif pc != self._invalid_opcode:
            return False
        self.cpu.debug.step_over()
        return True

    def _take_interrupt(self) -> bool:
        """Take an INT n where it leads, if one has led to the #UD handler."""
        page = self.cpu.engine.sync_regs()
        there = arrival(_View(self, page))
        if there is None:
            return False
        try:
            self.cpu.write(there.rsp, there.frame)
        except (MemoryRangeError, ConfigError):
            return False  # a stack that is not there, or in ROM
        page.regs.rip, page.regs.rsp, page.regs.rflags = there.rip, there.rsp, there.rflags
        if there.cs is not None:
            _load_code(page.sregs.cs, *there.cs)
            self.cpu.engine.commit_sregs()
        self.cpu.engine.commit_regs()
        self.interrupts += 1
        return True

    def read(self, address: int, length: int) -> bytes:
        """Guest-virtual memory.  Raises MemoryRangeError."""
        buffer = self._buffer if length == _GATE_SIZE else ffi.new("uint8_t[]", length)
        page = self.cpu.engine.run_address
        if not lib.pykvm_read_guest(self.core, page, address % (1 << 64), buffer, length):
            raise MemoryRangeError(f"{address:#x} is not mapped", address=address, length=length)
        return bytes(ffi.buffer(buffer, length))


class _View:
    """The vCPU as `software_interrupt.arrival` looks at it."""

    def __init__(self, vcpu: _Vcpu, page: Any) -> None:
        sregs = page.sregs
        self.rsp: int = page.regs.rsp
        self.cs: int = sregs.cs.selector
        self.idt_base: int = sregs.idt.base
        self.idt_limit: int = sregs.idt.limit
        self.gdt_base: int = sregs.gdt.base
        self.gdt_limit: int = sregs.gdt.limit
        self.tss_base: int = sregs.tr.base
        self.read = vcpu.read


def _handler(raw: bytes) -> int | None:
    """Where a gate leads, if it can be gone through in 64-bit mode."""
    if not raw:
        return None
    gate = Gate.decode(raw, long=True)
    usable = gate.present and gate.type in _GATES
    canonical = gate.offset >> _CANONICAL in (0, (1 << 64 - _CANONICAL) - 1)
    return gate.offset if usable and canonical else None


def _load_code(segment: Any, selector: int, descriptor: SegmentDescriptor) -> None:
    """Load CS, a struct kvm_segment."""
    segment.selector = selector
    segment.unusable = 0
    for name in ("base", "limit", "type", "present", "dpl", "s", "l", "db", "g", "avl"):
        setattr(segment, name, getattr(descriptor, name))
