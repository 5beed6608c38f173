"""The states that guests start in: after RESET, INIT and a start-up IPI, and in each mode.

>>> real_mode(ip=0x7C00).mode
<Mode.REAL: 'real'>
"""

from __future__ import annotations

from functools import cache, lru_cache

from pykvm.values.checks import unsigned
from pykvm.x86 import descriptors
from pykvm.x86.descriptors import SegmentDescriptor, decode_segment, flat_gdt
from pykvm.x86.registers import APIC_BASE, CR0, CR4, EFER
from pykvm.x86.state import CpuState, SegmentRegister, TableRegister

__all__ = ["after_init", "after_start_up", "long_mode", "protected_mode", "real_mode", "reset"]

_LOCAL_APIC = 0xFEE0_0000
# Types of the hidden part of a segment register; VM entry wants them accessed and the TSS busy
# (SDM 3C 27.3.1.2).
_DATA_ACCESSED = 0x3
_CODE_ACCESSED = 0xB
_LDT = 0x2
_TSS_BUSY = 0xB


def reset() -> CpuState:
    """The state after power-up or RESET (SDM 3A 10.1.1, table 10-1).

    Execution starts at F000:FFF0 with the base of CS at FFFF0000, so at the physical address
    0xFFFFFFF0.  EDX holds the processor signature: family 6, as KVM has it.

    >>> hex(reset().linear_rip)
    '0xfffffff0'
    """
    state = real_mode(ip=0xFFF0, sp=0)
    state.cs.selector = 0xF000
    state.cs.base = 0xFFFF_0000
    state.rdx = 0x600
    state.cr0 = CR0.CD | CR0.NW | CR0.ET
    state.idt.limit = 0xFFFF
    return state


def after_init(before: CpuState, *, signature: int = 0x600) -> CpuState:
    """The state after INIT of a processor that was in the state `before` (SDM 3A table 10-1).

    As after RESET, but the caches stay as they were, and the local APIC where it was.  `signature`
    is the processor's, CPUID.1:EAX.  FPU, TSC and most MSRs are no part of a CpuState, and INIT
    leaves them alone.

    >>> hex(after_init(protected_mode(eip=0, esp=0, gdt_base=0)).cr0), hex(after_init(reset()).cr0)
    ('0x10', '0x60000010')
    """
    state = reset()
    state.cr0 = CR0.ET | before.cr0 & (CR0.CD | CR0.NW)
    state.rdx = signature
    state.apic_base = before.apic_base
    return state


def after_start_up(before: CpuState, vector: int) -> CpuState:
    """The state after a start-up IPI, of a processor that waited for it (SDM 3A 9.4.4).

    >>> hex(after_start_up(reset(), 0x9F).linear_rip)
    '0x9f000'
    """
    state = before.copy()
    state.rip = 0
    state.cs = _real(vector << 8, _CODE_ACCESSED)
    return state


def real_mode(*, ip: int, cs: int = 0, sp: int = 0x7C00, ss: int = 0) -> CpuState:
    """Real mode at `cs`:`ip` with the stack at `ss`:`sp`, interrupts off, caches on (SDM 3B 21.1).

    `cs` and `ss` are selectors; DS, ES, FS and GS are 0.  The IVT is at address 0.

    >>> hex(real_mode(cs=0x07C0, ip=4).linear_rip)
    '0x7c04'
    """
    unsigned("cs", cs, 16)
    unsigned("ss", ss, 16)
    return CpuState(
        rip=unsigned("ip", ip, 32),
        rsp=unsigned("sp", sp, 32),
        cs=_real(cs, _CODE_ACCESSED),
        ss=_real(ss, _DATA_ACCESSED),
        ds=_real(0, _DATA_ACCESSED),
        es=_real(0, _DATA_ACCESSED),
        fs=_real(0, _DATA_ACCESSED),
        gs=_real(0, _DATA_ACCESSED),
        tr=SegmentRegister(limit=0xFFFF, type=_TSS_BUSY, present=1),
        ldt=SegmentRegister(limit=0xFFFF, type=_LDT, present=1),
        gdt=TableRegister(0, 0xFFFF),
        idt=TableRegister(0, 0x3FF),
        cr0=CR0.ET,
        apic_base=_LOCAL_APIC | APIC_BASE.EN | APIC_BASE.BSP,
    )


