"""Why a guest died or hangs: one sentence, worked out from its registers and memory.

A triple fault leaves no record of the exceptions that led to it.  But the state is still there:
what the instruction at RIP must raise, and why no handler can be reached, can be looked up as the
processor did.
"""

from __future__ import annotations

from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple
from pykvm.x86.descriptors import Gate, SegmentDescriptor
from pykvm.x86.paging import PAGE_SIZE, walk
from pykvm.x86.registers import RFLAGS
from pykvm.x86.state import Mode

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.x86.state import CpuState

__all__ = ["EXCEPTIONS", "explain", "zero_vector"]

EXCEPTIONS = {
    0: "#DE",
    1: "#DB",
    2: "NMI",
    3: "#BP",
    4: "#OF",
    5: "#BR",
    6: "#UD",
    7: "#NM",
    8: "#DF",
    10: "#TS",
    11: "#NP",
    12: "#SS",
    13: "#GP",
    14: "#PF",
    16: "#MF",
    17: "#AC",
    18: "#MC",
    19: "#XM",
    20: "#VE",
    21: "#CP",
}
"""The mnemonics of the exceptions by vector (SDM 3A 6.15, table 6-1)."""

_BREAKPOINT = 3
_INVALID_OPCODE = 6
_DOUBLE_FAULT = 8
_STACK_FAULT = 12
_GENERAL_PROTECTION = 13

_TASK_GATE = 5
_GATES = {True: {0xE, 0xF}, False: {_TASK_GATE, 6, 7, 0xE, 0xF}}

# Opcodes that use the stack, by what they do to it first.
_PUSHES = {*range(0x50, 0x58), 0x60, 0x68, 0x6A, 0x9C, 0xE8}
_POPS = {*range(0x58, 0x60), 0x61, 0x9D, 0xC2, 0xC3, 0xCF}
_PRIVILEGED = {0xF4: "HLT", 0xFA: "CLI", 0xFB: "STI"}
_HLT, _JMP_SELF = b"\xf4", b"\xeb\xfe"
_LONGEST_INSTRUCTION = 15
_INT_N = 0xCD


class _Exception(NamedTuple):
    """An exception that the state must raise, and what raises it."""

    vector: int
    cause: str

    def __str__(self) -> str:
        return f"{_name(self.vector)} ({self.cause})"


