"""Calling a function of the guest's, on a machine that stands (`Machine.call`).

The calling convention is that of the System V ABI for x86-64 (3.2.3): integers and pointers in RDI,
RSI, RDX, RCX, R8, R9, then on the stack; the result in RAX.  The function returns to an OUT that is
put where the vCPU stands, code that is mapped executable for certain, and taken away again.
"""

from __future__ import annotations

from pykvm.bus.guest_end import GuestEnd
from pykvm.errors import (
    ConfigError,
    GuestFailed,
    RunStopped,
    RunTimeout,
    StateError,
    TranslationError,
)
from pykvm.exits import Hlt, Interrupted, IoOut
from pykvm.kvm.constants import KVM_MP_STATE_RUNNABLE
from pykvm.kvm.run_page import REQUEST_INTERRUPT_WINDOW
from pykvm.kvm.uapi import kvm_regs, kvm_vcpu_events
from pykvm.machine.guest_ends import ending_of
from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import seconds, show
from pykvm.x86.state import Mode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pykvm.exits import Exit
    from pykvm.machine.answers import Answers
    from pykvm.memory import GuestMemory
    from pykvm.result import Ending
    from pykvm.vcpu import CPU
    from pykvm.vcpu.saved import VcpuState
    from pykvm.x86.state import CpuState

    #: What can be passed: an integer or a pointer to these bytes; a str has a NUL at its end.
    Argument = int | bytes | bytearray | memoryview | str

__all__ = ["RETURN_PORT", "call", "check_returns"]

_IN_REGISTERS = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")
# Below RSP lie 128 bytes that the code which was stopped may use (ABI 3.2.2).
_RED_ZONE = 128
_PAGE = 0x1000
#: The port that the function returns to is one that PCs leave free, and so do our devices.
RETURN_PORT = 0xE7
_TRAP = bytes((0xE6, RETURN_PORT))  # out RETURN_PORT, al

_RESULTS = {
    **{f"u{bits}": (bits, False) for bits in (8, 16, 32, 64)},
    **{f"s{bits}": (bits, True) for bits in (8, 16, 32, 64)},
    "int": (64, False),
    "signed": (64, True),
    "pointer": (64, False),
}


def check_returns(returns: object) -> None:
    """Raise ConfigError unless `returns` says what a function returns."""
    if returns is None or returns in ("cstring", *_RESULTS):
        return
    if type(returns) is not int or returns < 0:
        raise ConfigError(
            f"returns is {', '.join(_RESULTS)}, cstring, a number of bytes or None, "
            f"not {show(returns)}"
        )


def _result_of(cpu: CPU, rax: int, returns: str | int | None) -> int | bytes | None:
    """What RAX stands for.  Raises TranslationError for a pointer that points to nothing."""
    if returns is None:
        return None
    if isinstance(returns, int):
        return cpu.read(rax, returns)
    if returns == "cstring":
        return cpu.read_cstring(rax)
    bits, signed = _RESULTS[returns]
    value = rax & (1 << bits) - 1
    return value - (1 << bits) if signed and value >> bits - 1 else value


def call(
    cpu: CPU,
    memory: GuestMemory,
    answers: Answers,
    states: dict[int, VcpuState],
    address: int,
    name: str,
    arguments: Sequence[Argument],
    timeout: float | None,
    returns: str | int | None,
) -> int | bytes | None:
    """Call the function at a guest-virtual address.  See `Machine.call`.

    `states` keeps, by vCPU, the state from which the last call was made.
    """
    if timeout is not None:
        timeout = seconds("timeout", timeout)
    cpu.translate(address)
    state = cpu.state
    frame = _Frame(cpu, state, arguments)
    # In 64-bit mode the base of CS counts for nothing.
    returns_to = state.rip
    stack = returns_to.to_bytes(8, "little") + frame.data[8:]
    patches = [
        _Patch(cpu, memory, returns_to, _TRAP),
        _Patch(cpu, memory, frame.bottom, stack),
    ]
    saved = cpu.save()
    # The same object as last time, if it is equal, is quicker to load.
    saved = states[cpu.index] = _same(states.get(cpu.index), saved)
    try:
        for patch in patches:
            patch.put()
        _enter(cpu, saved, frame, address)
        rax = _run(cpu, answers, name, returns_to, frame.bottom + 8, timeout)
        frame.take_back(cpu)
        return _result_of(cpu, rax, returns)
    finally:
        for patch in patches:
            patch.take_away()
        cpu.load(saved)


def _same(last: VcpuState | None, now: VcpuState) -> VcpuState:
    return last if last is not None and last == now else now


class _Patch:
    """Bytes of guest memory for the time of a call, at an address that the guest has mapped."""

    def __init__(self, cpu: CPU, memory: GuestMemory, address: int, data: bytes) -> None:
        self._memory = memory
        self._pieces: list[tuple[int, bytes, bytes]] = []
        while data:
            room = _PAGE - address % _PAGE
            piece, data = data[:room], data[room:]
            place = cpu.translate(address)
            self._pieces.append((place, piece, memory.read(place, len(piece))))
            address += len(piece)

    def put(self) -> None:
        """Put them there."""
        for place, data, _ in self._pieces:
            self._memory.write(place, data)

    def take_away(self) -> None:
        """Put back what was there."""
        for place, _, before in self._pieces:
            self._memory.write(place, before)


