"""The instruction at which a guest stands: its bytes, and its spelling where capstone is there."""

from __future__ import annotations

from contextlib import suppress
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from pykvm.cli.describe import linear_rip
from pykvm.errors import MemoryRangeError, TranslationError
from pykvm.exits import Hlt, IoOut, MmioWrite
from pykvm.values.frozen import NamedTuple
from pykvm.x86.decode import UndecodableError, decode

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.exits import Exit
    from pykvm.vcpu import CPU
    from pykvm.x86.decode import Instruction as Decoded

    _Test = Callable[[int, Decoded | None], bool]

__all__ = ["Instruction", "instruction_at", "instruction_of"]

LONGEST = 15
PAGE = 4096

# Further back than this no function is decoded from its start.
_LONGEST_FUNCTION = 4096

# Opcodes of OUTS and OUT, and of HLT (SDM 2D, table A-2).
_OUTS = frozenset((0x6E, 0x6F, 0xE6, 0xE7, 0xEE, 0xEF))
_HLT = 0xF4

_NAMES = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
)


class Instruction(NamedTuple):
    """Where it is (linear), its bytes or those that begin with it, and how it is written."""

    address: int
    code: bytes
    text: str = ""

    def __str__(self) -> str:
        return self.text or (f"bytes {self.code.hex(' ')}" if self.code else "not readable")


def instruction_of(cpu: CPU, exit: Exit, function: int | None = None) -> Instruction:
    """The instruction that has caused an exit, if it can be told, else the next one.

    At a write some KVMs leave RIP on the instruction and others after it, and always after a HLT.
    `function` is where the code that RIP stands in begins, if that is known.
    """
    rip = linear_rip(cpu)
    match exit:
        case Hlt():
            is_it = _is_hlt
        case IoOut():
            is_it = _is_out
        case MmioWrite(address=address):
            is_it = partial(_accesses, cpu, address)
        case _:
            return instruction_at(cpu, rip)
    if not is_it(rip, _decoded(cpu, rip)):
        before = _before(cpu, rip, function, is_it)
        if before is not None:
            return instruction_at(cpu, before)
    return instruction_at(cpu, rip)


def _before(cpu: CPU, rip: int, function: int | None, is_it: _Test) -> int | None:
    """Where the instruction begins that ends at `rip`, if it is one of those."""
    if function is not None and rip - _LONGEST_FUNCTION < function < rip:
        at, last = function, None
        while at < rip:
            last, found = at, _decoded(cpu, at)
            if found is None:
                break
            at += found.length
        if at == rip and last is not None:
            return last if is_it(last, _decoded(cpu, last)) else None
    # The start of the code is not known: the longest match, for shorter ones are a part of it.
    for length in range(LONGEST, 0, -1):
        found = _decoded(cpu, rip - length)
        if found is not None and found.length == length and is_it(rip - length, found):
            return rip - length
    return None


def _decoded(cpu: CPU, at: int) -> Decoded | None:
    try:
        return decode(_code(cpu, at, LONGEST), cpu.state.code_bits)
    except UndecodableError:
        return None


def _is_hlt(at: int, found: Decoded | None) -> bool:
    return found is not None and found.map == 0 and found.opcode == _HLT


def _is_out(at: int, found: Decoded | None) -> bool:
    return found is not None and found.map == 0 and found.opcode in _OUTS


def _accesses(cpu: CPU, address: int, at: int, found: Decoded | None) -> bool:
    """Whether an instruction at a linear address has its memory operand at a physical one."""
    if found is None or found.memory is None:
        return False
    state = cpu.state
    offset = found.memory.offset(
        lambda number: int(getattr(state, _NAMES[number])),
        state.rip + at + found.length - state.linear_rip,
    )
    base: int = getattr(state, found.memory.segment).base
    with suppress(TranslationError):
        return cpu.translate((base + offset) & (1 << 64) - 1) == address
    return False


def instruction_at(cpu: CPU, address: int) -> Instruction:
    """The instruction at a linear address."""
    code = _code(cpu, address, LONGEST)
    disassembler = _disassembler(cpu.state.code_bits)
    if disassembler is None or not code:
        return Instruction(address, code[:8])
    for _, size, name, operands in disassembler.disasm_lite(code, address, 1):
        return Instruction(address, code[:size], f"{name} {operands}".rstrip())
    return Instruction(address, code[:8])


def _code(cpu: CPU, address: int, length: int) -> bytes:
    """As many of these bytes as can be read."""
    if address < 0:
        return b""
    within = min(length, PAGE - address % PAGE)
    for end in (length, within):
        with suppress(MemoryRangeError):
            return cpu.read(address, end)
    return b""


@cache
def _disassembler(bits: int) -> Any:
    """Capstone's for this operand size; None where it is not installed."""
    try:
        import capstone
    except ImportError:
        return None
    modes = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
    return capstone.Cs(capstone.CS_ARCH_X86, modes[bits])
