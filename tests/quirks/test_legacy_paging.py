"""Paging outside long mode: whether the host does it, and what a guest is told that needs it."""

from __future__ import annotations

import struct

import pytest

from pykvm import Machine, Outcome
from pykvm.quirks import Quirk, found
from pykvm.quirks.legacy_paging import MOV_CR0, PAE, TWO_LEVEL, refused_paging
from pykvm.x86.entry import long_mode, protected_mode, real_mode
from pykvm.x86.registers import CR0, CR4, EFER
from pykvm.x86.state import CpuState, Mode
from support.guest import MakeGuest

MOV_CR0_EAX = MOV_CR0 + b"\xc0"


def about_to_page(cr4: int = 0) -> CpuState:
    state = protected_mode(eip=0x1000, esp=0x8000, gdt_base=0x2000)
    state.rax, state.cr4 = state.cr0 | CR0.PG, cr4
    return state


class TestWhoMeetsIt:
    def test_a_guest_that_sets_cr0_pg(self) -> None:
        assert refused_paging(about_to_page(), MOV_CR0_EAX) is TWO_LEVEL
        assert refused_paging(about_to_page(CR4.PSE), MOV_CR0_EAX) is TWO_LEVEL
        assert refused_paging(about_to_page(CR4.PAE), MOV_CR0_EAX) is PAE
        other = about_to_page()
        other.rdi, other.rax = other.rax, 0
        assert refused_paging(other, MOV_CR0 + b"\xc7") is TWO_LEVEL
        assert refused_paging(other, MOV_CR0_EAX) is None

    def test_a_guest_that_starts_with_paging(self) -> None:
        state = protected_mode(eip=0, esp=0, gdt_base=0, cr3=0x1000, cr4_flags=CR4.PAE)
        assert refused_paging(state, b"") is PAE

    def test_other_instructions_do_not(self) -> None:
        for code in (b"", MOV_CR0, b"\x0f\x0b\xc0", MOV_CR0 + b"\xd8"):  # the last is CR3's
            assert refused_paging(about_to_page(), code) is None

    def test_ring_3_and_real_mode_do_not(self) -> None:
        state = about_to_page()
        state.cs.dpl = state.ss.dpl = state.cs.selector = 3
        assert refused_paging(state, MOV_CR0_EAX) is None
        real = real_mode(ip=0)
        real.rax = CR0.PG
        assert refused_paging(real, MOV_CR0_EAX) is None

    def test_a_guest_on_its_way_to_long_mode_does_not(self) -> None:
        state = about_to_page(CR4.PAE)
        state.efer = EFER.LME
        assert refused_paging(state, MOV_CR0_EAX) is None
        state = long_mode(rip=0, rsp=0, cr3=0x1000, gdt_base=0, tss_base=0)
        assert refused_paging(state, MOV_CR0_EAX) is None


PAGED = """
    B8 00 00 01 00      mov eax, 0x10000
    0F 22 D8            mov cr3, eax
    B8 {cr4} 00 00 00   mov eax, CR4
    0F 22 E0            mov cr4, eax
    0F 20 C0            mov eax, cr0
    0D 00 00 00 80      or eax, CR0.PG
    0F 22 C0            mov cr0, eax
    B0 2A               mov al, 42
    E6 F4               out 0xf4, al
"""


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("quirk", "cr4", "tables"),
    [
        (TWO_LEVEL, CR4.PSE, struct.pack("<I", 0x83)),
        (PAE, CR4.PAE, struct.pack("<Q", 0x11001).ljust(0x1000, b"\0") + struct.pack("<Q", 0x83)),
    ],
)
def test_it_works_or_the_run_says_that_the_host_does_not_do_it(
    guest: MakeGuest, quirk: Quirk, cr4: int, tables: bytes
) -> None:
    machine = guest(PAGED.format(cr4=f"{cr4:02X}"), mode=Mode.PROTECTED)
    machine.memory.write(0x10000, tables)
    result = machine.run(timeout=10)
    if quirk.name not in found([quirk]):
        assert result.exit_code == 42
        return
    assert result.outcome is Outcome.CRASHED
    assert result.error is not None
    assert result.error.kind == "host limit"
    assert result.error.cause.startswith(f"this host's {quirk.wrong} (tried just now), at 0x7c18")


@pytest.mark.kvm
def test_a_triple_fault_elsewhere_is_the_guests_own(guest: MakeGuest) -> None:
    machine = guest("0F 0B    ud2", mode=Mode.PROTECTED)
    machine.vcpus[0].state = _no_idt(machine)
    result = machine.run(timeout=10)
    assert result.error is not None
    assert result.error.kind == "triple fault"


def _no_idt(machine: Machine) -> CpuState:
    state = machine.vcpus[0].state
    state.idt.limit = 0
    return state