class _Frame:
    """The stack as a function finds it: return address, arguments in memory, what they point to."""

    def __init__(self, cpu: CPU, state: CpuState, arguments: Sequence[Argument]) -> None:
        if state.mode is not Mode.LONG or not state.cs.l:
            raise StateError(
                f"vCPU {cpu.index} is not in 64-bit mode, where functions can be called",
                hint="run the guest until it is",
            )
        if state.cpl:
            raise StateError(
                f"vCPU {cpu.index} is in ring {state.cpl}: functions are called in ring 0",
                hint="run the machine until it is in the kernel",
            )
        top = state.rsp - _RED_ZONE & ~15
        self._passed: list[tuple[int, bytearray | memoryview]] = []
        words, data = self._place(arguments, top)
        in_memory = words[len(_IN_REGISTERS) :]
        #: What the registers hold.
        self.registers: Mapping[str, int] = dict(zip(_IN_REGISTERS, words, strict=False))
        # RSP + 8 is a multiple of 16 at the function's first instruction.
        size = 8 * (len(in_memory) + 1)
        start = top - len(data)
        self.bottom = (start - size - 8 & ~15) + 8
        stack = bytes(8) + b"".join(word.to_bytes(8, "little") for word in in_memory)
        self.data = stack.ljust(start - self.bottom, b"\0") + data
        if self.bottom < 0:
            raise _no_stack(cpu, f"RSP is {state.rsp:#x}")
        try:
            cpu.translate(self.bottom)
        except TranslationError as error:
            raise _no_stack(cpu, str(error)) from None

    def _place(self, arguments: Sequence[Argument], top: int) -> tuple[list[int], bytes]:
        """The words for the arguments, and what is to lie below `top` for them to point to."""
        pieces: list[bytes] = []
        places: list[int] = []
        words: list[int] = []
        at = 0
        for number, argument in enumerate(arguments):
            if isinstance(argument, int):
                words.append(_word(number, argument))
                continue
            pieces.append(_pointed_to(number, argument))
            places.append(number)
            words.append(at)
            at += len(pieces[-1]) + 15 & ~15
        data = b"".join(piece.ljust(len(piece) + 15 & ~15, b"\0") for piece in pieces)
        base = top - len(data)
        for number in places:
            words[number] += base
            argument = arguments[number]
            if isinstance(argument, bytearray):
                self._passed.append((words[number], argument))
        return words, data

    def take_back(self, cpu: CPU) -> None:
        """Bring what the function has written into each bytearray."""
        for address, argument in self._passed:
            argument[:] = cpu.read(address, len(argument))


def _no_stack(cpu: CPU, why: str) -> StateError:
    return StateError(
        f"vCPU {cpu.index} has no stack: {why}",
        hint="run the guest until it has set RSP, or set `cpu.regs.rsp`",
    )


def _word(number: int, argument: int) -> int:
    if not -(1 << 63) <= argument < 1 << 64:
        raise ConfigError(f"argument {number} of a call does not fit in 64 bits: {show(argument)}")
    return argument & (1 << 64) - 1


def _pointed_to(number: int, argument: Argument) -> bytes:
    if isinstance(argument, str):
        return argument.encode() + b"\0"
    if isinstance(argument, (bytes, bytearray, memoryview)):
        return bytes(argument)
    raise ConfigError(
        f"argument {number} of a call is an integer, a str, bytes or a bytearray, "
        f"not {show(argument)}"
    )


def _enter(cpu: CPU, saved: VcpuState, frame: _Frame, address: int) -> None:
    """Stand at the function's first instruction: interrupts off, and none under way."""
    regs = kvm_regs.unpack(saved.regs).as_dict()
    regs |= {"rax": 0, "rbp": 0, **frame.registers}
    regs |= {"rip": address, "rsp": frame.bottom, "rflags": 2}
    cpu.engine.replace_regs(regs)
    cpu.engine.page[REQUEST_INTERRUPT_WINDOW] = 0
    events = kvm_vcpu_events.unpack(saved.events).as_dict()
    quiet = events | {"exception": {}, "interrupt": {}, "nmi": {}}
    if kvm_vcpu_events.pack(quiet) != saved.events:
        cpu.kvm.set_vcpu_events(quiet)
    if saved.mp_state != KVM_MP_STATE_RUNNABLE:
        cpu.kvm.set_mp_state(KVM_MP_STATE_RUNNABLE)


def _run(cpu: CPU, answers: Answers, name: str, trap: int, rsp: int, timeout: float | None) -> int:
    """Run until the function has returned to `trap` with that RSP; returns RAX."""
    try:
        for exit in cpu.raw_exits(timeout):
            if isinstance(exit, IoOut) and exit.port == RETURN_PORT and _is_at(cpu, trap):
                if cpu.regs.rsp != rsp:
                    raise StateError(
                        f"{name} runs the code at which vCPU {cpu.index} stands",
                        hint="run the machine to another place before the call",
                    )
                return cpu.regs.rax
            _answer(cpu, answers, name, exit)
    except TimeoutError:
        at = cpu.state.linear_rip
        raise RunTimeout(
            f"{name} has not returned within {timeout:g} s: it is at {at:#x}"
        ) from None
    raise AssertionError("a loop over exits without end has ended")


def _is_at(cpu: CPU, trap: int) -> bool:
    # Where RIP is at an exit for OUT differs between hosts.
    return cpu.regs.rip in (trap, trap + len(_TRAP))


def _answer(cpu: CPU, answers: Answers, name: str, exit: Exit) -> None:
    """Have an exit inside the function answered; raises if it ends the guest."""
    if isinstance(exit, Hlt):
        raise GuestFailed(f"{name} has halted: it waits for an interrupt, and gets none in a call")
    if isinstance(exit, Interrupted):
        raise RunStopped(f"{name} was stopped by the host")
    try:
        ending: Ending | None = answers.take(cpu, exit)
    except GuestEnd as end:
        ending = ending_of(end, cpu)
    if ending is None:
        return
    if ending.error is not None:
        raise ending.error
    raise GuestFailed(f"{name} did not return: {ending.sentence}")