def protected_mode(
    *,
    eip: int,
    esp: int,
    gdt_base: int,
    cr3: int | None = None,
    cr4_flags: int = 0,
    tss_base: int = 0,
) -> CpuState:
    """Protected mode in ring 0 of 32-bit code, flat segments, interrupts off, no IDT.

    With `cr3` paging is on and supervisor writes respect read-only pages (CR0.WP); `cr4_flags` is
    CR4, and says which kind: PAE for PAE paging (EFER.NXE is then set too), PSE for 4 MiB pages.
    The image of ``flat_gdt(tss_base)`` belongs at the linear address `gdt_base`.

    >>> state = protected_mode(eip=0x10_0000, esp=0x9_0000, gdt_base=0x1000)
    >>> state.cs.selector == descriptors.CODE32, state.mode
    (True, <Mode.PROTECTED: 'protected'>)
    """
    state = _flat(descriptors.CODE32, gdt_base, tss_base, long=False)
    state.rip = eip
    state.rsp = esp
    state.cr0 = CR0.PE | CR0.MP | CR0.ET | CR0.NE
    state.cr4 = cr4_flags
    if cr3 is not None:
        state.cr0 |= CR0.PG | CR0.WP
        state.cr3 = cr3
        state.efer = EFER.NXE if cr4_flags & CR4.PAE else 0
    return state


def long_mode(
    *, rip: int, rsp: int, cr3: int, gdt_base: int, tss_base: int, cr4_flags: int = 0
) -> CpuState:
    """64-bit mode in ring 0, interrupts off, no IDT, SSE usable, NX and WP on.

    `cr3` is the root of 4-level page tables, 5-level with CR4.LA57 in `cr4_flags`, which are added
    to CR4.  The image of ``flat_gdt(tss_base)`` belongs at `gdt_base`, a 64-bit TSS at `tss_base`.

    >>> state = long_mode(rip=0x10_0000, rsp=0x8000, cr3=0x1000, gdt_base=0x5000, tss_base=0x6000)
    >>> state.code_bits, str(state.cs)
    (64, '0010 code64 base=0 limit=ffffffff dpl=0 readable accessed')
    """
    state = _flat(descriptors.CODE64, gdt_base, tss_base, long=True)
    state.rip = rip
    state.rsp = rsp
    state.cr0 = CR0.PE | CR0.MP | CR0.ET | CR0.NE | CR0.WP | CR0.PG
    state.cr3 = cr3
    state.cr4 = CR4.PAE | CR4.OSFXSR | CR4.OSXMMEXCPT | cr4_flags
    state.efer = EFER.LME | EFER.LMA | EFER.NXE
    return state


def _real(selector: int, kind: int) -> SegmentRegister:
    return SegmentRegister(selector << 4, 0xFFFF, selector, kind, present=1, s=1)


@cache
def _flat_segment(selector: int) -> SegmentDescriptor:
    """A code or data segment of the flat GDT, wherever its TSS is."""
    return decode_segment(flat_gdt().image, selector)


@lru_cache(maxsize=16)
def _flat_task(tss_base: int, long: bool) -> tuple[SegmentDescriptor, int]:
    """The TSS of a flat GDT, and the limit of that."""
    gdt = flat_gdt(tss_base)
    return decode_segment(gdt.image, descriptors.TSS, long=long), gdt.limit


def _flat(code: int, gdt_base: int, tss_base: int, *, long: bool) -> CpuState:
    """Registers that were loaded from the flat GDT, code and data of ring 0."""
    task, limit = _flat_task(tss_base, long)
    data = SegmentRegister.load(_flat_segment(descriptors.DATA), descriptors.DATA)
    return CpuState(
        cs=SegmentRegister.load(_flat_segment(code), code),
        ds=data,
        es=data.copy(),
        fs=data.copy(),
        gs=data.copy(),
        ss=data.copy(),
        tr=SegmentRegister.load(task, descriptors.TSS),
        ldt=SegmentRegister(type=_LDT, unusable=1),
        gdt=TableRegister(gdt_base, limit),
        apic_base=_LOCAL_APIC | APIC_BASE.EN | APIC_BASE.BSP,
    )
