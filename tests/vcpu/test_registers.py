"""Registers and virtual memory of a real vCPU."""

from __future__ import annotations

import pytest

from pykvm import ConfigError, Mode, StateError, TranslationError
from pykvm.bus import Placement, Space
from pykvm.exits import IoIn, IoOut
from pykvm.x86.entry import real_mode
from support.guest import MakeGuest

pytestmark = pytest.mark.kvm

ADD = """
    E4 10        in al, 0x10
    04 01        add al, 1
    E6 11        out 0x11, al
    F4           hlt
    EB F7        jmp $-7
"""


def test_registers_by_name(guest: MakeGuest) -> None:
    machine = guest("F4  hlt")
    regs = machine.vcpus[0].regs
    assert regs.rip == 0x7C00
    assert regs.cs == real_mode(ip=0x7C00).cs
    regs.rbx = 0x1234
    regs.r15 = (1 << 64) - 1
    regs.rax = -1
    machine.run(timeout=10)
    assert (regs.rbx, regs.r15, regs.rax) == (0x1234, (1 << 64) - 1, (1 << 64) - 1)
    assert regs.rip == 0x7C01
    assert dict(regs)["rbx"] == 0x1234
    assert "rbx=0x1234" in repr(regs)
    with pytest.raises(AttributeError, match="no register 'rzx'"):
        regs.rzx = 1
    with pytest.raises(ConfigError, match="64 bits"):
        regs.rax = 1 << 64


def test_control_and_segment_registers_can_be_set(guest: MakeGuest) -> None:
    machine = guest("F4  hlt")
    regs = machine.vcpus[0].regs
    regs.cr3 = 0x5000
    data = regs.ds
    data.base, data.selector = 0x10000, 0x1000
    regs.ds = data
    idt = regs.idt
    idt.limit = 7
    regs.idt = idt
    machine.run(timeout=10)
    assert regs.cr3 == 0x5000
    assert (regs.ds.base, regs.ds.selector) == (0x10000, 0x1000)
    assert regs.idt.limit == 7


def test_a_handler_reads_and_sets_registers(guest: MakeGuest) -> None:
    class Magic:
        """Writing a port adds 1 to BX and skips the next instruction."""

        name = "magic"
        seen: list[int] = []  # noqa: RUF012

        def write(self, offset: int, size: int, value: int) -> None:
            regs = machine.vcpus[0].regs
            self.seen.append(regs.rax & 0xFF)
            regs.rbx += 1
            regs.rip += 1

    machine = guest(
        """
        31 DB        xor bx, bx
        B0 05        mov al, 5
        E6 10        out 0x10, al
        F4           hlt
        E6 10        out 0x10, al
        F4           hlt
        B0 06        mov al, 6
        F4           hlt
        """,
        devices=[Placement(Magic(), Space.PIO, 0x10, 1)],
    )
    machine.run(timeout=10)
    regs = machine.vcpus[0].regs
    assert Magic.seen == [5, 5]
    assert (regs.rbx & 0xFFFF, regs.rax & 0xFF, regs.rip) == (2, 6, 0x7C0D)


def test_registers_cannot_be_set_while_a_read_waits(guest: MakeGuest) -> None:
    class Early:
        name = "early"

        def read(self, offset: int, size: int) -> int:
            machine.vcpus[0].regs.rbx = 1
            return 5

    machine = guest(ADD, devices=[Placement(Early(), Space.PIO, 0x10, 1)])
    with pytest.raises(StateError, match="middle of an instruction"):
        machine.run(timeout=10)


def test_registers_set_after_an_answered_read_stay(guest: MakeGuest) -> None:
    """KVM finishes the IN first: otherwise its own completion would overwrite them."""
    machine = guest(ADD)
    exits = machine.vcpus[0].raw_exits()
    read = next(exits)
    assert isinstance(read, IoIn)
    read.answer(7)
    cpu = machine.vcpus[0]
    assert cpu.regs.rip in (0x7C00, 0x7C02)
    cpu.regs.rbx = 9
    assert cpu.regs.rax & 0xFF == 7
    cpu.regs.rax = 20
    assert next(exits) == IoOut(port=0x11, size=1, data=b"\x15")
    assert cpu.regs.rbx == 9


def test_the_whole_state_can_be_moved_to_another_machine(guest: MakeGuest) -> None:
    code = """
        40           inc ax
        E6 10        out 0x10, al
        EB FB        jmp $-3
    """
    first, second = guest(code), guest(code)
    exits = first.vcpus[0].raw_exits()
    for _ in range(3):
        next(exits)
    first.vcpus[0].regs.rcx = first.vcpus[0].regs.rcx
    second.vcpus[0].state = first.vcpus[0].state
    assert next(second.vcpus[0].raw_exits()) == IoOut(port=0x10, size=1, data=b"\4")


def test_virtual_memory(guest: MakeGuest) -> None:
    machine = guest("F4  hlt", mode=Mode.LONG)
    cpu = machine.vcpus[0]
    machine.run(timeout=10)
    assert cpu.translate(0x7C00) == 0x7C00
    assert cpu.read(0x7C00, 1) == b"\xf4"
    cpu.write(0x2FFC, b"across pages\0")
    assert machine.memory.read(0x2FFC, 12) == b"across pages"
    assert cpu.read_cstring(0x2FFC) == b"across pages"
    unmapped = "^virtual address 0xffff800000000000 is not mapped: PML4E"
    with pytest.raises(TranslationError, match=unmapped):
        cpu.read(0xFFFF_8000_0000_0000, 8)
    walk = cpu.walk(0x7C00, access="execute")
    assert walk.physical == 0x7C00
    assert len(walk.levels) == 3


def test_registers_taken_from_the_page_bring_no_interrupt_of_the_past(guest: MakeGuest) -> None:
    """KVM adds each that it injects to the bitmap in the page, and takes none out."""
    cpu = guest("F4   hlt").vcpus[0]
    everything = cpu.engine.sync_regs()
    everything.sregs.cr2 = 0x1234
    end = 304 + 144 + 312  # the end of kvm_sregs in the page
    cpu.engine.page[end - 32 : end] = b"\xff" * 32
    cpu.engine.commit_sregs()
    assert cpu.regs.cr2 == 0x1234
    assert cpu.kvm.get_sregs().interrupt_bitmap == [0, 0, 0, 0]


@pytest.mark.parametrize(("mode", "kind"), [(Mode.PROTECTED, "tss32"), (Mode.LONG, "tss64")])
def test_a_register_alone_prints_as_in_the_state(guest: MakeGuest, mode: Mode, kind: str) -> None:
    cpu = guest("F4   hlt", mode=mode).vcpus[0]
    assert f"tr =00{cpu.regs.tr.selector:x} {kind} busy" in str(cpu.state)
    assert str(cpu.regs.tr) == str(cpu.state.tr)
    assert kind in str(cpu.regs.tr)
