"""A vCPU without KVM: the registers, the state and the memory that completed instructions use."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pykvm._core import ffi, lib
from pykvm.emulate import Emulator
from pykvm.exits import InternalError
from pykvm.kvm import uapi
from pykvm.memory import GuestMemory
from pykvm.x86.cpuid_features import REGISTERS, WORDS
from pykvm.x86.descriptors import CODE64, flat_gdt, idt, interrupt_gate
from pykvm.x86.registers import CR0, CR4

GDT, IDT, HANDLER = 0xF_0000, 0xF_1000, 0xF_2000
#: CPUID leaf 0xD: x87, SSE and AVX.
LEAF_D = ((0, 7, 832, 832), (2, 256, 576, 0))
MXCSR_DEFAULT = b"\x80\x1f\0\0"


class FakeKvm:
    """What `kvm.VCPU` is asked for."""

    xsave_size = 4096

    def __init__(self) -> None:
        self.xsave = bytearray(4096)
        self.xsave[0:2] = b"\x7f\x03"
        self.xsave[24:32] = MXCSR_DEFAULT + b"\xff\xff\x02\0"
        self.xcr0 = 7
        self.msrs: dict[int, int] = {0x10: 0x1234_5678_9ABC, 0xC0000103: 3}
        self.dr6 = 0
        #: Features that CPUID does not show.
        self.hidden: set[str] = set()

    def ioctl(self, number: int, buffer: Any) -> int:
        if number == uapi.KVM_GET_XSAVE:
            buffer[:] = self.xsave
        elif number == uapi.KVM_SET_XSAVE:
            self.xsave[:] = buffer
        elif number == uapi.KVM_GET_XCRS:
            buffer[16:24] = self.xcr0.to_bytes(8, "little")
        elif number == uapi.KVM_SET_XCRS:
            self.xcr0 = int.from_bytes(buffer[16:24], "little")
        elif number == uapi.KVM_GET_MSRS:
            for at in range(8, len(buffer), 16):
                index = int.from_bytes(buffer[at : at + 4], "little")
                buffer[at + 8 : at + 16] = self.msrs.get(index, 0).to_bytes(8, "little")
        else:
            raise AssertionError(f"ioctl {number:#x}")
        return 0

    def get_cpuid2(self) -> list[SimpleNamespace]:
        found = [
            SimpleNamespace(
                function=0xD, index=index, flags=1, eax=size, ebx=offset, ecx=ecx, edx=0
            )
            for index, size, offset, ecx in LEAF_D
        ]
        for (leaf, subleaf, number), names in WORDS.items():
            entry = next((e for e in found if (e.function, e.index) == (leaf, subleaf)), None)
            if entry is None:
                entry = SimpleNamespace(function=leaf, index=subleaf, flags=1)
                entry.eax = entry.ebx = entry.ecx = entry.edx = 0
                found.append(entry)
            bits = sum(
                1 << bit
                for bit, name in enumerate(names)
                if name != "-" and name not in self.hidden
            )
            setattr(entry, REGISTERS[number], bits)
        return found

    def get_msrs(self, indices: list[int], *, partial: bool = False) -> dict[int, int]:
        return {index: self.msrs[index] for index in indices if index in self.msrs}

    def get_debugregs(self) -> SimpleNamespace:
        return SimpleNamespace(dr6=self.dr6)

    def set_debugregs(self, value: SimpleNamespace) -> None:
        self.dr6 = value.dr6


class FakeCpu:
    """A `CPU` and its engine: 64-bit code of ring 0 without paging, which no processor has."""

    index = 0

    def __init__(self, memory: GuestMemory) -> None:
        self.engine = self
        self.kvm = FakeKvm()
        self.memory = memory
        self.all: Any = ffi.new("struct kvm_sync_regs *")
        self.core = ffi.new("struct pykvm_vcpu *")
        self.taken: list[str] = []
        self.debug = SimpleNamespace(stepping=False, addresses=())
        sregs = self.all.sregs
        sregs.cr0 = CR0.PE | CR0.MP | CR0.ET | CR0.NE
        sregs.cr4 = CR4.OSFXSR | CR4.OSXSAVE | CR4.PAE
        sregs.efer = 0x500
        sregs.cs.l = 1
        self.all.regs.rflags = 2
        self.all.regs.rip = 0x1000
        assert lib.PYKVM_COUNTERS == 128

    def sync_regs(self) -> Any:
        return self.all

    def commit_regs(self) -> None:
        self.taken.append("general")

    def commit_sregs(self) -> None:
        self.taken.append("sregs")

    def commit_events(self) -> None:
        self.taken.append("events")

    def read(self, address: int, length: int) -> bytes:
        return self.memory.read(address, length)


class Devices:
    """Reads as ones everywhere; notes accesses."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int, int]] = []

    def read(self, address: int, size: int) -> int:
        self.log.append(("read", address, size))
        return int.from_bytes(b"\x11" * size, "little")

    def write(self, address: int, size: int, value: int) -> None:
        self.log.append(("write", address, size))


class Bench:
    """A fake vCPU, with handlers for all vectors, and an emulator for it."""

    def __init__(self) -> None:
        self.memory = GuestMemory()
        self.memory.add_ram(0, 0x10_0000)
        self.cpu = FakeCpu(self.memory)
        self._add_gates()
        self.devices = Devices()
        self.emulator = Emulator(self.memory, self.devices)

    def _add_gates(self) -> None:
        sregs = self.cpu.all.sregs
        sregs.gdt.base, sregs.idt.base = GDT, IDT
        gdt = flat_gdt(0).image
        gates = {vector: interrupt_gate(CODE64, HANDLER) for vector in range(256)}
        self.memory.write(GDT, gdt)
        self.memory.write(IDT, idt(gates))
        sregs.gdt.limit, sregs.idt.limit = len(gdt) - 1, 0xFFF

    def take(self, code: bytes) -> bool:
        """Do the instruction `code`, which KVM is said to have refused."""
        raw = bytes([15]) + code[:15].ljust(15, b"\x90")
        words = int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little")
        cpu: Any = self.cpu
        return self.emulator.take(cpu, InternalError(1, (1, *words)))

    def close(self) -> None:
        self.memory.close()
