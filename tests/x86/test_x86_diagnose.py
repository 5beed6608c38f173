"""Why a guest died: for each way to break one, the sentence that says so.

A guest here is 64-bit code at 0x10000 in 2 MiB of memory, identity mapped, with an IDT whose gates
all lead to a handler, until a test breaks something.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.x86 import descriptors
from pykvm.x86.descriptors import flat_gdt, gdt, idt, interrupt_gate, ivt, task_gate
from pykvm.x86.diagnose import EXCEPTIONS, explain, zero_vector
from pykvm.x86.entry import long_mode, protected_mode, real_mode
from pykvm.x86.paging import identity
from pykvm.x86.registers import RFLAGS
from pykvm.x86.state import CpuState, TableRegister
from pykvm.x86.tss import tss16, tss32, tss64

if TYPE_CHECKING:
    from collections.abc import Callable

TABLES, GDT, TSS, IDT, STACK = 0x1000, 0x7000, 0x7800, 0x8000, 0xA000
CODE, HANDLER = 0x1_0000, 0x1_8000
UD2 = b"\x0f\x0b"


class Guest:
    """A machine without a processor: a state and 2 MiB of memory."""

    def __init__(self, state: CpuState, code: bytes = UD2) -> None:
        self.state = state
        self.memory = bytearray(0x20_0000)
        self.write(CODE, code)

    def write(self, address: int, data: bytes) -> None:
        self.memory[address : address + len(data)] = data

    def read(self, address: int, size: int) -> bytes:
        if address + size > len(self.memory):
            raise LookupError(hex(address))
        return bytes(self.memory[address : address + size])

    @property
    def cause(self) -> str:
        sentence = explain(self.state, self.read)
        assert "\n" not in sentence
        return sentence


def long_guest(code: bytes = UD2, *, user: bool = False) -> Guest:
    tables = identity(1 << 30, base=TABLES, user=user)
    guest = Guest(long_mode(rip=CODE, rsp=STACK, cr3=tables.root, gdt_base=GDT, tss_base=TSS), code)
    guest.write(TABLES, tables.image)
    guest.write(GDT, flat_gdt(TSS).image)
    guest.write(TSS, tss64(rsp0=STACK, ist1=STACK))
    guest.write(IDT, idt(dict.fromkeys(range(256), interrupt_gate(descriptors.CODE64, HANDLER))))
    guest.state.idt = TableRegister(IDT, 0xFFF)
    if user:
        to_ring_3(guest.state)
    return guest


def protected_guest(code: bytes = UD2) -> Guest:
    guest = Guest(protected_mode(eip=CODE, esp=STACK, gdt_base=GDT, tss_base=TSS), code)
    guest.write(GDT, flat_gdt(TSS).image)
    guest.write(TSS, tss32(esp0=STACK, ss0=descriptors.DATA))
    gate = interrupt_gate(descriptors.CODE32, HANDLER, bits=32)
    guest.write(IDT, idt(dict.fromkeys(range(256), gate), bits=32))
    guest.state.idt = TableRegister(IDT, 0x7FF)
    return guest


def to_ring_3(state: CpuState) -> None:
    for segment in (state.cs, state.ss):
        segment.dpl = 3
        segment.selector |= 3


def no_gate(guest: Guest, vector: int) -> None:
    guest.write(IDT + 16 * vector, bytes(16))


def hole(address: int) -> str:
    """What the walker says of an address that has no PML4 entry."""
    slot = address >> 39 & 0x1FF
    at = TABLES + 8 * slot
    return f"{address:#x} is not mapped: PML4E[{slot}] at {at:#x} (0x0) is not present"


def not_canonical(address: int) -> str:
    return f"{address:#x} is not canonical: bits 63 to 47 must be equal in 4-level paging"


def test_an_empty_idt() -> None:
    guest = long_guest()
    guest.state.idt = TableRegister(0, 0)
    assert guest.cause == (
        "#UD (UD2 at 0x10000) could not be delivered: "
        "the IDT limit is 0x0, but the gate ends at 0x6f"
    )


def test_an_empty_idt_and_no_hint_what_the_exception_was() -> None:
    guest = long_guest(b"\x48\xf7\xf1")  # div rcx
    guest.state.idt = TableRegister(0, 0)
    assert guest.cause == (
        "an exception at 0x10000 could not be delivered, nor #DF after it: "
        "the IDT limit is 0x0, but the gate ends at 0x8f"
    )


def missing(guest: Guest) -> None:
    no_gate(guest, 6)
    no_gate(guest, 8)


def absent(guest: Guest) -> None:
    gate = interrupt_gate(descriptors.CODE64, HANDLER)._replace(present=0)
    guest.write(IDT, idt(dict.fromkeys(range(256), gate)))


def far_away(guest: Guest) -> None:
    gate = interrupt_gate(descriptors.CODE64, 0x7FFF_0000_0000)
    guest.write(IDT, idt(dict.fromkeys(range(256), gate)))


def beyond_memory(guest: Guest) -> None:
    gate = interrupt_gate(descriptors.CODE64, 0x300_0000)
    guest.write(IDT, idt(dict.fromkeys(range(256), gate)))


def gate_to(selector: int) -> Callable[[Guest], None]:
    def break_it(guest: Guest) -> None:
        guest.write(IDT, idt(dict.fromkeys(range(256), interrupt_gate(selector, HANDLER))))

    return break_it


def idt_unmapped(guest: Guest) -> None:
    guest.state.idt.base = 1 << 40


def idt_outside_memory(guest: Guest) -> None:
    guest.state.idt.base = 0x3000_0000


def gdt_unmapped(guest: Guest) -> None:
    guest.state.gdt.base = 1 << 40


def code_not_present(guest: Guest) -> None:
    guest.write(GDT + descriptors.CODE64, descriptors.code(64)._replace(present=0).encode())


def no_stack(guest: Guest) -> None:
    guest.state.rsp = 0


def stack_not_canonical(guest: Guest) -> None:
    guest.state.rsp = 0x8000_0000_1000


def ist_zero(guest: Guest) -> None:
    gate = interrupt_gate(descriptors.CODE64, HANDLER, ist=2)
    guest.write(IDT, idt(dict.fromkeys(range(256), gate)))


def ist_beyond_the_tss(guest: Guest) -> None:
    ist_zero(guest)
    guest.state.tr.limit = 0x2B


def tss_cut_short(guest: Guest) -> None:
    ist_zero(guest)
    guest.state.tr.limit = 0x32


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (missing, "the IDT has no gate for #UD: its type is 0x0"),
        (absent, "the gate of #UD is not present"),
        (far_away, f"the handler: {hole(0x7FFF00000000)}"),
        (beyond_memory, "the handler: physical 0x3000000 lies outside memory"),
        (gate_to(0), "the gate's code selector 0x0 is null"),
        (gate_to(0x58), "the gate's code selector 0x58 is beyond the limit of the GDT, 0x57"),
        (gate_to(0x0C), "the gate's code selector 0xc is beyond the limit of the LDT, 0x0"),
        (
            gate_to(descriptors.DATA),
            "the gate's code selector 0x18 names no code segment but data32",
        ),
        (
            gate_to(descriptors.CODE32),
            "the gate's code selector 0x8 names code32: in long mode a handler is 64-bit code",
        ),
        (
            gate_to(descriptors.USER_CODE64),
            "the gate's code selector 0x33 names ring 3, an outer ring",
        ),
        (code_not_present, "the gate's code selector 0x10 names a segment that is not present"),
        (idt_unmapped, f"the IDT cannot be read: {hole(0x10000000060)}"),
        (idt_outside_memory, "the IDT cannot be read: physical 0x30000060 lies outside memory"),
        (gdt_unmapped, f"the GDT cannot be read: {hole(0x10000000010)}"),
        (no_stack, f"the handler's stack: {hole(0xFFFFFFFFFFFFFFF8)}"),
        (stack_not_canonical, f"the handler's stack: {not_canonical(0x800000000FF8)}"),
        (ist_zero, f"the handler's stack: {hole(0xFFFFFFFFFFFFFFF8)}"),
        (tss_cut_short, "the TSS limit is 0x32, the stack pointer lies at 0x2c"),
        (ist_beyond_the_tss, "the TSS limit is 0x2b, the stack pointer lies at 0x2c"),
    ],
)
def test_why_a_ud2_could_not_be_delivered(break_it: Callable[[Guest], None], reason: str) -> None:
    guest = long_guest()
    break_it(guest)
    assert guest.cause == f"#UD (UD2 at 0x10000) could not be delivered: {reason}"


def test_a_missing_gate_is_not_all_when_the_double_fault_has_one() -> None:
    guest = long_guest()
    no_gate(guest, 6)
    assert guest.cause == (
        "#UD (UD2 at 0x10000) could not be delivered: the IDT has no gate for #UD: "
        "its type is 0x0; a handler for the double fault that follows is in place"
    )


def test_with_everything_in_place_it_says_so() -> None:
    assert long_guest().cause == (
        "#UD (UD2 at 0x10000), for which a handler is in place: it may be what goes wrong"
    )
    assert long_guest(b"\x90").cause == (
        "no cause is left to see: the instruction at 0x10000 can be fetched "
        "and a double fault has a handler"
    )


@pytest.mark.parametrize(
    ("rip", "cause"),
    [
        (1 << 47, f"#GP (RIP: {not_canonical(1 << 47)})"),
        (1 << 40, f"#PF (RIP: {hole(1 << 40)})"),
    ],
)
def test_a_rip_gone_wild(rip: int, cause: str) -> None:
    guest = long_guest()
    guest.state.rip = rip
    guest.state.idt = TableRegister(0, 0)
    assert guest.cause.startswith(f"{cause} could not be delivered: the IDT limit is 0x0")


def test_a_rip_beyond_memory_raises_nothing() -> None:
    guest = long_guest()
    guest.state.rip = 0x2000_0000
    assert guest.cause == (
        "the instruction at RIP 0x20000000 cannot be fetched: "
        "physical 0x20000000 lies outside memory"
    )


def test_cr3_outside_memory() -> None:
    guest = long_guest()
    guest.state.cr3 = 0x8000_0000
    assert guest.cause == (
        "the instruction at RIP 0x10000 cannot be fetched: "
        "the PML4E at 0x80000000 lies outside memory: CR3 is 0x80000000"
    )


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (b"\x0f\x0b", "#UD (UD2 at 0x10000)"),
        (b"\xcc", "#BP (INT3 at 0x10000)"),
        (b"\xcd\x80", "vector 0x80 (INT 0x80 at 0x10000)"),
        (b"\xcd\x0d", "#GP (INT 0xd at 0x10000)"),
    ],
)
def test_instructions_that_raise(code: bytes, cause: str) -> None:
    guest = long_guest(code)
    guest.state.idt = TableRegister(0, 0)
    assert guest.cause.startswith(f"{cause} could not be delivered: the IDT limit is 0x0")


@pytest.mark.parametrize(
    ("code", "access"),
    [
        (b"\x50", "0xffffffffffffeff8 is not mapped"),  # push rax
        (b"\x41\x57", "0xffffffffffffeff8 is not mapped"),  # push r15
        (b"\xe8\0\0\0\0", "0xffffffffffffeff8 is not mapped"),  # call
        (b"\xc3", "0xfffffffffffff000 is not mapped"),  # ret
        (b"\x5d", "0xfffffffffffff000 is not mapped"),  # pop rbp
    ],
)
def test_a_bad_stack_is_the_cause_of_a_push_or_pop(code: bytes, access: str) -> None:
    guest = long_guest(code)
    guest.state.rsp = 0xFFFF_FFFF_FFFF_F000
    assert guest.cause.startswith(f"#PF (stack: {access}: PML4E[511] at 0x1ff8 (0x0) is not")
    # A push needs the very bytes that the handler's frame would start with; a pop others.
    pushed = "0xffffffffffffeff8" in access
    stack = "its handler would run on the same stack" if pushed else "the handler's stack: 0xfff"
    assert f"could not be delivered: {stack}" in guest.cause


def test_a_stack_that_is_not_canonical_is_a_stack_fault() -> None:
    guest = long_guest(b"\x50")
    guest.state.rsp = 0x8000_0000_1000
    assert guest.cause.startswith("#SS (stack: 0x800000000ff8 is not canonical")


def test_a_stack_beyond_memory_raises_nothing() -> None:
    guest = long_guest(b"\x50")
    guest.state.rsp = 0x2000_0000
    assert guest.cause == (
        "the instruction at RIP 0x10000 cannot use its stack: "
        "physical 0x1ffffff8 lies outside memory"
    )


def test_cr2_has_the_last_page_fault() -> None:
    guest = long_guest(b"\x8b\x07")  # mov eax, [rdi]
    guest.state.cr2 = 0x1234_5678_9000
    no_gate(guest, 14)
    no_gate(guest, 8)
    assert guest.cause == (
        f"#PF (CR2: {hole(0x1234_5678_9000)}) "
        "could not be delivered: the IDT has no gate for #PF: its type is 0x0"
    )


def test_a_cr2_that_is_mapped_now_says_nothing() -> None:
    guest = long_guest(b"\x8b\x07")
    guest.state.cr2 = 0x1234
    guest.state.idt = TableRegister(0, 0)
    assert guest.cause.startswith("an exception at 0x10000 could not be delivered")


@pytest.mark.parametrize(("code", "name"), [(b"\xf4", "HLT"), (b"\xfa", "CLI"), (b"\xfb", "STI")])
def test_a_privileged_instruction_in_ring_3(code: bytes, name: str) -> None:
    guest = long_guest(code, user=True)
    guest.state.idt = TableRegister(0, 0)
    assert guest.cause.startswith(f"#GP ({name} at 0x10000 in ring 3) could not be delivered")


def test_iopl_3_lets_ring_3_turn_interrupts_off_but_not_halt() -> None:
    guest = long_guest(b"\xfa", user=True)
    guest.state.rflags |= RFLAGS.IOPL
    assert guest.cause.startswith("no cause is left")
    guest.write(CODE, b"\xf4")
    assert guest.cause.startswith("#GP (HLT at")


def test_from_ring_3_the_handlers_stack_is_rsp0() -> None:
    guest = long_guest(user=True)
    guest.write(TSS, tss64(rsp0=0x50_0000_0000))
    assert guest.cause == (
        "#UD (UD2 at 0x10000) could not be delivered: the handler's stack: "
        "0x4ffffffff8 is not mapped: PDPTE[319] at 0x29f8 (0x0) is not present"
    )


def test_a_handler_finds_its_stack_up_to_the_last_byte_of_the_tss() -> None:
    guest = long_guest()
    gate = interrupt_gate(descriptors.CODE64, HANDLER, ist=1)
    guest.write(IDT, idt(dict.fromkeys(range(256), gate)))
    guest.state.rsp = 0
    guest.state.tr.limit = 0x2B
    assert guest.cause.endswith("for which a handler is in place: it may be what goes wrong")


def test_from_ring_3_a_supervisor_page_cannot_be_fetched() -> None:
    guest = long_guest()
    to_ring_3(guest.state)
    guest.state.idt = TableRegister(0, 0)
    assert guest.cause.startswith(
        "#PF (RIP: user instruction fetch at 0x10000: the page is the supervisor's"
    )


def test_protected_mode_has_gates_of_eight_bytes() -> None:
    guest = protected_guest()
    assert "for which a handler is in place" in guest.cause
    guest.state.idt.limit = 0x37
    assert "for which a handler is in place" in guest.cause
    guest.state.idt.limit = 0x36
    assert guest.cause == (
        "#UD (UD2 at 0x10000) could not be delivered: "
        "the IDT limit is 0x36, but the gate ends at 0x37"
    )


def test_protected_mode_from_ring_3_takes_ss0_and_esp0() -> None:
    guest = protected_guest()
    to_ring_3(guest.state)
    assert "for which a handler is in place" in guest.cause

    guest.write(TSS, tss32(esp0=STACK))
    assert guest.cause.endswith("the stack selector 0x0 in the TSS is null")

    guest.write(TSS, tss32(esp0=0x100_0000, ss0=descriptors.DATA))
    assert guest.cause.endswith("the handler's stack: physical 0xfffffc lies outside memory")


def test_a_16_bit_tss_has_its_stack_pointers_elsewhere() -> None:
    guest = protected_guest()
    to_ring_3(guest.state)
    guest.state.tr.type = 0x3
    guest.write(TSS, tss16(sp0=STACK, ss0=descriptors.DATA))
    assert "for which a handler is in place" in guest.cause

    guest.write(TSS, tss16(sp0=STACK, ss0=0x60))
    assert guest.cause.endswith(
        "the stack selector 0x60 in the TSS is beyond the limit of the GDT, 0x57"
    )


def test_a_task_gate_is_taken_for_a_handler() -> None:
    guest = protected_guest()
    guest.write(IDT, idt(dict.fromkeys(range(256), task_gate(0x38)), bits=32))
    assert "for which a handler is in place" in guest.cause


def test_protected_mode_rip_beyond_the_limit_of_cs() -> None:
    guest = protected_guest()
    guest.state.cs.limit = 0xFFF
    guest.state.idt = TableRegister(0, 0)
    assert guest.cause.startswith(
        "#GP (RIP 0x10000 is beyond the limit of CS, 0xfff) could not be delivered"
    )


def test_a_handler_in_a_segment_with_a_base() -> None:
    guest = protected_guest()
    guest.write(GDT, gdt([None, descriptors.code(32, base=0x200_0000)]))
    assert guest.cause.endswith("the handler: physical 0x2018000 lies outside memory")


def real_guest(code: bytes) -> Guest:
    guest = Guest(real_mode(cs=CODE >> 4, ip=0), code)
    guest.write(0, ivt(dict.fromkeys(range(256), (0xF000, 0))))
    return guest


def test_real_mode_with_an_ivt() -> None:
    guest = real_guest(UD2)
    guest.state.idt.limit = 0x1B
    assert guest.cause.startswith("#UD (UD2 at 0x10000), for which a handler")

    guest.write(4 * 6, b"\x34\x12\xff\xff")
    guest.memory = guest.memory[:0x10_0000]
    assert guest.cause.endswith("the handler: physical 0x101224 lies outside memory")


def test_real_mode_with_lidt_of_limit_zero() -> None:
    guest = real_guest(UD2)
    guest.state.idt.limit = 0
    assert guest.cause == (
        "#UD (UD2 at 0x10000) could not be delivered: "
        "the IVT limit is 0x0, but the vector ends at 0x1b"
    )


def interrupted_guest() -> Guest:
    """Real-mode code at 1000:0000 that has come to address 2 by INT 10h, through a zero vector."""
    guest = real_guest(b"\xb4\x0e\xcd\x10\xf4")
    guest.write(0, bytes(0x400))
    guest.state.rsp = 0x7000
    guest.write(0x7000, b"\x04\x00" + (CODE >> 4).to_bytes(2, "little") + b"\x02\x00")
    guest.state.cs.selector = guest.state.cs.base = 0
    guest.state.rip = 2
    return guest


def test_an_interrupt_through_a_zero_vector_shows_on_the_stack() -> None:
    guest = interrupted_guest()
    said = "INT 0x10 at 0x10002 went through a vector of zeros to address 0"
    assert zero_vector(guest.state, guest.read) == said
    guest.write(0x40, b"\x01")
    assert zero_vector(guest.state, guest.read) is None


def test_what_is_no_such_interrupt() -> None:
    guest = interrupted_guest()
    guest.write(CODE + 2, b"\x90\x90")
    assert zero_vector(guest.state, guest.read) is None
    guest = interrupted_guest()
    guest.state.idt.base = 0x500
    assert zero_vector(guest.state, guest.read) is None
    guest = interrupted_guest()
    guest.state.cr0 |= 1
    assert zero_vector(guest.state, guest.read) is None
    guest = interrupted_guest()
    guest.state.ss.base = 0xFFFF_0000
    assert zero_vector(guest.state, guest.read) is None


def test_a_halt_with_interrupts_off() -> None:
    guest = long_guest(b"\xf4\x90")
    guest.state.rip += 1
    assert guest.cause == ("halted at 0x10000 with interrupts off: only an NMI or a reset wakes it")
    guest.state.rflags |= RFLAGS.IF
    assert not guest.cause.startswith("halted")


def test_a_jump_to_itself_with_interrupts_off() -> None:
    guest = real_guest(b"\xeb\xfe")
    assert guest.cause == (
        "jumps to itself at 0x10000 with interrupts off: only an NMI or a reset ends that"
    )


def test_exceptions_have_their_mnemonics() -> None:
    # SDM 3A table 6-1.
    assert " ".join(EXCEPTIONS.values()) == (
        "#DE #DB NMI #BP #OF #BR #UD #NM #DF #TS #NP #SS #GP #PF #MF #AC #MC #XM #VE #CP"
    )
    assert list(EXCEPTIONS) == [*range(9), *range(10, 15), *range(16, 22)]


STATES = [long_guest().state, protected_guest().state, real_mode(ip=CODE, cs=0)]


@given(data=st.data(), junk=st.binary(min_size=64, max_size=64))
def test_any_state_gives_one_sentence(data: st.DataObject, junk: bytes) -> None:
    state = data.draw(st.sampled_from(STATES)).copy()
    for name in ("rip", "rsp", "cr2", "cr3", "rflags"):
        setattr(state, name, data.draw(st.integers(0, 2**64 - 1), label=name))
    for table in (state.idt, state.gdt, state.tr, state.ldt):
        table.base = data.draw(st.integers(0, 2**64 - 1))
        table.limit = data.draw(st.integers(0, 0xFFFF))

    def read(address: int, size: int) -> bytes:
        if address >> 20 & 3 == 3:
            raise LookupError
        at = address % 48
        return junk[at : at + size].ljust(size, b"\0")

    sentence = explain(state, read)
    assert sentence
    assert "\n" not in sentence


def test_code_at_the_end_of_the_last_page_is_read_as_far_as_it_goes() -> None:
    guest = long_guest()
    guest.state.rip = len(guest.memory) - 2
    guest.write(guest.state.rip, UD2)
    assert guest.cause.startswith("#UD (UD2 at 0x1ffffe)")
