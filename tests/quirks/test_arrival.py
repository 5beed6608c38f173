"""Where INT n leads from ring 3 (SDM 2A, INT n; SDM 3A 6.12 to 6.14), without KVM."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import MemoryRangeError
from pykvm.quirks.software_interrupt import Arrival, arrival
from pykvm.x86.descriptors import Gate, code, data, gdt, interrupt_gate, trap_gate
from pykvm.x86.registers import RFLAGS
from pykvm.x86.tss import tss64

IDT, GDT, TSS, CODE = 0x1000, 0x3000, 0x4000, 0x8000
STACK_TOP, IST1_TOP, IST2_TOP = 0x6000, 0x7000, 0x7800
KERNEL, OTHER_KERNEL, USER_CS, USER_SS = 0x08, 0x18, 0x23, 0x1B
FLAGS = 2 | RFLAGS.IF | RFLAGS.ZF
RSP3 = 0xABCD

UD, NP, GP = 6, 11, 13


class Guest:
    """Memory with tables in it, and a vCPU at the first instruction of the #UD handler."""

    def __init__(self, instruction: bytes = b"\xcd\x80", **gates: Gate) -> None:
        self.memory = bytearray(0x10000)
        self.cs = KERNEL
        self.idt_base, self.idt_limit = IDT, 0x90 * 16 - 1
        self.gdt_base, self.tss_base = GDT, TSS
        table = gdt(
            [None, code(64), data(32), code(64), data(32, dpl=3), code(32), code(64, dpl=3)]
        )
        self.gdt_limit = len(table) - 1
        self.put(GDT, table)
        self.put(TSS, tss64(rsp0=STACK_TOP, ist1=IST1_TOP + 5, ist2=IST2_TOP))
        for vector in (UD, NP, GP):
            self.gate(vector, interrupt_gate(KERNEL, 0x100 * vector))
        for name, gate in gates.items():
            self.gate(int(name.removeprefix("v"), 16), gate)
        self.put(CODE, instruction)
        self.push(STACK_TOP, cs=USER_CS)

    def push(self, top: int, cs: int) -> None:
        """The frame of a #UD: it is a fault, so RF is set in it."""
        frame = struct.pack("<5Q", CODE, cs, FLAGS | RFLAGS.RF, RSP3, USER_SS)
        self.rsp = top - len(frame)
        self.put(self.rsp, frame)

    def put(self, address: int, content: bytes) -> None:
        self.memory[address : address + len(content)] = content

    def gate(self, vector: int, gate: Gate) -> None:
        self.put(IDT + vector * 16, gate.encode())

    def read(self, address: int, length: int, /) -> bytes:
        if not 0 <= address <= len(self.memory) - length:
            raise MemoryRangeError("nothing there", address=address, length=length)
        return bytes(self.memory[address : address + length])


def words(there: Arrival | None) -> tuple[int, ...]:
    assert there is not None
    return struct.unpack(f"<{len(there.frame) // 8}Q", there.frame)


def test_an_interrupt_gate() -> None:
    there = arrival(Guest(v80=interrupt_gate(KERNEL, 0x5000, dpl=3)))

    assert words(there) == (CODE + 2, USER_CS, FLAGS, RSP3, USER_SS)
    assert there is not None
    assert there.rip == 0x5000
    assert there.rsp == STACK_TOP - 40
    assert there.rflags == FLAGS & ~RFLAGS.IF
    assert there.cs is None


def test_a_trap_gate_leaves_interrupts_on() -> None:
    there = arrival(Guest(v80=trap_gate(KERNEL, 0x5000, dpl=3)))
    assert there is not None
    assert there.rflags == FLAGS


def test_flags_that_every_gate_clears() -> None:
    guest = Guest(v80=trap_gate(KERNEL, 0x5000, dpl=3))
    flags = FLAGS | RFLAGS.TF | RFLAGS.NT | RFLAGS.RF
    guest.put(guest.rsp + 16, flags.to_bytes(8, "little"))
    there = arrival(guest)
    assert there is not None
    assert there.rflags == FLAGS
    assert words(there)[2] == FLAGS | RFLAGS.TF | RFLAGS.NT


