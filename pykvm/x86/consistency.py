"""What is wrong with the state of a processor: rules of the manuals that no running one breaks.

KVM refuses a state whose control registers break them (KVM_SET_SREGS: EINVAL), a processor one
whose segments or flags do (VM entry fails, SDM 3C 27.3.1; AMD's checks less, APM 2 15.5.1), and a
KVM in software may run either.  What KVM itself puts right is no problem: bit 1 of RFLAGS and the
accessed bits of segments.
"""

from __future__ import annotations

from pykvm.typed import TYPE_CHECKING
from pykvm.x86.paging import PagingMode
from pykvm.x86.registers import APIC_BASE, CR0, CR3, CR4, EFER, RFLAGS, names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pykvm.x86.cpuid import CpuidTable
    from pykvm.x86.state import CpuState, SegmentRegister, TableRegister

__all__ = ["control_problems", "problems"]

# MAXPHYADDR is at most this (SDM 3A 4.1.4).
_MOST_PHYSICAL_BITS = 52

# The bits of CR4 that need a feature, by any of its names in CPUID (SDM 3A 2.5).
_CR4_NEEDS = {
    "UMIP": ("umip",),
    "LA57": ("la57",),
    "VMXE": ("vmx",),
    "SMXE": ("smx",),
    "FSGSBASE": ("fsgsbase",),
    "PCIDE": ("pcid",),
    "OSXSAVE": ("xsave",),
    "KL": ("key_locker",),
    "SMEP": ("smep",),
    "SMAP": ("smap",),
    "PKE": ("pku",),
    "CET": ("shstk", "ibt"),
    "PKS": ("pks",),
    "UINTR": ("uintr",),
    "LASS": ("lass",),
    "LAM_SUP": ("lam",),
    "FRED": ("fred",),
}

# Types of descriptors (SDM 3A 3.4.5.1 and 3.5), with the accessed bit set.
_DATA = 0x3
_CODE = 0x8
_CONFORMING = 0x4
_READABLE = _WRITABLE = 0x2
_LDT = 0x2
_TSS16_BUSY = 0x3
_TSS_BUSY = 0xB
_TABLE_INDICATOR = 1 << 2


def problems(state: CpuState, cpuid: CpuidTable | None = None) -> Iterator[str]:
    """All of them: see `CpuState.problems`."""
    yield from control_problems(state, cpuid)
    yield from _segment_problems(state)


def control_problems(state: CpuState, cpuid: CpuidTable | None = None) -> Iterator[str]:
    """What KVM_SET_SREGS may refuse: control registers, and the CS.L that goes with them."""
    yield from _cr0(state)
    yield from _cr3(state, cpuid)
    yield from _cr4(state, cpuid)
    yield from _efer(state)
    if state.cs.l and not _is_long(state):
        yield "CS.L outside long mode"
    yield from _apic_base(state, cpuid)
    if state.cr8 > 0xF:
        yield f"CR8 is {state.cr8:#x}, and a task priority has 4 bits"


def _segment_problems(state: CpuState) -> Iterator[str]:
    """What is wrong with segment and table registers, RFLAGS and RIP."""
    yield from _code(state)
    if _is_virtual_8086(state):
        yield from _virtual_8086(state)
    else:
        yield from _stack(state)
        yield from _data(state)
    yield from _system(state)
    yield from _flags(state)
    yield from _instruction_pointer(state)
    yield from _canonical_base(state, "GDTR", state.gdt)
    yield from _canonical_base(state, "IDTR", state.idt)


def _is_long(state: CpuState) -> bool:
    return bool(state.efer & EFER.LMA)


def _is_canonical(state: CpuState, address: int) -> bool:
    paging = PagingMode.LEVEL5 if state.cr4 & CR4.LA57 else PagingMode.LEVEL4
    return paging.canonical(address)


def _canonical_base(
    state: CpuState, name: str, register: SegmentRegister | TableRegister
) -> Iterator[str]:
    if not _is_canonical(state, register.base):
        yield f"{name}.base {register.base:#x} is not canonical"


def _is_virtual_8086(state: CpuState) -> bool:
    return bool(state.rflags & RFLAGS.VM and state.cr0 & CR0.PE) and not _is_long(state)


def _reserved(register: str, value: int, bits: type) -> Iterator[str]:
    unnamed = [name.removeprefix("bit") for name in names(value, bits) if name.startswith("bit")]
    if unnamed:
        plural = "s" if len(unnamed) > 1 else ""
        yield f"{register} has reserved bit{plural} {', '.join(unnamed)} set"


