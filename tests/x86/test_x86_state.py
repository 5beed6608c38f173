"""The states that guests start in, against SDM 3A table 10-1 and the checks of VM entry."""

from __future__ import annotations

import pytest

from pykvm.x86 import descriptors
from pykvm.x86.descriptors import decode_segment, flat_gdt
from pykvm.x86.entry import long_mode, protected_mode, real_mode, reset
from pykvm.x86.paging import PagingMode
from pykvm.x86.registers import CR0, CR4, EFER, RFLAGS
from pykvm.x86.state import CpuState, Mode, SegmentRegister, TableRegister

DATA_SEGMENTS = ("ds", "es", "fs", "gs", "ss")


def a_long_mode() -> CpuState:
    return long_mode(rip=0x10_0000, rsp=0x9000, cr3=0x1000, gdt_base=0x7000, tss_base=0x8000)


def a_protected_mode() -> CpuState:
    return protected_mode(eip=0x10_0000, esp=0x9000, gdt_base=0x7000, tss_base=0x8000)


STATES = [reset(), real_mode(ip=0x7C00), a_protected_mode(), a_long_mode()]


def test_power_on_reset() -> None:
    # SDM 3A table 10-1.
    state = reset()

    assert (state.rflags, state.rip, state.cr0) == (0x2, 0xFFF0, 0x6000_0010)
    assert (state.cs.selector, state.cs.base, state.cs.limit) == (0xF000, 0xFFFF_0000, 0xFFFF)
    for name in DATA_SEGMENTS:
        segment = getattr(state, name)
        assert (segment.selector, segment.base, segment.limit) == (0, 0, 0xFFFF)
        assert segment.present == segment.s == 1
    assert state.gdt == state.idt == TableRegister(0, 0xFFFF)
    assert (state.ldt.limit, state.tr.limit) == (0xFFFF, 0xFFFF)
    assert (state.cr2, state.cr3, state.cr4, state.efer, state.rsp) == (0, 0, 0, 0, 0)
    assert state.rdx == 0x600
    assert state.apic_base == 0xFEE0_0900
    assert state.linear_rip == 0xFFFF_FFF0
    assert state.mode is Mode.REAL


def test_real_mode() -> None:
    state = real_mode(cs=0x07C0, ip=0x10, ss=0x9000, sp=0xFFFE)

    assert (state.cs.selector, state.cs.base, state.rip) == (0x07C0, 0x7C00, 0x10)
    assert (state.ss.selector, state.ss.base, state.rsp) == (0x9000, 0x90000, 0xFFFE)
    assert (state.linear_rip, state.linear_rsp) == (0x7C10, 0x9FFFE)
    assert state.idt == TableRegister(0, 0x3FF)
    assert state.cr0 == CR0.ET
    assert (state.mode, state.code_bits, state.cpl) == (Mode.REAL, 16, 0)
    assert not state.rflags & RFLAGS.IF


def test_protected_mode_without_paging() -> None:
    state = a_protected_mode()

    assert (state.rip, state.rsp, state.cr3, state.cr4, state.efer) == (0x10_0000, 0x9000, 0, 0, 0)
    assert state.cr0 == CR0.PE | CR0.MP | CR0.ET | CR0.NE
    assert (state.mode, state.code_bits, state.cpl) == (Mode.PROTECTED, 32, 0)
    assert state.idt == TableRegister(0, 0)


@pytest.mark.parametrize(
    ("cr4", "mode", "efer"),
    [
        (0, PagingMode.LEGACY32, 0),
        (CR4.PSE, PagingMode.LEGACY32, 0),
        (CR4.PAE, PagingMode.PAE, EFER.NXE),
    ],
)
def test_protected_mode_with_paging(cr4: int, mode: PagingMode, efer: int) -> None:
    state = protected_mode(eip=0, esp=0, gdt_base=0, cr3=0x3000, cr4_flags=cr4)

    assert PagingMode.of(state.cr0, state.cr4, state.efer) is mode
    assert (state.cr3, state.cr4, state.efer) == (0x3000, cr4, efer)
    assert state.cr0 & CR0.WP
    assert state.mode is Mode.PROTECTED


