"""One instruction, executed by a vCPU in the ring of your choice, and everything that came of it.

Ring 3 of 64-bit code runs on the processor itself on every host; ring 0 does so where KVM has VMX
or SVM, and elsewhere KVM's emulator takes it, refuses it, and pykvm completes it.  So the same
instruction in both rings must leave the same state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from pykvm import Machine
from pykvm.emulate import Emulator
from pykvm.exits import Hlt, InternalError, MmioRead, MmioWrite
from pykvm.kvm import uapi
from pykvm.vcpu import CPU
from pykvm.x86 import descriptors
from pykvm.x86.cpuid_features import FEATURES
from pykvm.x86.descriptors import decode_segment, flat_gdt, idt, interrupt_gate
from pykvm.x86.entry import long_mode
from pykvm.x86.paging import PageTables, PagingMode
from pykvm.x86.registers import CR4
from pykvm.x86.state import CpuState, SegmentRegister
from pykvm.x86.tss import tss64

TABLES, GDT, IDT, TSS, HANDLERS = 0x1000, 0x20_000, 0x21_000, 0x22_000, 0x23_000
CODE, DATA, STACK, KERNEL_STACK = 0x30_000, 0x40_000, 0x50_000, 0x60_000
DATA_SIZE = 0x2000
MISSING = 0x42_000  # no page here
READ_ONLY = 0x43_000
#: Where a device is, and where the code ends by writing to one.
DEVICE, END = 0x44_000, 0x45_000
DEVICE_GPA, END_GPA = 0xD000_0000, 0xD000_1000
#: Before it the first page of DATA is mapped once more, from it on the device.
BORDER = 0x49_000
STOP = bytes.fromhex("c604250050040000")  # mov byte [END], 0

GENERAL = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
)
STATUS = 0x8D5
_ERROR_CODES = {8, 10, 11, 12, 13, 14, 17, 21}


class Outcome(NamedTuple):
    """The state advanced one instruction.

    `exception` is (vector, error code, CR2 of a page fault) or None; `xsave` the XSAVE image
    without x87's instruction pointers; `advanced` the distance that RIP went.
    """

    registers: dict[str, int]
    flags: int
    memory: bytes
    xsave: bytes
    exception: tuple[int, int, int] | None
    advanced: int
    device: list[tuple[str, int, bytes]]


class Device:
    """Reads as consecutive bytes; notes what was written."""

    name = "device"

    def __init__(self) -> None:
        self.log: list[tuple[str, int, bytes]] = []

    def read(self, offset: int, size: int) -> int:
        value = bytes(offset + at & 0xFF for at in range(size))
        self.log.append(("read", offset, value))
        return int.from_bytes(value, "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.log.append(("write", offset, value.to_bytes(size, "little")))


class Rig:
    """A machine that executes instructions one by one."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.cpu: CPU = machine.vcpus[0]
        self.device = Device()
        machine.add(self.device, mmio=DEVICE_GPA, length=0x1000)
        self._lay_out()
        self.kvm = self.cpu.kvm
        self._set_xcr0()
        self.pristine = self.kvm.get_xsave()
        self.completed = 0
        self.emulator: Emulator = machine._workarounds.emulator()
        # Forced instructions are done whether this host's CPUID shows them or not.
        self.emulator.features = FEATURES

    def _set_xcr0(self) -> None:
        buffer = bytearray(uapi.kvm_xcrs.size)
        buffer[0], buffer[16] = 1, 7
        self.kvm.ioctl(uapi.KVM_SET_XCRS, buffer)

    def _lay_out(self) -> None:
        memory = self.machine.memory
        tables = PageTables(PagingMode.LEVEL4, iter(range(TABLES, GDT, 0x1000)).__next__)
        marks = {"accessed": True, "dirty": True}
        tables.map(GDT, GDT, 0x10_000, **marks)
        for start, size in ((CODE, 0x2000), (DATA, DATA_SIZE), (STACK - 0x1000, 0x2000)):
            tables.map(start, start, size, user=True, **marks)
        tables.map(KERNEL_STACK - 0x1000, KERNEL_STACK - 0x1000, 0x1000, **marks)
        tables.map(READ_ONLY, READ_ONLY, 0x1000, user=True, writable=False, accessed=True)
        tables.map(DEVICE, DEVICE_GPA, 0x1000, user=True, **marks)
        tables.map(BORDER - 0x1000, DATA, 0x1000, user=True, **marks)
        tables.map(BORDER, DEVICE_GPA, 0x1000, user=True, **marks)
        for page in (END, END + 0x1000):  # one more for data segments with a base
            tables.map(page, END_GPA, 0x1000, user=True, **marks)
        for address, table in tables.pages.items():
            memory.write(address, table)
        self.root = tables.root
        self.gdt = flat_gdt(TSS)
        memory.write(GDT, self.gdt.image)
        memory.write(TSS, tss64(rsp0=KERNEL_STACK))
        gates = {
            vector: interrupt_gate(descriptors.CODE64, HANDLERS + 16 * vector, dpl=3)
            for vector in range(256)
        }
        memory.write(IDT, idt(gates))
        memory.write(HANDLERS, bytes.fromhex("f4").ljust(16, b"\xcc") * 256)

    def state(self, ring: int) -> CpuState:
        """64-bit code in ring 0 or 3, about to execute at CODE."""
        flags = CR4.OSXSAVE | CR4.FSGSBASE
        state = long_mode(
            rip=CODE, rsp=STACK, cr3=self.root, gdt_base=GDT, tss_base=TSS, cr4_flags=flags
        )
        state.idt.base, state.idt.limit = IDT, 0xFFF
        if ring:
            image = self.gdt.image
            for name, selector in (
                ("cs", descriptors.USER_CODE64),
                *((name, descriptors.USER_DATA) for name in ("ds", "es", "fs", "gs", "ss")),
            ):
                register = SegmentRegister.load(decode_segment(image, selector), selector)
                setattr(state, name, register)
        return state

    def run(
        self,
        code: bytes,
        ring: int,
        *,
        registers: dict[str, int] | None = None,
        flags: int = 0,
        data: bytes = b"",
        xsave: bytes | None = None,
        at: int = CODE,
        cr0: int = 0,
        cr4: int = 0,
        setup: Callable[[CpuState], None] = lambda state: None,
        forced: bool = False,
    ) -> Outcome:
        """Execute the instruction `code`, by pykvm where KVM refuses it, or anyhow if `forced`.

        `cr0` and `cr4` are bits to set, or negative ones to clear; `setup` changes the rest.
        """
        memory = self.machine.memory
        memory.write(DATA, data.ljust(DATA_SIZE, b"\xa5"))
        memory.write(at, code + STOP)
        state = self.state(ring)
        state.rip = at
        state.cr0 = state.cr0 | cr0 if cr0 >= 0 else state.cr0 & ~-cr0
        state.cr4 = state.cr4 | cr4 if cr4 >= 0 else state.cr4 & ~-cr4
        setup(state)
        state.rflags = 2 | flags
        for name, value in (registers or {}).items():
            setattr(state, name, value)
        self.cpu.state = state
        self.kvm.set_xsave(xsave or self.pristine)
        self.device.log.clear()
        exception = None
        if forced:
            self.complete(code)
        for exit in self.cpu.raw_exits(timeout=10):
            match exit:
                case MmioWrite(address=address) if address & -0x1000 == END_GPA:
                    break
                case MmioRead() | MmioWrite():
                    assert self.machine.handle(exit)
                case InternalError():
                    self._complete(exit)
                case Hlt():
                    exception = self._exception()
                    break
                case _:
                    raise AssertionError(f"{code.hex(' ')}: {exit!r} {self.cpu.state}")
        return self._outcome(at, exception, len(code))

    def complete(self, code: bytes) -> None:
        """Have pykvm do the instruction `code`, at which the vCPU stands."""
        self._complete(InternalError(1, (1, *_words(code))))

    def _complete(self, exit: InternalError) -> None:
        self.completed += 1
        if not self.emulator.take(self.cpu, exit):
            raise AssertionError(f"not emulated: {self.emulator.refusal(self.cpu)}")

    def _exception(self) -> tuple[int, int, int]:
        """What the frame of the handler says; then the interrupted state is put back."""
        regs = self.cpu.regs
        vector, frame = (regs.rip - HANDLERS) // 16, regs.rsp
        error = 0
        if vector in _ERROR_CODES:
            error = int.from_bytes(self.cpu.read(frame, 8), "little")
            frame += 8
        words = [int.from_bytes(self.cpu.read(frame + 8 * n, 8), "little") for n in range(4)]
        address = regs.cr2 if vector == 14 else 0
        regs.rip, regs.rflags, regs.rsp = words[0], words[2], words[3]
        return vector, error, address

    def _outcome(self, at: int, exception: tuple[int, int, int] | None, length: int) -> Outcome:
        regs = self.cpu.regs
        image = bytearray(self.kvm.get_xsave())
        image[6:24] = bytes(18)
        top = image[3] >> 3 & 7
        for number in range(8):
            if not image[4] >> ((number + top) % 8) & 1:
                # An empty x87 register may hold anything.
                image[32 + 16 * number : 48 + 16 * number] = bytes(16)
        advanced = regs.rip - at if exception else length
        return Outcome(
            {name: getattr(regs, name) for name in GENERAL},
            regs.rflags & STATUS,
            self.machine.memory.read(DATA, DATA_SIZE),
            bytes(image[:464]) + bytes(image[576:]),
            exception,
            advanced,
            list(self.device.log),
        )


def _words(code: bytes) -> tuple[int, int]:
    """The instruction as struct kvm_run has it: a length, then 15 bytes."""
    raw = bytes([15]) + code[:15].ljust(15, b"\x90")
    return int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little")


@contextmanager
def make_rig() -> Iterator[Rig]:
    """A rig on a machine of its own."""
    with Machine(memory="4M", cpu="host") as machine:
        yield Rig(machine)
