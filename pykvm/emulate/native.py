"""Arithmetic of x87, MMX, SSE and AVX on the processor that pykvm runs on (`_core/native.c`).

An instruction is written anew, for 64-bit code: its operand in memory becomes a scratch area, its
general register RAX.  What the guest's memory holds is copied there before and back after it, and
the vector state is the vCPU's own (KVM_GET_XSAVE, KVM_SET_XSAVE), so results, flags and roundings
are the processor's.

It runs with every floating-point exception masked.  Where the guest has unmasked one and the
instruction signals it, the result is dropped and the exception raised (SDM 1 8.5, 11.5).
"""

from __future__ import annotations

from collections import Counter

from pykvm._core import ffi, lib, owned
from pykvm.emulate.fault import GP, MF, UD, XM, Fault, UnsupportedError
from pykvm.emulate.fpu import check_avx, check_mmx, check_sse, check_x87, image_of, set_image
from pykvm.typed import TYPE_CHECKING
from pykvm.x86.decode import MAP_0F, MAP_0F3A, MAP_0F38, opcodes
from pykvm.x86.registers import CR4, RFLAGS
from pykvm.x86.xsave import FCW, FDP, FIP, FOP, FSW, MXCSR

if TYPE_CHECKING:
    from typing import Any

    from pykvm.emulate.refused import Refused
    from pykvm.emulate.units import Unit
    from pykvm.memory import GuestMemory, Region
    from pykvm.vcpu import CPU
    from pykvm.x86.decode import Instruction

__all__ = ["Native", "rewritten"]

_STUB = 32  # bytes for each piece of code
_STUBS: int = lib.PYKVM_STUBS // _STUB
_STATE = 4096
_STATUS = RFLAGS.CF | RFLAGS.PF | RFLAGS.AF | RFLAGS.ZF | RFLAGS.SF | RFLAGS.OF
_RET = b"\xc3"

_IMMEDIATE = {
    MAP_0F: opcodes("70-73 c2 c4-c6"),
    MAP_0F38: frozenset[int](),
    MAP_0F3A: opcodes("00-ff"),
}
_ESCAPE = {0: b"", MAP_0F: b"\x0f", MAP_0F38: b"\x0f\x38", MAP_0F3A: b"\x0f\x3a"}
_VEX_PP = {0: 0, 0x66: 1, 0xF3: 2, 0xF2: 3}

# Exception flags of x87's status word and of MXCSR: those that are found before an instruction
# computes anything (invalid, denormal, divide by zero), overflow and underflow, precision.
_BEFORE, _RANGE, _FLAGS = 0x07, 0x18, 0x3F
_STACK_FAULT, _ES, _B, _C1 = 1 << 6, 1 << 7, 1 << 15, 1 << 9
_OLD_FLAGS, _CONDITION = 0x7F, 0x7F00  # of the status word; the condition includes TOP
_MXCSR_MASKS = 0x1F80
_X87_KINDS, _SIMD_KINDS = ("x87", "mmx", "both"), ("sse", "avx", "both")
_POINTERS = FDP + 8 - FOP
_SIGILL = 4
_NONE = 255  # no register, in struct pykvm_learnt
_SEGMENTS = {"fs": 1, "gs": 2}
_KINDS: dict[str, int] = {
    "x87": lib.PYKVM_X87,
    "mmx": lib.PYKVM_MMX,
    "both": lib.PYKVM_BOTH,
    "sse": lib.PYKVM_SSE,
}
# x87 and SSE in their initial state: the header says so, and MXCSR masks all exceptions.
_INITIAL = bytes(MXCSR) + b"\x80\x1f" + bytes(_STATE - MXCSR - 2)
# What trying an instruction gave, for all machines of this process.
_verdicts: dict[bytes, int] = {}


