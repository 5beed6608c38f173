"""INT3, INT n, INT1 and INTO in every mode, and far returns."""

from __future__ import annotations

from typing import Any

import pytest

from emulate.facts import INT1, SOFT_EVENTS
from emulate.rig import CODE, DATA, GDT, HANDLERS, IDT, KERNEL_STACK, STACK, Rig
from pykvm import Machine, Mode
from pykvm.x86 import descriptors
from pykvm.x86.descriptors import idt, interrupt_gate
from pykvm.x86.registers import RFLAGS
from support.guest import MakeGuest
from support.host import require_host
from support.listing import assemble
from support.ring_3 import BUSY_TSS

pytestmark = pytest.mark.kvm


@pytest.mark.parametrize(
    ("code", "vector"),
    [("cc", 3), ("cd03", 3), ("cd04", 4), ("cd80", 0x80), ("cd20", 0x20), ("f1", 1)],
)
@pytest.mark.parametrize("forced", [False, True])
def test_ring_0_of_long_mode(rig: Rig, code: str, vector: int, forced: bool) -> None:
    """RIP in the frame is after the instruction."""
    if forced and code != "f1":
        require_host(SOFT_EVENTS)
    elif code == "f1":
        require_host(INT1)
    raw = bytes.fromhex(code)
    outcome = rig.run(raw, 0, forced=forced)
    assert outcome.exception is not None
    assert outcome.exception[0] == vector
    assert outcome.advanced == len(raw)


def test_int_n_through_a_gate_of_ring_0_is_not_ring_3s(rig: Rig) -> None:
    memory = rig.machine.memory
    old = memory.read(IDT, 0x1000)
    gate = {0x80: interrupt_gate(descriptors.CODE64, HANDLERS + 16 * 0x80, dpl=0)}
    memory.write(IDT + 0x800, idt(gate)[0x800:0x810])
    outcome = rig.run(bytes.fromhex("cd80"), 3, forced=True)
    memory.write(IDT, old)
    assert outcome.exception == (13, 0x80 * 8 + 2, 0)
    assert outcome.advanced == 0


GATE, SLOT = 0x80, descriptors.DATA16
ABSENT = descriptors.code(64)._replace(present=0)


@pytest.mark.parametrize(
    ("gate", "slot", "exception"),
    [
        ({"present": 0}, None, (11, GATE * 8 + 2)),
        ({"type": 12}, None, (13, GATE * 8 + 2)),  # a call gate
        ({"selector": 0}, None, (13, 0)),
        ({"selector": 3}, None, (13, 0)),
        ({"selector": 0xFF8}, None, (13, 0xFF8)),
        ({"selector": descriptors.DATA}, None, (13, descriptors.DATA)),
        ({"selector": descriptors.CODE32}, None, (13, descriptors.CODE32)),
        ({"selector": descriptors.USER_CODE64}, None, (13, descriptors.USER_CODE64 & ~3)),
        ({"selector": SLOT}, ABSENT, (11, SLOT)),
        ({"selector": SLOT}, descriptors.code(64), None),
    ],
)
def test_int_n_through_a_gate_that_is_damaged(
    rig: Rig,
    gate: dict[str, Any],
    slot: descriptors.SegmentDescriptor | None,
    exception: tuple[int, int] | None,
) -> None:
    """A segment that is not there, or no code for long mode, is found before anything is pushed."""
    if exception is None:
        require_host(SOFT_EVENTS)
    memory = rig.machine.memory
    old = memory.read(IDT, 0x1000), memory.read(GDT, 0x100)
    handler = interrupt_gate(descriptors.CODE64, HANDLERS + 16 * GATE, dpl=3)
    memory.write(IDT + 16 * GATE, handler._replace(**gate).encode())
    if slot is not None:
        memory.write(GDT + SLOT, slot.encode())
    outcome = rig.run(bytes.fromhex("cd80"), 0, forced=True)
    memory.write(IDT, old[0])
    memory.write(GDT, old[1])
    assert outcome.exception == (*(exception or (GATE, 0)), 0)


REAL = """
    31 C0            xor ax, ax
    8E D8            mov ds, ax
    8E D0            mov ss, ax
    BC 00 70         mov sp, 0x7000
    C7 06 0C 00 00 06            mov word [3 * 4], 0x600
    C7 06 0E 00 00 00            mov word [3 * 4 + 2], 0
    C7 06 84 00 00 06            mov word [0x21 * 4], 0x600
    C7 06 86 00 00 00            mov word [0x21 * 4 + 2], 0
    C7 06 10 00 00 06            mov word [4 * 4], 0x600
    C7 06 12 00 00 00            mov word [4 * 4 + 2], 0
    CC               int3
    CD 21            int 0x21
    B0 7F            mov al, 0x7f
    04 01            add al, 1             ; overflows
    CE               into
    30 C0            xor al, al            ; does not
    CE               into
    A0 00 05         mov al, [0x500]
    E6 F4            out 0xf4, al
    F4               hlt
"""
COUNT = """
    FE 06 00 05      inc byte [0x500]
    CF               iret
"""


