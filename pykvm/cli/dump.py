"""`--dump-on-exit`: where a vCPU stands, as a kernel's oops shows it."""

from __future__ import annotations

from pykvm.cli.describe import location
from pykvm.cli.instruction import instruction_at
from pykvm.errors import MemoryRangeError
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.machine import Machine
    from pykvm.vcpu import CPU

__all__ = ["code_line", "dump_text", "hex_dump", "stack_lines"]

_BEFORE, _AFTER = 24, 24
_STACK_WORDS = 8
_LINE = 16


def dump_text(machine: Machine) -> str:
    """Registers, code, the next instruction where capstone can spell it, and stack of each vCPU."""
    parts = []
    for cpu in machine.vcpus:
        if cpu.index == 0 or not cpu.parked:
            parts += [f"vCPU {cpu.index}: {cpu.state}", code_line(machine, cpu)]
            text = instruction_at(cpu, cpu.state.linear_rip).text
            parts += [f"next: {text}"] if text else []
            parts += stack_lines(machine, cpu)
    return "".join(f"{part}\n" for part in parts)


def readable(cpu: CPU, start: int, end: int) -> tuple[int, bytes]:
    """The bytes from `start` to `end` (virtual) that can be read around the middle of it.

    Returns where they begin and the bytes.
    """
    middle = (start + end) // 2
    first, found = middle, bytearray()
    while first > max(start, 0) and (byte := _byte(cpu, first - 1)):
        found[:0] = byte
        first -= 1
    while first + len(found) < end and (byte := _byte(cpu, first + len(found))):
        found += byte
    return first, bytes(found)


def _byte(cpu: CPU, address: int) -> bytes:
    try:
        return cpu.read(address, 1)
    except MemoryRangeError:
        return b""


def code_line(machine: Machine, cpu: CPU) -> str:
    """The bytes around RIP, with the one at RIP in angle brackets."""
    rip = cpu.state.linear_rip
    first, code = readable(cpu, rip - _BEFORE, rip + _AFTER)
    words = [
        f"<{byte:02x}>" if first + at == rip else f"{byte:02x}" for at, byte in enumerate(code)
    ]
    return f"code at {location(machine, rip)}: {' '.join(words) or 'not readable'}"


def stack_lines(machine: Machine, cpu: CPU) -> list[str]:
    """The words at the top of the stack, with the symbols they may point to."""
    state = cpu.state
    size = state.code_bits // 8
    top = state.linear_rsp
    lines = [f"stack at {top:#x}:"]
    for address in range(top, top + _STACK_WORDS * size, size):
        try:
            word = int.from_bytes(cpu.read(address, size), "little")
        except MemoryRangeError:
            lines.append(f"  {address:#x}: not readable")
            break
        lines.append(f"  {address:#x}: {word:0{2 * size}x} {machine.symbol_at(word)}".rstrip())
    return lines


def hex_dump(data: bytes, address: int) -> list[str]:
    r"""Lines of 16 bytes in hex and as text.

    >>> hex_dump(b"Hello\0", 0x1000)
    ['0x1000: 48 65 6c 6c 6f 00                                Hello.']
    """
    lines = []
    for at in range(0, len(data), _LINE):
        piece = data[at : at + _LINE]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
        lines.append(f"{address + at:#x}: {piece.hex(' '):<{3 * _LINE - 1}}  {text}".rstrip())
    return lines