def test_long_mode() -> None:
    state = a_long_mode()

    assert (state.rip, state.rsp, state.cr3) == (0x10_0000, 0x9000, 0x1000)
    assert (state.mode, state.code_bits, state.cpl) == (Mode.LONG, 64, 0)
    assert PagingMode.of(state.cr0, state.cr4, state.efer) is PagingMode.LEVEL4
    # SSE works without further set-up (SDM 3A 14.1.1): OSFXSR, no EM, no TS.
    assert state.cr4 & CR4.OSFXSR
    assert not state.cr0 & (CR0.EM | CR0.TS)
    assert state.tr.base == 0x8000


def test_long_mode_with_five_levels() -> None:
    state = long_mode(rip=0, rsp=0, cr3=0x1000, gdt_base=0, tss_base=0, cr4_flags=CR4.LA57)
    assert PagingMode.of(state.cr0, state.cr4, state.efer) is PagingMode.LEVEL5


@pytest.mark.parametrize("state", [a_protected_mode(), a_long_mode()], ids=["protected", "long"])
def test_the_hidden_parts_are_what_the_gdt_image_holds(state: CpuState) -> None:
    gdt = flat_gdt(0x8000)

    assert state.gdt == TableRegister(0x7000, gdt.limit)
    for name in ("cs", *DATA_SEGMENTS, "tr"):
        segment = getattr(state, name)
        in_memory = decode_segment(
            gdt.image, segment.selector, long=name == "tr" and state.mode is Mode.LONG
        )
        assert segment.descriptor(long=in_memory.long) == in_memory
    assert state.cs.selector in (descriptors.CODE32, descriptors.CODE64)


@pytest.mark.parametrize("state", STATES, ids=["reset", "real", "protected", "long"])
def test_what_vm_entry_checks(state: CpuState) -> None:
    """SDM 3C 27.3.1.2 and 27.3.1.4: segment registers and RFLAGS (unrestricted guest)."""
    assert state.rflags == 2
    for name in ("cs", *DATA_SEGMENTS):
        segment = getattr(state, name)
        assert segment.present
        assert segment.s
        assert not segment.unusable
        assert segment.type == (0xB if name == "cs" else 0x3)
        # Low bits of the limit all ones if G, high bits all zero if not.
        assert segment.limit & 0xFFF == 0xFFF if segment.g else segment.limit < 1 << 20
    assert not (state.cs.l and state.cs.db)
    assert state.ss.dpl == state.ss.selector & 3 == state.cs.dpl
    assert (state.tr.type, state.tr.s, state.tr.present, state.tr.unusable) == (0xB, 0, 1, 0)
    assert not state.tr.selector & 4
    assert state.ldt.unusable or (state.ldt.type == 2 and state.ldt.present)


def test_segment_registers_are_not_shared() -> None:
    state = a_long_mode()
    state.ds.base = 0x1234
    assert [getattr(state, name).base for name in DATA_SEGMENTS] == [0x1234, 0, 0, 0, 0]


def test_a_state_can_be_edited_compared_and_copied() -> None:
    state = a_long_mode()
    copy = state.copy()
    assert copy == state

    copy.rax = 1
    assert copy != state
    copy.rax = 0
    copy.ds.limit = 5
    assert copy != state
    assert state.ds.limit == 0xFFFF_FFFF
    assert CpuState() != SegmentRegister()
    with pytest.raises(AttributeError):
        state.eax = 1  # type: ignore[attr-defined]