def test_real_mode(guest: MakeGuest) -> None:
    machine = guest(REAL)
    machine.memory.write(0x600, assemble(COUNT))
    result = machine.run(timeout=10)
    assert result.exit_code == 3


PROTECTED = """
    CC               int3
    CD 30            int 0x30
    B0 7F            mov al, 0x7f
    04 01            add al, 1
    CE               into
    0F 0B            ud2                   ; its handler steps over it
    A0 00 50 00 00   mov al, [0x5000]
    E6 F4            out 0xf4, al
    F4               hlt
"""
COUNT32 = """
    FE 05 00 50 00 00            inc byte [0x5000]
    CF               iretd
"""
SKIP32 = """
    FE 05 00 50 00 00            inc byte [0x5000]
    83 04 24 02      add dword [esp], 2
    CF               iretd
"""


def protected(machine: Machine, gates: dict[int, int]) -> None:
    """An IDT at 0x6000 for a machine in 32-bit protected mode."""
    table = idt(
        {
            vector: interrupt_gate(descriptors.CODE32, address, bits=32)
            for vector, address in gates.items()
        },
        bits=32,
    )
    machine.memory.write(0x6000, table)
    state = machine.vcpus[0].state
    state.idt.base, state.idt.limit = 0x6000, len(table) - 1
    machine.vcpus[0].state = state


def test_protected_mode_with_iret(guest: MakeGuest) -> None:
    machine = guest(PROTECTED, mode=Mode.PROTECTED)
    machine.memory.write(0x5100, assemble(COUNT32))
    machine.memory.write(0x5200, assemble(SKIP32))
    protected(machine, {3: 0x5100, 0x30: 0x5100, 4: 0x5100, 6: 0x5200})
    result = machine.run(timeout=10)
    assert result.exit_code == 4, result


TO_RING_3 = """
    6A 2B            push 0x2b             ; SS
    68 00 90 00 00   push 0x9000           ; ESP
    9C               pushf
    6A 23            push 0x23             ; CS
    68 00 51 00 00   push 0x5100           ; EIP
    CF               iretd
"""
IN_RING_3 = """
    0F 0B            ud2
"""
BACK = """
    8B 44 24 04      mov eax, [esp + 4]    ; CS
    E6 F4            out 0xf4, al
    F4               hlt
"""


@pytest.mark.needs_host(BUSY_TSS)
def test_iret_to_ring_3_and_a_fault_back(guest: MakeGuest) -> None:
    machine = guest(TO_RING_3, mode=Mode.PROTECTED)
    machine.memory.write(0x5100, assemble(IN_RING_3))
    machine.memory.write(0x5200, assemble(BACK))
    protected(machine, {6: 0x5200})
    state = machine.vcpus[0].state
    # The 32-bit TSS: SS0 and ESP0.
    machine.memory.write_u32(state.tr.base + 4, 0x8000)
    machine.memory.write_u32(state.tr.base + 8, descriptors.DATA)
    result = machine.run(timeout=10)
    assert result.exit_code == descriptors.USER_CODE32, result


def words(*values: int) -> bytes:
    return b"".join(value.to_bytes(8, "little") for value in values)


USER = (descriptors.USER_CODE64, descriptors.USER_DATA)


@pytest.mark.parametrize(("code", "drop"), [("48cb", 0), ("48ca1000", 16)])
def test_retf_to_ring_3_in_long_mode(rig: Rig, code: str, drop: int) -> None:
    """The rig's code goes on in ring 3, with its stack, and ends there."""
    raw = bytes.fromhex(code)
    frame = words(CODE + len(raw), USER[0]) + bytes(drop) + words(STACK - 0x100, USER[1])
    rig.machine.memory.write(KERNEL_STACK - 0x200, frame)
    outcome = rig.run(raw, 0, registers={"rsp": KERNEL_STACK - 0x200}, forced=True)
    assert outcome.exception is None
    assert outcome.registers["rsp"] == STACK - 0x100 + drop
    assert rig.cpu.state.cpl == 3
    assert rig.cpu.regs.cs.selector == USER[0]
    assert rig.cpu.regs.ss.selector == USER[1]


@pytest.mark.parametrize(
    ("selectors", "error"),
    [
        ((0, USER[1]), 0),
        ((descriptors.USER_DATA, USER[1]), descriptors.USER_DATA & ~3),
        ((0x1003, USER[1]), 0x1000),
        ((descriptors.CODE64 | 3, USER[1]), descriptors.CODE64),
        ((USER[0], descriptors.DATA), descriptors.DATA),
        ((USER[0], 0), 0),
    ],
)
def test_retf_to_what_it_must_not_reach(rig: Rig, selectors: tuple[int, int], error: int) -> None:
    raw = bytes.fromhex("48cb")
    frame = words(CODE + 2, selectors[0], STACK, selectors[1])
    rig.machine.memory.write(KERNEL_STACK - 0x200, frame)
    outcome = rig.run(raw, 0, registers={"rsp": KERNEL_STACK - 0x200}, forced=True)
    assert outcome.exception == (13, error, 0)
    assert outcome.advanced == 0
    assert outcome.registers["rsp"] == KERNEL_STACK - 0x200


