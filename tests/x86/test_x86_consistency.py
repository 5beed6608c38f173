"""What `CpuState.problems` finds, without KVM."""

from __future__ import annotations

import pytest

from pykvm.x86.cpuid import CpuidEntry, CpuidTable
from pykvm.x86.entry import after_init, after_start_up, long_mode, protected_mode, reset
from pykvm.x86.registers import CR4, RFLAGS
from pykvm.x86.state import CpuState
from support.entry_states import (
    LONG,
    OTHERS,
    PROTECTED,
    REAL,
    REFUSED,
    SOUND,
    Broken,
    in_virtual_8086,
    put,
)


@pytest.mark.parametrize("state", SOUND.values(), ids=SOUND)
def test_the_states_that_guests_start_in(state: CpuState) -> None:
    assert state.problems() == ()


def test_other_sound_states() -> None:
    paged = protected_mode(eip=0, esp=0, gdt_base=0, cr3=0x3000, cr4_flags=CR4.PAE)
    five = long_mode(
        rip=0xFF << 56, rsp=0, cr3=0x1000, gdt_base=0, tss_base=1 << 55, cr4_flags=CR4.LA57
    )
    for state in (after_init(LONG), after_start_up(reset(), 0x9F), paged, five):
        assert state.problems() == ()


@pytest.mark.parametrize("broken", REFUSED + OTHERS, ids=lambda broken: broken.problem)
def test_one_rule_that_is_broken(broken: Broken) -> None:
    assert broken.start.problems() == ()
    (problem,) = broken.state().problems()
    assert problem.startswith(broken.problem)


def test_what_kvm_puts_right_is_no_problem() -> None:
    state = LONG.copy()
    state.rflags = 0
    for name in ("cs", "ss", "ds"):
        getattr(state, name).type &= ~1
    assert state.problems() == ()


def test_unusable_segments() -> None:
    state = LONG.copy()
    for name in ("ss", "ds", "es", "fs", "gs", "ldt"):
        put(name, unusable=1, type=0, s=0, base=0, limit=5, g=1)(state)
    assert state.problems() == ()


def test_real_modes_code_segment_in_protected_mode() -> None:
    """Until a far jump loads CS, it is as real mode left it."""
    state = PROTECTED.copy()
    put("cs", type=3)(state)
    assert state.problems() == ()


def test_virtual_8086_mode() -> None:
    state = PROTECTED.copy()
    in_virtual_8086()(state)
    assert state.rflags & RFLAGS.VM
    assert state.problems() == ()


def test_several_come_in_order() -> None:
    state = REAL.copy()
    state.cr0 = 1 << 31
    state.rflags = 1 << 3
    put("tr", unusable=1)(state)
    assert state.problems() == (
        "CR0.PG without CR0.PE",
        "TR is unusable",
        "RFLAGS has reserved bit 3 set",
    )


def test_features_and_widths_of_a_cpuid_table() -> None:
    none = CpuidTable([])
    smep = CpuidTable([CpuidEntry(7, 0, 1, 0, 1 << 7, 0, 0)])
    wide = CpuidTable([CpuidEntry(0x8000_0008, 0, 0, 48, 0, 0, 0)])
    state = LONG.copy()
    state.cr4 |= CR4.SMEP
    assert state.problems() == ()
    assert state.problems(none) == ("CR4.SMEP, and the CPUID shows no smep",)
    assert state.problems(smep) == ()
    state = LONG.copy()
    state.cr3 = 1 << 40
    assert state.problems(none) == ("CR3 is 0x10000000000, and physical addresses have 36 bits",)
    assert state.problems(wide) == ()
    state = LONG.copy()
    state.apic_base |= 1 << 10
    assert state.problems(none) == ("IA32_APIC_BASE.EXTD, and the CPUID shows no x2apic",)
