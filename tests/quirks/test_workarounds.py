"""System calls from ring 3 on this host, whatever its KVM makes of them.

What a guest does here is the same on every host; where no workaround is needed, none is counted.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from quirks.by_hand import ring_3

from pykvm import Machine, Outcome
from pykvm._core import lib
from pykvm.bus import GuestExit
from pykvm.exits import Debug, Exit, Hlt, IoIn, IoOut, Shutdown
from pykvm.memory import GuestMemory
from pykvm.quirks import QUIRKS, found
from pykvm.quirks.probe_vm import HANDLERS, IDT, KERNEL, PD, TSS, USER, beginning, map_page
from pykvm.quirks.signs import LSTAR
from pykvm.quirks.workarounds import WITH_WORKAROUND
from pykvm.vcpu import CPU
from pykvm.x86.registers import EFER, RFLAGS
from pykvm.x86.state import CpuState
from support.host import host_probe
from support.irqchips import IRQCHIPS
from support.listing import assemble
from support.ring_3 import INT_N_ERROR

pytestmark = pytest.mark.kvm

COUNTERS = 0x20_8000  # in ring 3's page
PAGE_FAULT, INVALID_OPCODE = 14, 6
ROM = 0x60_0000  # a large page after RAM
SHARED, RETURN = 0xA000, 0xA010  # in ring 0's page
SYSCALLS = "SYSCALL in ring 3"
INTERRUPTS = "INT n in ring 3"

# Counts in its vCPU's counter; RSI is the vCPU's number.
KERNEL_CODE = assemble("""
    48 FF 04 F5 00 80 20 00    inc qword [0x208000 + 8 * rsi]
    48 0F 07                   sysretq
""")
FOUR_CALLS = assemble("""
    BB 04 00 00 00             mov ebx, 4
    0F 05                      syscall
    FF CB                      dec ebx
    75 FA                      jnz -6
    0F 0B                      ud2