def rewritten(instruction: Instruction, unit: Unit, distance: int) -> bytes:
    """The instruction with its operand in memory `distance` bytes from its start, and RET.

    Its general register is RAX.
    """
    reg, rm = instruction.reg, instruction.rm
    memory = instruction.memory is not None
    if unit.general == "reg":
        reg = 0
    elif unit.general == "rm" and not memory:
        rm = 0
    modrm = reg << 3 & 0x38 | (5 if memory else 0xC0 | rm & 7)
    high = 0 if memory else rm >> 3
    map_, opcode = instruction.map, instruction.opcode
    prefix = bytes([instruction.prefix]) if instruction.prefix and map_ else b""
    if instruction.vex:
        head = bytes(
            (
                0xC4,
                (~(reg >> 3) & 1) << 7 | 0x40 | (~high & 1) << 5 | map_,
                instruction.vex_wide << 7
                | (~instruction.vvvv & 15) << 3
                | (instruction.vex == 256) << 2
                | _VEX_PP[instruction.prefix],
            )
        )
    else:
        rex = instruction.wide << 3 | reg >> 3 << 2 | high if map_ else 0
        head = prefix + (bytes([0x40 | rex]) if rex else b"") + _ESCAPE[map_]
    immediate = b""
    if map_ and opcode in _IMMEDIATE[map_]:
        immediate = bytes([instruction.immediate & 0xFF])
    code = head + bytes([opcode, modrm])
    if memory:
        offset = distance - len(code) - 4 - len(immediate)
        code += offset.to_bytes(4, "little", signed=True)
    return code + immediate + _RET


