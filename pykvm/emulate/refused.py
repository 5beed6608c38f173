"""A vCPU that stands at an instruction which KVM refused."""

from __future__ import annotations

from pykvm._core import ffi
from pykvm.emulate.fault import GP, SS, UD, Fault
from pykvm.typed import TYPE_CHECKING
from pykvm.x86.registers import CR0, CR4, EFER, RFLAGS

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    from pykvm.emulate.memory import LinearMemory
    from pykvm.vcpu import CPU
    from pykvm.x86.decode import Address, Instruction

    #: By the spelling of `pykvm.emulate.spelling`: the mnemonic and what does it.
    Operations: TypeAlias = dict[str, tuple[str, Callable[["Refused"], None]]]

__all__ = ["Operations", "Refused", "code_bits"]

# Where struct kvm_regs has the register that ModRM calls by this number.
_PLACES = (0, 2, 3, 1, 6, 7, 4, 5, *range(8, 16))
_MASKS = {8: 0xFF, 16: 0xFFFF, 32: 0xFFFF_FFFF, 64: (1 << 64) - 1}
_EXPAND_DOWN, _CODE = 4, 8


def code_bits(sregs: Any, rflags: int) -> int:
    """The width of the code at CS:RIP: 16, 32 or 64."""
    if not sregs.cr0 & CR0.PE or rflags & RFLAGS.VM:
        return 16
    if sregs.efer & EFER.LMA and sregs.cs.l:
        return 64
    return 32 if sregs.cs.db else 16


class Refused:
    """The registers and the memory that the instruction works on.

    `instruction` is set once the instruction is known.  `regs` and `sregs` are the struct
    kvm_regs and kvm_sregs of the kvm_run page: a handler writes to `regs` freely and sets
    `sregs_changed` if it wrote to `sregs`.  RIP moves past the
    instruction unless `jumped` is set.  A handler raises `Fault` before it changes
    anything.
    """

    __slots__ = (
        "bits", "cpl", "cpu", "finished", "instruction", "jumped", "memory", "regs", "sregs",
        "sregs_changed", "words",
    )  # fmt: skip

    instruction: Instruction

    def __init__(self, cpu: CPU, registers: Any, bits: int, memory: LinearMemory) -> None:
        self.cpu = cpu
        self.regs: Any = registers.regs
        self.sregs: Any = registers.sregs
        self.words: Any = ffi.cast("uint64_t *", ffi.addressof(registers, "regs"))
        self.bits = bits
        self.cpl: int = self.sregs.ss.dpl if self.sregs.cr0 & CR0.PE else 0
        self.memory = memory
        self.sregs_changed = False
        self.jumped = False
        self.finished = False

    def register(self, number: int) -> int:
        """All 64 bits of a general register."""
        value: int = self.words[_PLACES[number]]
        return value

    def get(self, number: int, bits: int) -> int:
        """The low 16, 32 or 64 bits of a general register."""
        value: int = self.words[_PLACES[number]] & _MASKS[bits]
        return value

    def set(self, number: int, bits: int, value: int) -> None:
        """Write a general register: 32 bits clear the upper half, 16 leave the rest alone."""
        place = _PLACES[number]
        if bits == 16:
            value = self.words[place] & ~0xFFFF | value & 0xFFFF
        self.words[place] = value & _MASKS[max(bits, 32) if bits != 16 else 64]

    def set_flags(self, changed: int, value: int) -> None:
        """Set those of RFLAGS that `changed` names to what they are in `value`."""
        self.regs.rflags = self.regs.rflags & ~changed | value & changed

    def set_pair(self, value: int) -> None:
        """EDX:EAX, and the upper halves clear."""
        self.regs.rax = value & 0xFFFF_FFFF
        self.regs.rdx = value >> 32 & 0xFFFF_FFFF

    def pair(self) -> int:
        """EDX:EAX."""
        return self.get(2, 32) << 32 | self.get(0, 32)

    def finish(self) -> None:
        """The instruction is done: RIP goes on, and KVM takes what was changed.

        Called for every handler that has not done it by itself.
        """
        self.finished = True
        regs = self.regs
        if not self.jumped:
            regs.rip = (regs.rip + self.instruction.length) & _MASKS[self.bits]
        regs.rflags &= ~RFLAGS.RF
        if self.sregs_changed:
            self.cpu.engine.commit_sregs()
        self.cpu.engine.commit_regs()

    @property
    def real(self) -> bool:
        """Whether this is code of real or virtual-8086 mode."""
        return not self.sregs.cr0 & CR0.PE or bool(self.regs.rflags & RFLAGS.VM)

    def privileged(self) -> None:
        """Raise #GP(0) outside ring 0."""
        if self.cpl:
            raise Fault(GP)

    def no_lock(self) -> None:
        """Raise #UD for a LOCK prefix."""
        if self.instruction.lock:
            raise Fault(UD)

    @property
    def address(self) -> Address:
        """The memory operand.  Raises #UD where ModRM names a register."""
        memory = self.instruction.memory
        if memory is None:
            raise Fault(UD)
        return memory

    def linear(self, length: int, *, write: bool) -> int:
        """The linear address of the memory operand, `length` bytes long.

        Raises #GP(0) or, through SS, #SS(0): not canonical, beyond the limit, of the wrong type
        (SDM 2A, "64-bit mode exceptions" of any instruction; SDM 3A 5.3, 5.5).
        """
        address = self.address
        offset = address.offset(self.register, self.regs.rip + self.instruction.length)
        return self.in_segment(address.segment, offset, length, write=write)

    def in_segment(self, name: str, offset: int, length: int, *, write: bool) -> int:
        """The linear address of an offset in a segment.  Raises as `linear` does."""
        segment = getattr(self.sregs, name)
        vector = SS if name == "ss" else GP
        if self.bits == 64:
            base = segment.base if name in ("fs", "gs") else 0
            linear = (base + offset) & _MASKS[64]
            shift = 56 if self.sregs.cr4 & CR4.LA57 else 47
            for end in (linear, linear + length - 1):
                if end >> shift not in (0, _MASKS[64] >> shift):
                    raise Fault(vector)
            return linear
        last = offset + length - 1
        if self.sregs.cr0 & CR0.PE:
            if segment.unusable or not segment.present:
                raise Fault(vector)
            readable = not segment.type & _CODE or segment.type & 2
            writable = not segment.type & _CODE and segment.type & 2
            if not (writable if write else readable):
                raise Fault(vector)
        if segment.type & (_CODE | _EXPAND_DOWN) == _EXPAND_DOWN:
            inside = segment.limit < offset and last <= (0xFFFF_FFFF if segment.db else 0xFFFF)
        else:
            inside = last <= segment.limit
        if not inside:
            raise Fault(vector)
        start: int = segment.base
        return (start + offset) & 0xFFFF_FFFF

    def load(self, bits: int) -> int:
        """The value of the operand in ModRM.rm, a general register or memory."""
        instruction = self.instruction
        if instruction.memory is None:
            return self.get(instruction.rm, bits)
        linear = self.linear(bits // 8, write=False)
        return int.from_bytes(self.memory.read(linear, bits // 8), "little")

    def read(self, length: int) -> bytes:
        """`length` bytes of the memory operand."""
        return self.memory.read(self.linear(length, write=False), length)

    def write(self, data: bytes) -> None:
        """Write the memory operand."""
        self.memory.write(self.linear(len(data), write=True), data)