class _Broken(Exception):
    """A step that the processor cannot do, why, and the exception that this raises if any."""

    def __init__(self, reason: str, vector: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.vector = vector


class _Guest(NamedTuple):
    """A state and the memory it belongs to: what every check needs."""

    state: CpuState
    read: Callable[[int, int], bytes]

    @property
    def long(self) -> bool:
        return self.state.mode is Mode.LONG

    def translate(self, address: int, access: str, *, user: bool = False) -> int:
        """The guest-physical address of a linear one; _Broken if the access is not possible."""
        state = self.state
        found = walk(
            self.read,
            address,
            cr0=state.cr0,
            cr3=state.cr3,
            cr4=state.cr4,
            efer=state.efer,
            access=access,
            user=user,
            ac=bool(state.rflags & RFLAGS.AC),
        )
        if found.physical is None:
            raise _Broken(found.fault or "", found.vector)
        try:
            self.read(found.physical, 1)
        except LookupError:
            where = "" if found.physical == address else f", where {address:#x} leads,"
            raise _Broken(
                f"physical {found.physical:#x}{where} lies outside memory", None
            ) from None
        return found.physical

    def bytes(self, address: int, size: int, access: str = "read", *, user: bool = False) -> bytes:
        """`size` bytes at a linear address, across pages."""
        data = b""
        while len(data) < size:
            at = address + len(data)
            length = min(size - len(data), PAGE_SIZE - at % PAGE_SIZE)
            data += self.read(self.translate(at, access, user=user), length)
        return data


def explain(state: CpuState, read: Callable[[int, int], bytes]) -> str:
    r"""Say in one sentence why the guest in `state` met a triple fault, or why it does not go on.

    `read(gpa, size)` gives guest memory and raises LookupError where there is none.  The sentence
    is the best explanation that the state holds; what went with the exceptions is not invented.

    >>> from pykvm.x86.entry import protected_mode
    >>> state = protected_mode(eip=0x10, esp=0x9000, gdt_base=0)
    >>> explain(state, lambda gpa, size: (bytes(0x10) + b"\x0f\x0b" + bytes(0x9000))[gpa:][:size])
    '#UD (UD2 at 0x10) could not be delivered: the IDT limit is 0x0, but the gate ends at 0x37'
    """
    guest = _Guest(state, read)
    rip = state.linear_rip
    try:
        raised = _fetch_exception(guest) or _instruction_exception(guest)
    except _Broken as broken:
        return f"the instruction at RIP {rip:#x} {broken.reason}"
    raised = raised or _page_fault_left(guest)
    if raised is None:
        return _stuck(guest) or _unknown(guest)
    reason = _undeliverable(guest, raised.vector)
    if reason is None:
        return f"{raised}, for which a handler is in place: it may be what goes wrong"
    stack = raised.cause.removeprefix("stack: ")
    if stack != raised.cause and reason.endswith(stack):
        reason = "its handler would run on the same stack"
    if _undeliverable(guest, _DOUBLE_FAULT) is None:
        reason += "; a handler for the double fault that follows is in place"
    return f"{raised} could not be delivered: {reason}"


def zero_vector(state: CpuState, read: Callable[[int, int], bytes]) -> str | None:
    """Say that real-mode code came where it is through an interrupt vector that is zero, or None.

    The frame on top of the stack shows it: an INT n stands before its return address, and the
    vector n is 0000:0000, so that the vectors themselves were executed.
    """
    if state.mode is not Mode.REAL or state.idt.base:
        return None
    try:
        ip, cs, _ = (
            int.from_bytes(read(state.linear_rsp + offset, 2), "little") for offset in (0, 2, 4)
        )
        at = 16 * cs + (ip - 2) % 0x10000
        opcode, vector = read(at, 2)
        if opcode != _INT_N or any(read(4 * vector, 4)):
            return None
    except LookupError:
        return None
    return f"INT {vector:#x} at {at:#x} went through a vector of zeros to address 0"


def _name(vector: int) -> str:
    return EXCEPTIONS.get(vector, f"vector {vector:#x}")


def _fetch_exception(guest: _Guest) -> _Exception | None:
    """What fetching the instruction raises; _Broken if that is more than an exception."""
    state = guest.state
    if state.code_bits != 64 and state.rip > state.cs.limit:
        cause = f"RIP {state.rip:#x} is beyond the limit of CS, {state.cs.limit:#x}"
        return _Exception(_GENERAL_PROTECTION, cause)
    try:
        guest.translate(state.linear_rip, "execute", user=state.cpl == 3)
    except _Broken as broken:
        if broken.vector is None:
            raise _Broken(f"cannot be fetched: {broken.reason}") from None
        return _Exception(broken.vector, f"RIP: {broken.reason}")
    return None


def _instruction_exception(guest: _Guest) -> _Exception | None:
    """What the instruction at RIP raises, for the few that can be told by their first bytes."""
    state = guest.state
    rip = state.linear_rip
    code = _code(guest, rip)
    if code[:2] in (b"\x0f\x0b", b"\x0f\xb9", b"\x0f\xff"):
        return _Exception(_INVALID_OPCODE, f"UD2 at {rip:#x}")
    if code[:1] == b"\xcc":
        return _Exception(_BREAKPOINT, f"INT3 at {rip:#x}")
    if code[:1] == b"\xcd" and len(code) > 1:
        return _Exception(code[1], f"INT {code[1]:#x} at {rip:#x}")
    iopl = (state.rflags & RFLAGS.IOPL) >> 12
    least = 0 if code[:1] == _HLT else iopl
    if code[0] in _PRIVILEGED and state.cpl > least:
        cause = f"{_PRIVILEGED[code[0]]} at {rip:#x} in ring {state.cpl}"
        return _Exception(_GENERAL_PROTECTION, cause)
    return _stack_exception(guest, _without_prefixes(guest, code))


def _stack_exception(guest: _Guest, code: bytes) -> _Exception | None:
    """What a push or a pop raises because of where the stack pointer points."""
    opcode = code[0] if code else 0
    state = guest.state
    address = state.linear_rsp
    if opcode in _PUSHES:
        access, address = "write", _below(guest, address)
    elif opcode in _POPS:
        access = "read"
    else:
        return None
    try:
        guest.translate(address, access, user=state.cpl == 3)
    except _Broken as broken:
        if broken.vector is None:
            raise _Broken(f"cannot use its stack: {broken.reason}") from None
        # Through SS, a non-canonical address is a stack fault (SDM 3A 6.15, vector 12).
        vector = _STACK_FAULT if broken.vector == _GENERAL_PROTECTION else broken.vector
        return _Exception(vector, f"stack: {broken.reason}")
    return None


def _page_fault_left(guest: _Guest) -> _Exception | None:
    """The page fault that CR2 still shows, if its address is not mapped now either."""
    state = guest.state
    if not state.cr2:
        return None
    found = walk(
        guest.read,
        state.cr2,
        cr0=state.cr0,
        cr3=state.cr3,
        cr4=state.cr4,
        efer=state.efer,
        access=None,
    )
    if found.fault is None or found.vector is None:
        return None
    return _Exception(found.vector, f"CR2: {found.fault}")


def _stuck(guest: _Guest) -> str | None:
    """Why the guest waits for ever, if it does."""
    state = guest.state
    if state.rflags & RFLAGS.IF:
        return None
    rip = state.linear_rip
    try:
        before, code = guest.bytes(rip - 1, 1) if rip else b"", _code(guest, rip)
    except _Broken:
        return None
    if before == _HLT:
        return f"halted at {rip - 1:#x} with interrupts off: only an NMI or a reset wakes it"
    if code[:2] == _JMP_SELF:
        return f"jumps to itself at {rip:#x} with interrupts off: only an NMI or a reset ends that"
    return None


def _unknown(guest: _Guest) -> str:
    """What can be said when nothing shows which exception came first."""
    rip = guest.state.linear_rip
    reason = _undeliverable(guest, _DOUBLE_FAULT)
    if reason is None:
        return (
            f"no cause is left to see: the instruction at {rip:#x} can be fetched "
            "and a double fault has a handler"
        )
    return f"an exception at {rip:#x} could not be delivered, nor #DF after it: {reason}"


def _undeliverable(guest: _Guest, vector: int) -> str | None:
    """Why the exception `vector` reaches no handler, or None if it does (SDM 3A 6.12, 6.14)."""
    try:
        if guest.state.mode is Mode.REAL:
            _deliver_real(guest, vector)
        else:
            _deliver(guest, vector)
    except _Broken as broken:
        return broken.reason
    return None


def _deliver_real(guest: _Guest, vector: int) -> None:
    idt = guest.state.idt
    end = 4 * vector + 3
    if end > idt.limit:
        raise _Broken(f"the IVT limit is {idt.limit:#x}, but the vector ends at {end:#x}")
    raw = guest.bytes(idt.base + 4 * vector, 4)
    handler = int.from_bytes(raw[2:], "little") * 16 + int.from_bytes(raw[:2], "little")
    _reach("the handler", guest, handler, "execute")


def _deliver(guest: _Guest, vector: int) -> None:
    state = guest.state
    gate = _gate(guest, vector)
    if gate.type == _TASK_GATE:
        return
    code = _code_segment(guest, gate.selector)
    conforming = bool(code.type & 4)
    ring = state.cpl if conforming else code.dpl
    handler = gate.offset if guest.long else (code.base + gate.offset) & 0xFFFF_FFFF
    _reach("the handler", guest, handler, "execute", user=ring == 3)
    stack = _below(guest, _handler_stack(guest, gate, ring))
    _reach("the handler's stack", guest, stack, "write", user=ring == 3)


def _gate(guest: _Guest, vector: int) -> Gate:
    """The gate of `vector`, checked."""
    idt = guest.state.idt
    size = 16 if guest.long else 8
    end = (vector + 1) * size - 1
    if end > idt.limit:
        raise _Broken(f"the IDT limit is {idt.limit:#x}, but the gate ends at {end:#x}")
    raw = _load("the IDT", guest, idt.base + vector * size, size)
    gate = Gate.decode(raw, long=guest.long)
    if gate.type not in _GATES[guest.long]:
        raise _Broken(f"the IDT has no gate for {_name(vector)}: its type is {gate.type:#x}")
    if not gate.present:
        raise _Broken(f"the gate of {_name(vector)} is not present")
    return gate


def _code_segment(guest: _Guest, selector: int) -> SegmentDescriptor:
    """The descriptor of the handler's code segment, checked as CS is when a gate loads it."""
    what = f"the gate's code selector {selector:#x}"
    code = _segment(guest, selector, what)
    if not (code.s and code.type & 8):
        raise _Broken(f"{what} names no code segment but {code.kind}")
    if not code.present:
        raise _Broken(f"{what} names a segment that is not present")
    if code.dpl > guest.state.cpl:
        raise _Broken(f"{what} names ring {code.dpl}, an outer ring")
    if guest.long and not (code.l and not code.db):
        raise _Broken(f"{what} names {code.kind}: in long mode a handler is 64-bit code")
    return code


def _segment(guest: _Guest, selector: int, what: str) -> SegmentDescriptor:
    """The descriptor that `selector` names in the GDT or LDT."""
    state = guest.state
    if not selector & ~3:
        raise _Broken(f"{what} is null")
    table, base, limit = "GDT", state.gdt.base, state.gdt.limit
    if selector & 4:
        table, base, limit = "LDT", state.ldt.base, state.ldt.limit
    if selector | 7 > limit:
        raise _Broken(f"{what} is beyond the limit of the {table}, {limit:#x}")
    raw = _load(f"the {table}", guest, base + (selector & ~7), 8)
    return SegmentDescriptor.decode(raw)


def _handler_stack(guest: _Guest, gate: Gate, ring: int) -> int:
    """The linear address of the stack that the handler gets (SDM 3A 6.12.1, 6.14.2)."""
    state = guest.state
    if guest.long:
        if gate.ist:
            return _from_tss(guest, 36 + 8 * (gate.ist - 1), 8)
        if ring < state.cpl:
            return _from_tss(guest, 4 + 8 * ring, 8)
        return state.rsp & ~0xF
    if ring == state.cpl:
        return state.linear_rsp
    # A 16-bit TSS has the bit of its type clear that a 32-bit one has set.
    wide = state.tr.type & 8
    pointer, size = (4 + 8 * ring, 4) if wide else (2 + 4 * ring, 2)
    top = _from_tss(guest, pointer, size)
    selector = _from_tss(guest, pointer + size, 2)
    segment = _segment(guest, selector, f"the stack selector {selector:#x} in the TSS")
    return (segment.base + top) & 0xFFFF_FFFF


def _from_tss(guest: _Guest, offset: int, size: int) -> int:
    tr = guest.state.tr
    if offset + size - 1 > tr.limit:
        raise _Broken(f"the TSS limit is {tr.limit:#x}, the stack pointer lies at {offset:#x}")
    return int.from_bytes(_load("the TSS", guest, tr.base + offset, size), "little")


def _below(guest: _Guest, stack: int) -> int:
    """Where a push onto `stack` writes: the next lower quadword, doubleword or word."""
    state = guest.state
    if state.code_bits == 64 or guest.long:
        return (stack - 8) & 0xFFFF_FFFF_FFFF_FFFF
    return (stack - (4 if state.ss.db else 2)) & 0xFFFF_FFFF


def _reach(what: str, guest: _Guest, address: int, access: str, *, user: bool = False) -> None:
    try:
        guest.translate(address, access, user=user)
    except _Broken as broken:
        raise _Broken(f"{what}: {broken.reason}") from None


def _load(what: str, guest: _Guest, address: int, size: int) -> bytes:
    try:
        return guest.bytes(address, size)
    except _Broken as broken:
        raise _Broken(f"{what} cannot be read: {broken.reason}") from None


def _code(guest: _Guest, rip: int) -> bytes:
    """The bytes at `rip`, fewer than an instruction may have where the next page is missing."""
    user = guest.state.cpl == 3
    first = min(_LONGEST_INSTRUCTION, PAGE_SIZE - rip % PAGE_SIZE)
    code = guest.bytes(rip, first, "execute", user=user)
    try:
        return code + guest.bytes(rip + first, _LONGEST_INSTRUCTION - first, "execute", user=user)
    except _Broken:
        return code


def _without_prefixes(guest: _Guest, code: bytes) -> bytes:
    """`code` less operand-size and, in 64-bit code, REX prefixes."""
    prefixes = {0x66, 0xF3, *(range(0x40, 0x50) if guest.state.code_bits == 64 else ())}
    start = next((at for at, byte in enumerate(code) if byte not in prefixes), len(code))
    return code[start:]