class Native:
    """Runs instructions of one vCPU, by the thread that runs it.

    Raises UnsupportedError where this host allows no new code.
    """

    def __init__(self) -> None:
        core = owned(lib.pykvm_native_new, lib.pykvm_native_free)
        if core == ffi.NULL:
            raise UnsupportedError("this host lets no program make code for itself")
        #: What the run loop in C completes learnt instructions with.
        self.core: Any = core
        self._state = ffi.buffer(core.state, _STATE)
        self._scratch = ffi.buffer(core.scratch, 64)
        self._places: dict[bytes, int] = {}
        # By entry of the core's: the name of the instruction; and what was counted by name before.
        self._names: dict[int, str] = {}
        self._done: Counter[str] = Counter()
        self._table: Any = ffi.NULL
        self._regions: tuple[Region, ...] = ()
        self._views: list[Any] = []

    def place(self, instruction: Instruction, unit: Unit) -> int:
        """Put the instruction among the code, rewritten, unless it is there; its place.

        Raises #UD if the processor does not have it: a new one is tried first.
        """
        key = rewritten(instruction, unit, 0)
        place = self._places.get(key)
        if place is not None:
            return place
        if len(self._places) == _STUBS:
            self._places.clear()
            self._forget()
        place = len(self._places) * _STUB
        code = rewritten(instruction, unit, lib.PYKVM_STUBS - place)
        if lib.pykvm_native_put(self.core, place, code, len(code)):
            raise UnsupportedError("this host lets no program make code for itself")
        verdict = _verdicts.get(key)
        if verdict is None:
            self._state[:] = _INITIAL
            verdict = lib.pykvm_native_try(self.core, place)
            if verdict in (0, _SIGILL):
                _verdicts[key] = verdict
        if verdict == _SIGILL:
            raise Fault(UD)
        if verdict:
            raise UnsupportedError(f"trying it gave {verdict}")
        self._places[key] = place
        return place

    def execute(self, at: Refused, unit: Unit) -> None:
        """Do the instruction.  Raises Fault, UnsupportedError, and what `Devices` raise.

        Whatever is raised, the general registers are as before.
        """
        if unit.undefined:
            raise Fault(UD)
        _check(at, unit)
        place = self.place(at.instruction, unit)
        image = image_of(at.cpu)
        if unit.kind in _X87_KINDS and image[FSW] & _ES:
            raise Fault(MF)
        linear = self._load(at, unit)
        if self._run(at, unit, place, image):
            if linear is not None and unit.store:
                at.memory.write(linear, bytes(self._scratch[: unit.size]))
            self._take_registers(at, unit)
        set_image(at.cpu, image)

    def _load(self, at: Refused, unit: Unit) -> int | None:
        """Read the operand in memory, or see that it can be written; its linear address."""
        if at.instruction.memory is None:
            return None
        linear = at.linear(unit.size, write=unit.store)
        if unit.aligned and linear % 16:
            raise Fault(GP)
        if unit.store:
            at.memory.check_write(linear, unit.size)
        else:
            self._scratch[: unit.size] = at.memory.read(linear, unit.size)
        return linear

    def _run(self, at: Refused, unit: Unit, place: int, image: bytearray) -> bool:
        """Run it on the state in `image`.

        False if x87 has found an exception that the guest unmasked, before it computed anything:
        the instruction is done, and has changed nothing but the status word.
        """
        core, state = self.core, self._state
        before = bytes(image[:_STATE])
        state[:] = before
        control, status, mxcsr = _word(image, FCW), _word(image, FSW), _word(image, MXCSR)
        if unit.kind in _X87_KINDS:
            _put(state, FCW, control | _FLAGS)
            _put(state, FSW, status & _CONDITION)
        if unit.kind in _SIMD_KINDS:
            _put(state, MXCSR, mxcsr & ~_FLAGS | _MXCSR_MASKS)
        core.rax = at.register(self._general(at, unit))
        core.rcx, core.rdx, core.rflags = at.regs.rcx, at.regs.rdx, at.regs.rflags
        if lib.pykvm_native_run(core, place):
            raise UnsupportedError("the state of the vCPU is not sound")
        image[:_STATE] = state
        # The processor has noted where the code stands here.
        image[FOP : FOP + _POINTERS] = before[FOP : FOP + _POINTERS]
        if unit.kind in _SIMD_KINDS:
            raised = _word(image, MXCSR) & _FLAGS
            unmasked = raised & ~(mxcsr >> 7)
            if unmasked:
                image[:_STATE] = before
                raised &= _BEFORE if unmasked & _BEFORE else _FLAGS
            _put(image, MXCSR, mxcsr | raised)
            if unmasked:
                set_image(at.cpu, image)
                raise Fault(XM if at.sregs.cr4 & CR4.OSXMMEXCPT else UD)
        if unit.kind == "x87":
            self._note_place(at, image)
        if unit.kind in _X87_KINDS:
            return _merge_status(image, before, control, status)
        return True

    def _general(self, at: Refused, unit: Unit) -> int:
        """The number of the general register that RAX stands for."""
        if unit.general == "reg":
            return at.instruction.reg
        return at.instruction.rm if unit.general and at.instruction.memory is None else 0

    def _take_registers(self, at: Refused, unit: Unit) -> None:
        core = self.core
        number = self._general(at, unit)
        if unit.general:
            at.set(number, 64 if at.bits == 64 else 32, core.rax)
        else:
            at.regs.rcx = core.rcx  # PCMPESTRI and PCMPISTRI
        at.set_flags(_STATUS, core.rflags)

    def _note_place(self, at: Refused, image: bytearray) -> None:
        """x87's opcode, instruction pointer and data pointer (SDM 1 8.1.8, 8.1.9)."""
        instruction = at.instruction
        _put(image, FOP, _opcode(instruction))
        image[FIP : FIP + 8] = at.regs.rip.to_bytes(8, "little")
        if instruction.memory is not None:
            next_rip = at.regs.rip + instruction.length
            offset = instruction.memory.offset(at.register, next_rip)
            image[FDP : FDP + 8] = offset.to_bytes(8, "little")

    def learn(self, at: Refused, unit: Unit, name: str, rip: int) -> None:
        """Have the run loop do this instruction by itself when it comes to it again, at `rip`.

        For 64-bit code; the instruction has been done once.  AVX is left out: it depends on XCR0,
        which the core does not know.
        """
        instruction = at.instruction
        memory = instruction.memory
        if unit.kind == "avx" or (memory is not None and memory.bits != 64):
            return
        slot = rip % lib.PYKVM_LEARNT
        entry = self.core.learnt[slot]
        if entry.length:
            self._done[self._names[slot]] += entry.count
        self._names[slot] = name
        entry.rip, entry.count, entry.length = rip, 0, instruction.length
        ffi.memmove(entry.raw, instruction.raw, instruction.length)
        entry.place = self._places[rewritten(instruction, unit, 0)]
        entry.kind, entry.size = _KINDS[unit.kind], unit.size
        entry.store, entry.aligned = unit.store, unit.aligned
        named = unit.general == "reg" or (unit.general == "rm" and memory is None)
        entry.general = self._general(at, unit) if named else _NONE
        entry.opcode = _opcode(instruction)
        entry.memory = memory is not None
        if memory is not None:
            entry.base = _NONE if memory.base is None else memory.base
            entry.index = _NONE if memory.index_register is None else memory.index_register
            entry.scale, entry.displacement = memory.scale, memory.displacement
            entry.segment = _SEGMENTS.get(memory.segment, 0)

    def follow(self, cpu: CPU, memory: GuestMemory) -> None:
        """Tell the core what may change between two looks: memory and breakpoints."""
        core = self.core
        addresses = cpu.debug.addresses
        core.breakpoint_count = len(addresses)
        for number, address in enumerate(addresses):
            core.breakpoints[number] = address
        regions = memory.regions
        if regions is self._regions:
            return
        self.close()
        ram = [region for region in regions if not region.readonly]
        table = ffi.new("struct pykvm_region[]", len(ram))
        for entry, region in zip(table, ram, strict=True):
            # Holding the view holds the mapping.
            view = region.mapping.pin()
            self._views.append(view)
            entry.start, entry.size = region.start, region.size
            entry.host = ffi.cast("uint8_t *", view)
            entry.pages = region.mapping.pages.core
        self._regions, self._table = regions, table
        core.regions, core.region_count = table, len(ram)

    def counts(self) -> Counter[str]:
        """How often the run loop has done which instruction."""
        total = Counter(self._done)
        for slot, name in list(self._names.items()):
            total[name] += self.core.learnt[slot].count
        return +total

    def _forget(self) -> None:
        """Their code is gone."""
        for slot, name in self._names.items():
            self._done[name] += self.core.learnt[slot].count
            self.core.learnt[slot].length = self.core.learnt[slot].count = 0
        self._names.clear()

    def close(self) -> None:
        """Let go of guest memory."""
        self.core.region_count = 0
        for view in self._views:
            ffi.release(view)
        self._views.clear()
        self._regions = ()