def _physical(register: str, value: int, cpuid: CpuidTable | None) -> Iterator[str]:
    bits = _MOST_PHYSICAL_BITS if cpuid is None else cpuid.maxphyaddr
    if value >> bits:
        yield f"{register} is {value:#x}, and physical addresses have {bits} bits"


def _cr0(state: CpuState) -> Iterator[str]:
    # The processor ignores reserved bits of the lower half (SDM 3A 2.5).
    yield from _reserved("CR0", state.cr0 >> 32 << 32, CR0)
    if state.cr0 & CR0.PG and not state.cr0 & CR0.PE:
        yield "CR0.PG without CR0.PE"
    if state.cr0 & CR0.NW and not state.cr0 & CR0.CD:
        yield "CR0.NW without CR0.CD"


def _cr3(state: CpuState, cpuid: CpuidTable | None) -> Iterator[str]:
    masking = CR3.LAM_U48 | CR3.LAM_U57
    yield from _physical("CR3", state.cr3 & ~masking, cpuid)
    if state.cr3 & masking and cpuid is not None and "lam" not in cpuid:
        yield "CR3.LAM_U48 or CR3.LAM_U57, and the CPUID shows no lam"


def _cr4(state: CpuState, cpuid: CpuidTable | None) -> Iterator[str]:
    yield from _reserved("CR4", state.cr4, CR4)
    if cpuid is not None:
        for name in names(state.cr4, CR4):
            features = _CR4_NEEDS.get(name)
            if features is not None and not any(feature in cpuid for feature in features):
                yield f"CR4.{name}, and the CPUID shows no {' or '.join(features)}"
    if state.cr4 & CR4.PCIDE and not _is_long(state):
        yield "CR4.PCIDE outside long mode"
    if state.cr4 & CR4.CET and not state.cr0 & CR0.WP:
        yield "CR4.CET without CR0.WP"


def _efer(state: CpuState) -> Iterator[str]:
    """Long mode is on (LMA) if it is enabled (LME) and paging is (SDM 3A 2.2.1, 10.8.5)."""
    yield from _reserved("EFER", state.efer, EFER)
    paging, enabled, active = state.cr0 & CR0.PG, state.efer & EFER.LME, state.efer & EFER.LMA
    if active and not enabled:
        yield "EFER.LMA without EFER.LME"
    if active and not paging:
        yield "EFER.LMA without CR0.PG"
    if enabled and paging and not active:
        yield "EFER.LME and CR0.PG without EFER.LMA"
    if enabled and paging and not state.cr4 & CR4.PAE:
        yield "EFER.LME and CR0.PG without CR4.PAE"


def _apic_base(state: CpuState, cpuid: CpuidTable | None) -> Iterator[str]:
    """IA32_APIC_BASE (SDM 3A 11.4.4, 11.12.1)."""
    yield from _reserved("IA32_APIC_BASE", state.apic_base & 0xFFF, APIC_BASE)
    yield from _physical("IA32_APIC_BASE", state.apic_base, cpuid)
    if state.apic_base & APIC_BASE.EXTD:
        if not state.apic_base & APIC_BASE.EN:
            yield "IA32_APIC_BASE.EXTD without IA32_APIC_BASE.EN"
        if cpuid is not None and "x2apic" not in cpuid:
            yield "IA32_APIC_BASE.EXTD, and the CPUID shows no x2apic"


def _usable(segment: SegmentRegister) -> bool:
    """KVM takes what is not present for unusable, too."""
    return bool(segment.present and not segment.unusable)


def _code(state: CpuState) -> Iterator[str]:
    cs = state.cs
    if cs.l and cs.db and _is_long(state):
        yield "CS.L and CS.D are both set"
    if not _usable(cs):
        yield "CS is " + ("unusable" if cs.unusable else "not present")
        return
    yield from _granularity("CS", cs)
    yield from _upper_half("CS", cs)
    if _is_virtual_8086(state):
        return
    kind = cs.type | 1
    if not cs.s or not (kind & _CODE or (kind == _DATA and not cs.l)):
        # Real mode's CS has the type of data, and keeps it until protected mode loads it.
        yield f"CS has {_kind(cs)}, which is no code"
    elif kind == _DATA and cs.dpl:
        yield f"CS has type 0x3, of real mode, and DPL {cs.dpl}"
    elif kind & _CODE and kind & _CONFORMING and cs.dpl > state.ss.dpl:
        yield f"CS.DPL is {cs.dpl}, of conforming code, and SS.DPL is {state.ss.dpl}"
    elif kind & _CODE and not kind & _CONFORMING and cs.dpl != state.ss.dpl:
        yield f"CS.DPL is {cs.dpl} and SS.DPL is {state.ss.dpl}"


