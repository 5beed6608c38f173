"""States of a vCPU that contradict themselves, and what `CpuState.problems` says of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pykvm.x86.entry import long_mode, protected_mode, real_mode, reset
from pykvm.x86.registers import CR0, CR4, EFER, RFLAGS
from pykvm.x86.state import CpuState

LONG = long_mode(rip=0x10_0000, rsp=0x9000, cr3=0x1000, gdt_base=0x7000, tss_base=0x8000)
PROTECTED = protected_mode(eip=0x10_0000, esp=0x9000, gdt_base=0x7000, tss_base=0x8000)
REAL = real_mode(ip=0x7C00)
SOUND = {"long": LONG, "protected": PROTECTED, "real": REAL, "reset": reset()}

HIGH = 1 << 63


class Broken(NamedTuple):
    """A sound state, what is done to it, and the one problem that it then has."""

    start: CpuState
    change: Callable[[CpuState], object]
    problem: str

    def state(self) -> CpuState:
        """The state that has the problem."""
        state = self.start.copy()
        self.change(state)
        return state


def put(register: str, **fields: Any) -> Callable[[CpuState], None]:
    """Set fields of a segment or table register."""

    def change(state: CpuState) -> None:
        for field, value in fields.items():
            assert hasattr(getattr(state, register), field)
            setattr(getattr(state, register), field, value)

    return change


def flip(register: str, bits: int) -> Callable[[CpuState], None]:
    """Change some bits of a register."""
    return lambda state: setattr(state, register, getattr(state, register) ^ bits)


def both(*changes: Callable[[CpuState], object]) -> Callable[[CpuState], None]:
    """Several changes."""

    def change(state: CpuState) -> None:
        for each in changes:
            each(state)

    return change


def in_virtual_8086(*changes: Callable[[CpuState], object]) -> Callable[[CpuState], None]:
    """Virtual-8086 mode, and then `changes`."""

    def change(state: CpuState) -> None:
        state.rflags |= RFLAGS.VM
        for name in ("cs", "ss", "ds", "es", "fs", "gs"):
            put(name, base=0x100, selector=0x10, limit=0xFFFF, type=3, s=1, dpl=3, db=0, l=0, g=0)(
                state
            )
        for each in changes:
            each(state)

    return change


#: KVM_SET_SREGS refuses these, on every host.
REFUSED = [
    Broken(PROTECTED, flip("cr0", CR0.PG | CR0.PE), "CR0.PG without CR0.PE"),
    Broken(LONG, flip("cr0", CR0.NW), "CR0.NW without CR0.CD"),
    Broken(LONG, flip("cr0", 1 << 40), "CR0 has reserved bit 40 set"),
    Broken(LONG, flip("cr3", 1 << 51 | HIGH), "CR3 is 0x8008000000001000, and physical addresses"),
    Broken(LONG, flip("cr4", 1 << 30), "CR4 has reserved bit 30 set"),
    Broken(REAL, flip("cr4", 1 << 15 | HIGH), "CR4 has reserved bits 15, 63 set"),
    Broken(LONG, flip("efer", EFER.LME), "EFER.LMA without EFER.LME"),
    Broken(
        LONG, both(flip("efer", EFER.LMA), put("cs", l=0)), "EFER.LME and CR0.PG without EFER.LMA"
    ),
    Broken(LONG, flip("cr0", CR0.PG), "EFER.LMA without CR0.PG"),
    Broken(LONG, flip("cr4", CR4.PAE), "EFER.LME and CR0.PG without CR4.PAE"),
    Broken(PROTECTED, put("cs", l=1, db=0), "CS.L outside long mode"),
    Broken(REAL, flip("apic_base", 1 << 1), "IA32_APIC_BASE has reserved bit 1 set"),
    Broken(REAL, flip("apic_base", 3 << 10), "IA32_APIC_BASE.EXTD without IA32_APIC_BASE.EN"),
    Broken(REAL, flip("apic_base", HIGH), "IA32_APIC_BASE is 0x80000000fee00900, and physical"),
]

#: Of these some hosts run what others refuse to enter.
OTHERS = [
    Broken(PROTECTED, flip("cr4", CR4.PCIDE), "CR4.PCIDE outside long mode"),
    Broken(PROTECTED, flip("cr4", CR4.CET), "CR4.CET without CR0.WP"),
    Broken(LONG, flip("efer", 1 << 30), "EFER has reserved bit 30 set"),
    Broken(LONG, flip("cr8", 0x10), "CR8 is 0x10, and a task priority has 4 bits"),
    Broken(LONG, put("cs", type=3), "CS has type 0x3, which is no code"),
    Broken(PROTECTED, put("cs", type=1), "CS has type 0x1, which is no code"),
    Broken(LONG, put("cs", s=0), "CS has type 0xb and S=0, which is no code"),
    Broken(LONG, put("cs", present=0), "CS is not present"),
    Broken(LONG, put("cs", unusable=1), "CS is unusable"),
    Broken(LONG, put("cs", db=1), "CS.L and CS.D are both set"),
    Broken(LONG, put("cs", dpl=3), "CS.DPL is 3 and SS.DPL is 0"),
    Broken(LONG, put("cs", dpl=3, type=15), "CS.DPL is 3, of conforming code, and SS.DPL is 0"),
    Broken(REAL, put("cs", dpl=3, type=3), "CS has type 0x3, of real mode, and DPL 3"),
    Broken(LONG, put("cs", g=0), "CS.limit 0xffffffff is above 0xfffff, and G is clear"),
    Broken(PROTECTED, put("ss", limit=0x1000), "SS.limit 0x1000 does not end a page, and G is set"),
    Broken(LONG, put("cs", base=1 << 32), "CS.base 0x100000000 has more than 32 bits"),
    Broken(LONG, put("ds", base=1 << 32), "DS.base 0x100000000 has more than 32 bits"),
    Broken(LONG, put("ss", type=1), "SS has type 0x1, which is no writable data"),
    Broken(LONG, put("ss", type=11), "SS has type 0xb, which is no writable data"),
    Broken(LONG, put("es", type=9), "ES has type 0x9, which cannot be read"),
    Broken(LONG, put("fs", base=HIGH), "FS.base 0x8000000000000000 is not canonical"),
    Broken(LONG, put("tr", type=9), "TR has type 0x9, which is no busy TSS of 64 bits"),
    Broken(PROTECTED, put("tr", type=2), "TR has type 0x2, which is no busy TSS"),
    Broken(LONG, put("tr", unusable=1), "TR is unusable"),
    Broken(LONG, put("tr", present=0), "TR is not present"),
    Broken(LONG, put("tr", selector=4), "TR.selector 0x4 is of the LDT"),
    Broken(LONG, put("tr", base=1 << 47), "TR.base 0x800000000000 is not canonical"),
    Broken(LONG, put("tr", s=1), "TR has type 0xb and S=1, which is no busy TSS of 64 bits"),
    Broken(REAL, put("ldt", type=3), "LDTR has type 0x3, which is no LDT"),
    Broken(REAL, put("ldt", base=HIGH), "LDTR.base 0x8000000000000000 is not canonical"),
    Broken(LONG, put("gdt", base=HIGH), "GDTR.base 0x8000000000000000 is not canonical"),
    Broken(LONG, put("idt", base=HIGH), "IDTR.base 0x8000000000000000 is not canonical"),
    Broken(LONG, flip("rflags", 0x8000 | 1 << 63), "RFLAGS has reserved bits 15, 63 set"),
    Broken(LONG, flip("rflags", RFLAGS.VM), "RFLAGS.VM in long mode"),
    Broken(REAL, flip("rflags", RFLAGS.VM), "RFLAGS.VM without CR0.PE"),
    Broken(LONG, flip("rip", HIGH), "RIP 0x8000000000100000 is not canonical"),
    Broken(PROTECTED, flip("rip", 1 << 32), "RIP is 0x100100000, and the code is not of 64 bits"),
    Broken(
        PROTECTED,
        in_virtual_8086(put("ds", limit=0xFFFFF)),
        "DS has base 0x100 and limit 0xfffff, and virtual-8086 mode wants 0x100 and 0xffff",
    ),
    Broken(
        PROTECTED,
        in_virtual_8086(put("cs", dpl=0)),
        "CS is no writable data of DPL 3, as in virtual-8086 mode",
    ),
]