""")


def has(quirk: str) -> bool:
    return quirk in found()


def if_worked_around(quirk: str, **counts: int) -> dict[str, int]:
    """What is counted on a host that has the quirk."""
    names = {"syscalls": SYSCALLS, "interrupts": INTERRUPTS}
    return {names[name]: count for name, count in counts.items()} if has(quirk) else {}


GUESTS = {
    "syscall": ("SYSCALL 2 entered ring 0\nback from ring 3 with 3", "syscall", {"syscalls": 2}),
    "int80": ("UD2 is #UD: right\nINT3 is #BP: right", "int-n", {"interrupts": 3}),
    "faults": ("#UD: 3 page faults, 4 system calls", "syscall", {"syscalls": 4}),
}


WITH_INT_N = pytest.param("int80", marks=pytest.mark.needs_host(INT_N_ERROR))
NAMES = [WITH_INT_N if name == "int80" else name for name in GUESTS]


@pytest.mark.parametrize("irqchip", [*IRQCHIPS, "none"])
@pytest.mark.parametrize("name", NAMES)
def test_a_guest_with_a_ring_3(guests: Path, name: str, irqchip: str) -> None:
    line, quirk, counts = GUESTS[name]
    with Machine(guests / f"{name}.elf", irqchip=irqchip) as machine:
        result = machine.run(timeout=20)
        assert line in machine.serial.text.replace("\r", "")
    assert result.exit_code == 0, result
    assert result.workarounds == if_worked_around(quirk, **counts)


@pytest.mark.parametrize("name", NAMES)
def test_a_trace_sees_the_exits_and_changes_nothing(guests: Path, name: str) -> None:
    seen: list[Exit] = []

    def on_exit(cpu: CPU, exit: Exit) -> None:
        seen.append(exit)

    _, quirk, counts = GUESTS[name]
    with Machine(guests / f"{name}.elf") as machine:
        result = machine.run(timeout=20, on_exit=on_exit)
    assert result.exit_code == 0, result
    assert result.workarounds == if_worked_around(quirk, **counts)
    breakpoints = [exit for exit in seen if isinstance(exit, Debug)]
    assert len(breakpoints) >= sum(result.workarounds.values())


@pytest.mark.parametrize(
    ("name", "quirk"),
    [
        ("syscall", "syscall"),
        pytest.param("int80", "int-n", marks=pytest.mark.needs_host(INT_N_ERROR)),
    ],
)
def test_quirks_off_works_around_nothing(guests: Path, name: str, quirk: str) -> None:
    with Machine(guests / f"{name}.elf", quirks="off") as machine:
        result = machine.run(timeout=20)
    assert result.workarounds == {}
    assert (result.exit_code == 0) == (not has(quirk)), result


def test_a_loop_by_hand_sees_none_of_it(guests: Path) -> None:
    with Machine(guests / "syscall.elf") as machine:
        seen: list[type[Exit]] = []
        with pytest.raises(GuestExit) as ended:
            for exit in machine.vcpus[0].raw_exits(timeout=20):
                seen.append(type(exit))
                machine.handle(exit)
    assert set(seen) == {IoOut, IoIn}
    assert ended.value.code == (3 if has("syscall") else 0)


def test_a_loop_by_hand_after_a_run_sees_none_of_it() -> None:
    """The breakpoints of the run before are gone: SYSCALL is what the bare host makes of it."""
    with ring_3([FOUR_CALLS], KERNEL_CODE) as machine:
        cpu = machine.vcpus[0]
        assert machine.run(timeout=20).outcome is Outcome.HALTED
        cpu.state = _ring_3()
        exits = cpu.raw_exits(timeout=20)
        assert next(exits) == Hlt()
        exits.close()
        vector = PAGE_FAULT if has("syscall") else INVALID_OPCODE
        assert cpu.regs.rip == HANDLERS + vector + 1


def test_a_loop_by_hand_sees_no_msr_being_written() -> None:
    with ring_3([FOUR_CALLS], KERNEL_CODE) as machine:
        cpu = machine.vcpus[0]
        machine.run(timeout=20)
        set_lstar = assemble("""
            B9 82 00 00 C0    mov ecx, 0xc0000082
            0F 30             wrmsr
            F4                hlt
        """)
        machine.memory.write(KERNEL, set_lstar)
        state = beginning(0)
        state.rax, state.rdx = 0x1234, 0
        cpu.state = state
        exits = cpu.raw_exits(timeout=20)
        assert next(exits) == Hlt()
        exits.close()
        assert cpu.kvm.get_msrs([LSTAR]) == {LSTAR: 0x1234}


def _ring_3() -> CpuState:
    state = beginning(3)
    state.efer |= EFER.SCE
    state.rflags |= RFLAGS.IF
    return state


@pytest.mark.needs_host(INT_N_ERROR)
def test_a_run_after_a_loop_by_hand_has_it_again(guests: Path) -> None:
    with Machine(guests / "int80.elf") as machine:
        exits = machine.vcpus[0].raw_exits(timeout=20)
        for _ in range(5):
            machine.handle(next(exits))
        exits.close()
        result = machine.run(timeout=20)
    assert result.exit_code == 0, result


def test_one_handler_for_page_faults_and_invalid_opcodes(guests: Path) -> None:
    """#PF and #UD lead to the same place; SYSCALL and INT n do what they should."""
    program = assemble("0F 05   syscall\nCD 80   int 0x80") + FOUR_CALLS
    with ring_3([program], KERNEL_CODE) as machine:
        for vector, handler in ((PAGE_FAULT, SHARED), (INVALID_OPCODE, SHARED), (0x80, RETURN)):
            machine.memory.write_u16(IDT + vector * 16, handler)
        machine.memory.write(SHARED, assemble("90   nop\nF4   hlt"))
        machine.memory.write(RETURN, assemble("48 CF   iretq"))
        result = machine.run(timeout=20)
        assert machine.memory.read_u64(COUNTERS) == 5
    assert result.workarounds == if_worked_around("syscall", syscalls=5) | if_worked_around(
        "int-n", interrupts=1
    )


def test_several_vcpus_each_with_its_own_system_calls() -> None:
    with ring_3([FOUR_CALLS] * 2, KERNEL_CODE) as machine:
        result = machine.run(timeout=20)
        assert result.outcome is Outcome.HALTED, result
        assert struct.unpack("<2Q", machine.memory.read(COUNTERS, 16)) == (4, 4)
        assert result.workarounds.get(SYSCALLS, 0) == (8 if has("syscall") else 0)


def test_run_again_counts_anew_and_follows_msrs_set_by_the_host() -> None:
    with ring_3([FOUR_CALLS], KERNEL_CODE) as machine:
        cpu = machine.vcpus[0]
        assert machine.run(timeout=20).workarounds == if_worked_around("syscall", syscalls=4)
        elsewhere = KERNEL + 0x100
        machine.memory.write(elsewhere, b"\xf4")
        cpu.kvm.set_msrs({LSTAR: elsewhere})
        cpu.state = _ring_3()
        result = machine.run(timeout=20)
        assert cpu.regs.rip == elsewhere + 1
        assert result.workarounds == if_worked_around("syscall", syscalls=1)


def behind_syscall() -> CpuState:
    """The state at LSTAR of a SYSCALL with ZF and DF set."""
    with ring_3([assemble("0F 05   syscall")], b"\xf4") as machine:
        cpu = machine.vcpus[0]
        cpu.regs.rflags = 0x2 | RFLAGS.IF | RFLAGS.DF | RFLAGS.ZF
        assert machine.run(timeout=20).outcome is Outcome.HALTED
        return cpu.state