def _stack(state: CpuState) -> Iterator[str]:
    ss = state.ss
    if ss.dpl and not state.cr0 & CR0.PE:
        yield f"SS.DPL is {ss.dpl} in real mode"
    if not _usable(ss):
        return
    if not ss.s or ss.type & _CODE or not ss.type & _WRITABLE:
        yield f"SS has {_kind(ss)}, which is no writable data"
    yield from _granularity("SS", ss)
    yield from _upper_half("SS", ss)


def _data(state: CpuState) -> Iterator[str]:
    for name, segment in (("DS", state.ds), ("ES", state.es), ("FS", state.fs), ("GS", state.gs)):
        if name in ("FS", "GS"):
            yield from _canonical_base(state, name, segment)
        elif _usable(segment):
            yield from _upper_half(name, segment)
        if not _usable(segment):
            continue
        if not segment.s or (segment.type & _CODE and not segment.type & _READABLE):
            yield f"{name} has {_kind(segment)}, which cannot be read"
        yield from _granularity(name, segment)


def _system(state: CpuState) -> Iterator[str]:
    tr, ldt = state.tr, state.ldt
    if _usable(tr):
        busy = (_TSS_BUSY,) if _is_long(state) else (_TSS16_BUSY, _TSS_BUSY)
        if tr.s or tr.type not in busy:
            yield (
                f"TR has {_kind(tr, system=True)}, which is no busy TSS"
                + " of 64 bits" * _is_long(state)
            )
    else:
        yield "TR is " + ("unusable" if tr.unusable else "not present")
    if _usable(ldt) and (ldt.s or ldt.type != _LDT):
        yield f"LDTR has {_kind(ldt, system=True)}, which is no LDT"
    for name, segment in (("TR", tr), ("LDTR", ldt)):
        if _usable(segment):
            yield from _granularity(name, segment)
            yield from _canonical_base(state, name, segment)
            if segment.selector & _TABLE_INDICATOR:
                yield f"{name}.selector {segment.selector:#x} is of the LDT"


def _virtual_8086(state: CpuState) -> Iterator[str]:
    for name in ("cs", "ss", "ds", "es", "fs", "gs"):
        segment: SegmentRegister = getattr(state, name)
        if segment.base != segment.selector << 4 or segment.limit != 0xFFFF:
            yield (
                f"{name.upper()} has base {segment.base:#x} and limit {segment.limit:#x}, and "
                f"virtual-8086 mode wants {segment.selector << 4:#x} and 0xffff"
            )
        rest = (segment.type | 1, segment.s, segment.dpl, segment.present)
        if rest != (_DATA, 1, 3, 1) or segment.l or segment.db or segment.g or segment.unusable:
            yield f"{name.upper()} is no writable data of DPL 3, as in virtual-8086 mode"


def _kind(segment: SegmentRegister, *, system: bool = False) -> str:
    """The type, and S where it is not that of the register's descriptors."""
    other = "" if bool(segment.s) != system else f" and S={int(bool(segment.s))}"
    return f"type {segment.type:#x}{other}"


def _granularity(name: str, segment: SegmentRegister) -> Iterator[str]:
    """A limit counts bytes, up to 1 MiB, or pages, and then ends with one (SDM 3A 3.4.5)."""
    if segment.g and segment.limit & 0xFFF != 0xFFF:
        yield f"{name}.limit {segment.limit:#x} does not end a page, and G is set"
    if not segment.g and segment.limit >> 20:
        yield f"{name}.limit {segment.limit:#x} is above 0xfffff, and G is clear"


def _upper_half(name: str, segment: SegmentRegister) -> Iterator[str]:
    if segment.base >> 32:
        yield f"{name}.base {segment.base:#x} has more than 32 bits"


def _flags(state: CpuState) -> Iterator[str]:
    yield from _reserved("RFLAGS", state.rflags, RFLAGS)
    if state.rflags & RFLAGS.VM:
        if _is_long(state):
            yield "RFLAGS.VM in long mode"
        elif not state.cr0 & CR0.PE:
            yield "RFLAGS.VM without CR0.PE"


def _instruction_pointer(state: CpuState) -> Iterator[str]:
    if not (_is_long(state) and state.cs.l):
        if state.rip >> 32:
            yield f"RIP is {state.rip:#x}, and the code is not of 64 bits"
    elif not _is_canonical(state, state.rip):
        yield f"RIP {state.rip:#x} is not canonical"