def test_linear_addresses_follow_the_width_of_the_code() -> None:
    state = a_protected_mode()
    state.cs.base, state.ss.base = 0xFFFF_0000, 0x1_0000
    state.rip, state.rsp = 0x1_0010, 0xFFFF_FFFC
    assert (state.linear_rip, state.linear_rsp) == (0x10, 0xFFFC)

    state.ss.db = 0
    assert state.linear_rsp == 0x1_FFFC

    state = a_long_mode()
    state.cs.base = state.ss.base = 0x1000
    state.rip = state.rsp = 0xFFFF_8000_0000_0000
    assert (state.linear_rip, state.linear_rsp) == (state.rip, state.rsp)


def test_code_bits_and_cpl() -> None:
    state = a_long_mode()
    state.cs.l, state.cs.db = 0, 1
    state.ss.dpl = 3
    assert (state.mode, state.code_bits, state.cpl) == (Mode.LONG, 32, 3)
    state = a_protected_mode()
    state.cs.db = 0
    assert state.code_bits == 16
    state.rflags |= RFLAGS.VM
    assert (state.code_bits, state.cpl) == (16, 3)


def test_a_register_dump_reads_well() -> None:
    state = a_long_mode()
    state.rax, state.rflags, state.cr2 = 0xDEAD, 0x3202, 0x1234

    assert (
        str(state)
        == """\
long mode, 64-bit code, 4-level paging, IF=1, CPL 0
rax=000000000000dead rbx=0000000000000000 rcx=0000000000000000 rdx=0000000000000000
rsi=0000000000000000 rdi=0000000000000000 rsp=0000000000009000 rbp=0000000000000000
r8 =0000000000000000 r9 =0000000000000000 r10=0000000000000000 r11=0000000000000000
r12=0000000000000000 r13=0000000000000000 r14=0000000000000000 r15=0000000000000000
rip=0000000000100000 rflags=00003202 [IF IOPL=3]
cs =0010 code64 base=0 limit=ffffffff dpl=0 readable accessed
ds =0018 data32 base=0 limit=ffffffff dpl=0 writable accessed
es =0018 data32 base=0 limit=ffffffff dpl=0 writable accessed
fs =0018 data32 base=0 limit=ffffffff dpl=0 writable accessed
gs =0018 data32 base=0 limit=ffffffff dpl=0 writable accessed
ss =0018 data32 base=0 limit=ffffffff dpl=0 writable accessed
tr =0038 tss64 busy base=8000 limit=67 dpl=0
ldt=0000 unusable
gdt base=7000 limit=57
idt base=0 limit=0
cr0=80010033 [PE MP ET NE WP PG]
cr2=0000000000001234 cr3=0000000000001000 cr8=0
cr4=00000620 [PAE OSFXSR OSXMMEXCPT]
efer=00000d00 [LME LMA NXE]
apic_base=fee00000 [BSP EN]"""
    )


def test_a_real_mode_dump_begins_with_the_mode() -> None:
    assert str(reset()).splitlines()[0] == "real mode, IF=0, CPL 0"
    assert "cs =f000 code16 base=ffff0000 limit=ffff dpl=0 readable accessed" in str(reset())
    assert "tr =0000 tss32 busy base=0 limit=ffff dpl=0" in str(reset())


def test_a_segment_prints_the_mode_that_it_was_loaded_in() -> None:
    state = a_long_mode()
    assert str(state.tr) == str(state.copy().tr) == "0038 tss64 busy base=8000 limit=67 dpl=0"
    assert str(state.tr) in str(state)
    assert str(a_protected_mode().tr) == "0038 tss32 busy base=8000 limit=67 dpl=0"
    plain = SegmentRegister(0x8000, 0x67, 0x38, type=0xB, present=1)
    assert plain == state.tr
    assert state.tr.descriptor() == state.tr.descriptor(long=True) != plain.descriptor()


def test_reprs_show_every_field_in_hex() -> None:
    assert repr(TableRegister(0x1000, 0x57)) == "TableRegister(base=0x1000, limit=0x57)"
    assert repr(SegmentRegister()) == "SegmentRegister()"
    assert "selector=0x10" in repr(a_long_mode().cs)
    assert eval(repr(a_long_mode().cs)) == a_long_mode().cs