def test_a_single_step_after_a_completed_instruction(rig: Rig) -> None:
    outcome = rig.run(bytes.fromhex("f3480fb8c3"), 0, flags=RFLAGS.TF, forced=True)
    assert outcome.exception == (1, 0, 0)
    assert outcome.advanced == 5
    assert rig.kvm.get_debugregs().dr6 & 1 << 14


def test_sti_shadow_ends_with_the_instruction(rig: Rig) -> None:
    """STI, then a completed instruction: interrupts are no longer held back."""
    machine, cpu = rig.machine, rig.cpu
    machine.memory.write(CODE, bytes.fromhex("fb0f01ca") + b"\x90" * 16)
    cpu.state = rig.state(0)
    events = rig.kvm.get_vcpu_events()
    events.interrupt.shadow = 1
    rig.kvm.set_vcpu_events(events)
    cpu.regs.rip = CODE + 1
    rig.complete(bytes.fromhex("0f01ca"))
    assert rig.kvm.get_vcpu_events().interrupt.shadow == 0


@pytest.mark.parametrize(
    ("code", "registers", "expected"),
    [
        ("0f02c1", {"rcx": descriptors.CODE64}, 0x00A0_9B00),
        ("0f02c1", {"rcx": descriptors.USER_DATA}, 0x00C0_F300),
        ("0f03c1", {"rcx": descriptors.CODE64}, 0xFFFF_FFFF),
        ("0f03c1", {"rcx": descriptors.TSS}, 0x67),
        ("0f02c1", {"rcx": descriptors.TSS}, 0x0000_8B00),
        ("0f02c1", {"rcx": 0}, None),
        ("0f02c1", {"rcx": 0x1000}, None),
        ("0f03c1", {"rcx": descriptors.CODE64 | 3}, None),
        ("0f00e1", {"rcx": descriptors.CODE64}, 0),
        ("0f00e9", {"rcx": descriptors.CODE64}, None),
        ("0f00e9", {"rcx": descriptors.DATA}, 0),
        ("0f00e9", {"rcx": descriptors.DATA | 3}, None),
        ("0f00e1", {"rcx": descriptors.TSS}, None),
    ],
)
def test_looking_at_descriptors(
    rig: Rig, code: str, registers: dict[str, int], expected: int | None
) -> None:
    """LAR, LSL, VERR, VERW: ZF says whether, the destination what."""
    outcome = rig.run(
        bytes.fromhex(code), 0, registers=registers | {"rax": 0x1234}, flags=0, forced=True
    )
    assert bool(outcome.flags & RFLAGS.ZF) == (expected is not None)
    register = outcome.registers["rax"]
    assert register == (0x1234 if expected is None or code.startswith("0f00") else expected)


def test_verw_of_memory(rig: Rig) -> None:
    outcome = rig.run(
        bytes.fromhex("0f002f"), 0, registers={"rdi": DATA}, forced=True,
        data=descriptors.DATA.to_bytes(2, "little"),
    )  # fmt: skip
    assert outcome.flags & RFLAGS.ZF


TWO_NMIS = """
    E6 90            out 0x90, al          ; an NMI
    90               nop
    E6 90            out 0x90, al          ; and another, which waits for IRET
    90               nop
    {load}           mov al, [0x5000]
    E6 F4            out 0xf4, al
    F4               hlt
"""
NMI_HANDLERS = {
    Mode.REAL: ("A0 00 50", "FE 06 00 50 CF"),
    Mode.PROTECTED: ("A0 00 50 00 00", "FE 05 00 50 00 00 CF"),
    Mode.LONG: ("8A 04 25 00 50 00 00", "FE 04 25 00 50 00 00 48 CF"),
}


class NmiButton:
    """Sends an NMI to a vCPU at each write."""

    name = "nmi-button"

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def write(self, offset: int, size: int, value: int) -> None:
        self.machine.vcpus[0].kvm.nmi()


@pytest.mark.parametrize("mode", NMI_HANDLERS)
def test_iret_lets_the_next_nmi_in(guest: MakeGuest, mode: Mode) -> None:
    """IRET ends the blocking of NMIs in every mode, executed here or by KVM."""
    load, handler = NMI_HANDLERS[mode]
    machine = guest(TWO_NMIS.format(load=load), mode=mode)
    machine.add(NmiButton(machine), pio=0x90, length=1)
    machine.memory.write(0x5100, bytes.fromhex(handler))
    machine.memory.write_u8(0x5000, 0)
    if mode is Mode.REAL:
        machine.memory.write_u32(2 * 4, 0x5100)
    elif mode is Mode.PROTECTED:
        protected(machine, {2: 0x5100})
    else:
        machine.memory.write(0x6000, idt({2: interrupt_gate(descriptors.CODE64, 0x5100)}))
        state = machine.vcpus[0].state
        state.idt.base, state.idt.limit = 0x6000, 0x2F
        machine.vcpus[0].state = state
    result = machine.run(timeout=10)
    assert result.exit_code == 2, result
    assert not machine.vcpus[0].kvm.get_vcpu_events().nmi.masked