def _opcode(instruction: Instruction) -> int:
    """x87's FOP (SDM 1 8.1.9)."""
    return (instruction.opcode & 7) << 8 | (instruction.modrm or 0)


def _word(image: Any, at: int) -> int:
    return int.from_bytes(image[at : at + 2], "little")


def _put(image: Any, at: int, value: int) -> None:
    image[at : at + 2] = value.to_bytes(2, "little")


def _check(at: Refused, unit: Unit) -> None:
    """Raise #UD or #NM where instructions of this kind do (SDM 3A 2.5, table 2-3)."""
    if unit.kind == "x87":
        check_x87(at)
    elif unit.kind == "mmx":
        check_mmx(at)
    elif unit.kind == "avx":
        check_avx(at)
    else:
        check_sse(at)


def _merge_status(image: bytearray, before: bytes, control: int, status: int) -> bool:
    """x87's status word after an instruction that ran masked; False if it is to have no result.

    The exception itself comes with the next instruction that waits for one (SDM 1 8.6).
    """
    found = _word(image, FSW)
    raised = found & (_FLAGS | _STACK_FAULT)
    unmasked = raised & _FLAGS & ~control
    if unmasked & _BEFORE:
        image[:_STATE] = before
        raised &= _BEFORE | _STACK_FAULT
        direction = found & _C1 if raised & _STACK_FAULT else status & _C1
        _put(image, FSW, status & ~_C1 | direction | raised | _ES | _B)
        return False
    if unmasked & _RANGE:
        raise UnsupportedError("the guest unmasks overflow and underflow of x87")
    _put(image, FCW, control)
    _put(image, FSW, found | status & _OLD_FLAGS | (_ES | _B if unmasked else 0))
    return True