def test_the_registers_that_syscall_leaves() -> None:
    state = behind_syscall()
    assert (state.rip, state.rcx, state.rsp) == (KERNEL + 1, USER + 2, beginning(3).rsp)
    assert state.rflags & ~RFLAGS.ZF == 0x2
    assert state.r11 == 0x2 | RFLAGS.IF | RFLAGS.DF | RFLAGS.ZF
    assert (state.cs.selector, state.ss.selector, state.cpl, state.code_bits) == (0x10, 0x18, 0, 64)


@host_probe("syscall-clears-fmask-alone")
def syscall_clears_fmask_alone() -> str | None:
    """QEMU's own SYSCALL clears the arithmetic flags as well."""
    kept = behind_syscall().rflags & RFLAGS.ZF
    return None if kept else "SYSCALL clears ZF, which is not in FMASK"


@pytest.mark.needs_host("syscall-clears-fmask-alone")
def test_the_flags_that_syscall_leaves() -> None:
    assert behind_syscall().rflags == 0x2 | RFLAGS.ZF


def test_an_interrupt_comes_once_however_many_system_calls_follow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """KVM keeps a bit of each interrupt among the registers in the page, and never clears it."""
    # No look at the gates after an exit, which would hide what the core does alone.
    monkeypatch.setattr("pykvm.quirks.workarounds.OCCASIONS", 0)
    count_and_return = assemble("""
        48 FF 04 25 40 80 20 00    inc qword [0x208040]
        48 CF                      iretq
    """)
    with ring_3([FOUR_CALLS], KERNEL_CODE) as machine:
        vector = 0x30
        machine.memory.write_u16(IDT + vector * 16, SHARED)
        machine.memory.write(SHARED, count_and_return)
        cpu = machine.vcpus[0]
        machine.run(timeout=20)
        cpu.state = _ring_3()
        cpu.kvm.interrupt(vector)
        # KVM_RUN that enters no guest, and so shows what waits to be injected.
        assert lib.pykvm_complete(cpu.engine.core) == 0
        result = machine.run(timeout=20)
        assert result.outcome is Outcome.HALTED, result
        assert machine.memory.read_u64(COUNTERS) == 8
        assert machine.memory.read_u64(COUNTERS + 0x40) == 1


def test_a_guest_without_an_idt_makes_system_calls() -> None:
    with ring_3([FOUR_CALLS], KERNEL_CODE) as machine:
        idt = machine.vcpus[0].regs.idt
        idt.limit = 0
        machine.vcpus[0].regs.idt = idt
        result = machine.run(timeout=20)
        assert machine.memory.read_u64(COUNTERS) == 4
    # UD2 has nowhere to go.
    assert isinstance(result.exit, Shutdown), result
    assert result.workarounds.get(SYSCALLS, 0) == (4 if has("syscall") else 0)


@pytest.mark.parametrize(
    ("address", "value"),
    [
        (IDT + PAGE_FAULT * 16, 0),  # no #PF handler
        (IDT + PAGE_FAULT * 16 + 8, 0x1234_5678),  # one that is not canonical
        (PD, 0),  # nothing of ring 0 is mapped any more
    ],
)
def test_a_guest_with_broken_tables_dies_of_them(address: int, value: int) -> None:
    """Whatever becomes of it: the run ends, and says how."""
    program = assemble("0F 05   syscall") + FOUR_CALLS
    with ring_3([program], b"\xf4") as machine:
        machine.memory.write_u64(address, value)
        result = machine.run(timeout=5)
    assert result.outcome in (Outcome.HALTED, Outcome.CRASHED), result


@pytest.mark.parametrize(
    "stack", [0x0, 0xF000_0000, 1 << 47, (1 << 64) - 16, ROM + 0x1000], ids=hex
)
def test_a_stack_that_cannot_be_written_is_the_guests_affair(stack: int) -> None:
    """INT n through a gate whose stack is nowhere, not canonical, about to wrap, or ROM."""
    with GuestMemory() as memory:
        memory.add_ram(0, ROM)
        memory.add_rom(ROM, bytes(0x2000))
        with ring_3([assemble("CD 80   int 0x80")], b"\xf4", memory=memory) as machine:
            map_page(memory, ROM, ROM)
            memory.write_u8(IDT + 0x80 * 16 + 4, 1)
            memory.write_u64(TSS + 0x24, stack)
            result = machine.run(timeout=5)
    assert result.outcome in (Outcome.HALTED, Outcome.CRASHED), result


def test_memory_that_is_taken_away_is_let_go(guests: Path) -> None:
    with Machine(guests / "syscall.elf") as machine:
        assert machine.run(timeout=20).exit_code == 0
        memory = machine.memory
    assert memory.closed


def test_each_workaround_is_in_the_table() -> None:
    assert {quirk.name for quirk in WITH_WORKAROUND} == {
        quirk.name for quirk in QUIRKS if quirk.workaround
    }
    assert len({quirk.name for quirk in QUIRKS}) == len(QUIRKS)
    assert all(bool(quirk.workaround) == bool(quirk.cost) for quirk in QUIRKS)