@pytest.mark.parametrize(("ist", "top"), [(1, IST1_TOP), (2, IST2_TOP)])
def test_a_stack_of_the_interrupt_stack_table(ist: int, top: int) -> None:
    there = arrival(Guest(v80=interrupt_gate(KERNEL, 0x5000, dpl=3, ist=ist)))
    assert there is not None
    assert there.rsp == top - 40
    assert words(there)[3] == RSP3


def test_back_from_the_stack_of_invalid_opcode_to_rsp0() -> None:
    guest = Guest(
        v06=interrupt_gate(KERNEL, 0x600, ist=2), v80=interrupt_gate(KERNEL, 0x5000, dpl=3)
    )
    guest.push(IST2_TOP, cs=USER_CS)
    there = arrival(guest)
    assert there is not None
    assert there.rsp == STACK_TOP - 40


def test_another_code_segment_is_loaded() -> None:
    there = arrival(Guest(v80=interrupt_gate(OTHER_KERNEL, 0x5000, dpl=3)))
    assert there is not None
    assert there.cs is not None
    selector, descriptor = there.cs
    assert (selector, descriptor.l, descriptor.dpl) == (OTHER_KERNEL, 1, 0)


@pytest.mark.parametrize(
    ("gates", "vector", "fault"),
    [
        ({"v80": interrupt_gate(KERNEL, 0x5000)}, 0x80, GP),
        ({}, 0x80, GP),
        ({"v80": interrupt_gate(KERNEL, 0x5000, dpl=3)._replace(present=0)}, 0x80, NP),
        ({}, 0x90, GP),
    ],
    ids=["a gate of ring 0", "no gate", "an absent gate", "beyond the limit"],
)
def test_what_ring_3_may_not_have_is_a_fault(
    gates: dict[str, Gate], vector: int, fault: int
) -> None:
    there = arrival(Guest(bytes([0xCD, vector]), **gates))

    # A fault: RIP is still on the INT, and RF is set.
    error = vector * 8 + 2
    assert words(there) == (error, CODE, USER_CS, FLAGS | RFLAGS.RF, RSP3, USER_SS)
    assert there is not None
    assert there.rip == 0x100 * fault
    assert there.rsp == STACK_TOP - 48


def test_an_ordinary_invalid_opcode_is_no_int_n() -> None:
    assert arrival(Guest(b"\x0f\x0b", v80=interrupt_gate(KERNEL, 0x5000, dpl=3))) is None


def test_ring_0_is_left_alone() -> None:
    guest = Guest(v80=interrupt_gate(KERNEL, 0x5000, dpl=3))
    guest.push(STACK_TOP, cs=KERNEL)
    assert arrival(guest) is None


@pytest.mark.parametrize("selector", [0x10, 0x28, 0x20, 0x30, 0x38, 0x0C])
def test_a_gate_to_what_is_no_kernel_code_is_left_to_the_guest(selector: int) -> None:
    """Data, 32-bit code, data of ring 3, code of ring 3, beyond the GDT, an LDT."""
    assert arrival(Guest(v80=interrupt_gate(selector, 0x5000, dpl=3))) is None


def test_memory_that_is_not_there() -> None:
    for name in ("rsp", "idt_base", "gdt_base", "tss_base"):
        guest = Guest(v80=interrupt_gate(OTHER_KERNEL, 0x5000, dpl=3, ist=1))
        setattr(guest, name, 1 << 48)
        assert arrival(guest) is None, name


def test_faults_without_a_handler_are_left_to_the_guest() -> None:
    guest = Guest()
    guest.put(IDT + GP * 16, bytes(16))
    assert arrival(guest) is None


@given(st.data())
def test_no_tables_of_a_guest_raise_anything(data: st.DataObject) -> None:
    guest = Guest(v80=interrupt_gate(KERNEL, 0x5000, dpl=3))
    places = st.sampled_from(
        [guest.rsp, IDT + UD * 16, IDT + 0x80 * 16, IDT + GP * 16, GDT, TSS, CODE]
    )
    for _ in range(data.draw(st.integers(1, 6))):
        guest.put(
            data.draw(places) + data.draw(st.integers(0, 39)), data.draw(st.binary(max_size=8))
        )
    for name in ("idt_limit", "gdt_limit", "tss_base", "rsp"):
        if data.draw(st.booleans()):
            setattr(guest, name, data.draw(st.integers(0, (1 << 64) - 1)))
    there = arrival(guest)
    if there is not None:
        assert 0 <= there.rsp < 1 << 64
        assert len(there.frame) in (40, 48)
