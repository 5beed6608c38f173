"""The registers of a vCPU as data.

Plain values: build a state (`pykvm.x86.entry`), look at it, change it, then set it on a vCPU.

>>> from pykvm.x86.entry import real_mode
>>> state = real_mode(ip=0x7C00)
>>> state.rax = 0x1234
>>> state.mode
<Mode.REAL: 'real'>
>>> str(state).splitlines()[0]
'real mode, IF=0, CPL 0'
"""

from __future__ import annotations

from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import unsigned, wrong
from pykvm.values.enumeration import Enum
from pykvm.x86.descriptors import SegmentDescriptor
from pykvm.x86.registers import APIC_BASE, CR0, CR4, EFER, RFLAGS, decode, names

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import ClassVar

    from typing_extensions import Self

    from pykvm.x86.cpuid import CpuidTable

__all__ = ["CpuState", "Mode", "SegmentRegister", "TableRegister", "check_record"]

# Bit 1 of RFLAGS always reads as one (SDM 1 3.4.3).
_RFLAGS = 1 << 1


class Mode(Enum):
    """The processor modes that a guest can be started in."""

    REAL = "real"
    PROTECTED = "protected"
    LONG = "long"


class _Record:
    """Equality, repr and copies for a class of plain fields, named by its __slots__.

    (A dataclass would do, but importing dataclasses alone costs more than all of this package.)
    """

    __slots__: tuple[str, ...] = ()
    #: How many bits each number holds, where that is not 64.
    BITS: ClassVar[Mapping[str, int]] = {}
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    def __repr__(self) -> str:
        # What is 0 need not be said: it is what a field is that is not given.
        fields = ((name, getattr(self, name)) for name in self.__slots__)
        text = (
            f"{name}={value:#x}" if isinstance(value, int) else f"{name}={value!r}"
            for name, value in fields
            if value != 0
        )
        return f"{type(self).__name__}({', '.join(text)})"

    def copy(self) -> Self:
        """A copy that shares nothing with this one."""
        new = object.__new__(type(self))
        for name in self.__slots__:
            value = getattr(self, name)
            setattr(new, name, value.copy() if isinstance(value, _Record) else value)
        return new


class _OfMode(_Record):
    """A record that prints itself differently in long mode."""

    __slots__ = ("long",)

    #: Whether its descriptor is one of long mode, where LDT and TSS have 16 bytes.  No part of the
    #: value.
    long: bool

    def copy(self) -> Self:
        """See `_Record`."""
        new = super().copy()
        new.long = self.long
        return new


class SegmentRegister(_OfMode):
    """A segment register with its hidden part, fields as in kvm_segment.

    `limit` is in bytes whatever `g` says.  `unusable` is 1 for one that no access may go through.
    """

    __slots__ = (
        "avl", "base", "db", "dpl", "g", "l", "limit", "present", "s", "selector", "type",
        "unusable",
    )  # fmt: skip

    # The widths of kvm_segment; what KVM makes of the upper bits of its small fields is its own.
    BITS: ClassVar[Mapping[str, int]] = {
        "limit": 32, "selector": 16,
        **dict.fromkeys(("type", "present", "dpl", "db", "s", "l", "g", "avl", "unusable"), 8),
    }  # fmt: skip

    base: int
    limit: int
    selector: int
    type: int
    present: int
    dpl: int
    db: int
    s: int
    l: int  # noqa: E741 - kvm_segment's name
    g: int
    avl: int
    unusable: int

    def __init__(
        self,
        base: int = 0,
        limit: int = 0,
        selector: int = 0,
        type: int = 0,
        present: int = 0,
        dpl: int = 0,
        db: int = 0,
        s: int = 0,
        l: int = 0,  # noqa: E741
        g: int = 0,
        avl: int = 0,
        unusable: int = 0,
    ) -> None:
        self.base = base
        self.limit = limit
        self.selector = selector
        self.type = type
        self.present = present
        self.dpl = dpl
        self.db = db
        self.s = s
        self.l = l
        self.g = g
        self.avl = avl
        self.unusable = unusable
        self.long = False

    @classmethod
    def load(cls, descriptor: SegmentDescriptor, selector: int) -> SegmentRegister:
        """What the register holds after `selector`, which names `descriptor`, was loaded.

        >>> from pykvm.x86.descriptors import code
        >>> SegmentRegister.load(code(64), 0x10).l
        1
        """
        loaded = cls(
            base=descriptor.base,
            limit=descriptor.limit,
            selector=selector,
            type=descriptor.type,
            present=descriptor.present,
            dpl=descriptor.dpl,
            db=descriptor.db,
            s=descriptor.s,
            l=descriptor.l,
            g=descriptor.g,
            avl=descriptor.avl,
        )
        loaded.long = descriptor.long
        return loaded

    def descriptor(self, *, long: bool | None = None) -> SegmentDescriptor:
        """The hidden part as a descriptor; in long mode (`long`) LDT and TSS are 16-byte ones.

        Without `long` it is that of the mode in which the register was read or loaded.
        """
        long = self.long if long is None else long
        return SegmentDescriptor(
            self.base,
            self.limit,
            self.type,
            self.s,
            self.dpl,
            self.present,
            self.avl,
            self.l,
            self.db,
            self.g,
            long=long and not self.s,
        )

    def describe(self, *, long: bool | None = None) -> str:
        """The selector and the hidden part in words, on one line; `long` as in `descriptor`."""
        hidden = "unusable" if self.unusable else str(self.descriptor(long=long))
        return f"{self.selector:04x} {hidden}"

    def __str__(self) -> str:
        return self.describe()


class TableRegister(_Record):
    """GDTR or IDTR: linear address and limit, the last valid offset, of a descriptor table."""

    __slots__ = ("base", "limit")
    BITS: ClassVar[Mapping[str, int]] = {"limit": 16}

    base: int
    limit: int

    def __init__(self, base: int = 0, limit: int = 0) -> None:
        self.base = base
        self.limit = limit

    def __str__(self) -> str:
        return f"base={self.base:x} limit={self.limit:x}"


def check_record(name: str, value: object, kind: type[_Record]) -> None:
    """Raise ConfigError unless `value` is one of `kind` whose numbers fit where they belong.

    >>> check_record("cs", SegmentRegister(selector=1 << 16), SegmentRegister)
    Traceback (most recent call last):
    ...
    pykvm.errors.ConfigError: cs.selector is an integer from 0 to 0xffff, not 0x10000
    """
    if not isinstance(value, kind):
        raise wrong(name, f"a {kind.__name__}", value)
    for field in kind.__slots__:
        inner = getattr(value, field)
        if field in _INNER:
            check_record(f"{name}.{field}", inner, _INNER[field])
        elif type(inner) is not int or inner < 0 or inner >> kind.BITS.get(field, 64):
            unsigned(f"{name}.{field}", inner, kind.BITS.get(field, 64))


_GENERAL = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
_INNER: dict[str, type[_Record]] = {
    **dict.fromkeys(_SEGMENTS, SegmentRegister),
    **dict.fromkeys(("gdt", "idt"), TableRegister),
}


class CpuState(_Record):
    """The general, segment and control registers of a vCPU: what KVM_SET_REGS and _SREGS set.

    `str()` is a register dump with the flags by name.  Fields not given are zero, segment and table
    registers empty.
    """

    __slots__ = (
        *_GENERAL, "rip", "rflags", *_SEGMENTS, "gdt", "idt",
        "cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base",
    )  # fmt: skip

    rax: int
    rbx: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    rsp: int
    rbp: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int
    rip: int
    rflags: int
    cs: SegmentRegister
    ds: SegmentRegister
    es: SegmentRegister
    fs: SegmentRegister
    gs: SegmentRegister
    ss: SegmentRegister
    tr: SegmentRegister
    ldt: SegmentRegister
    gdt: TableRegister
    idt: TableRegister
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    cr8: int
    efer: int
    apic_base: int

    def __init__(
        self,
        *,
        rax: int = 0,
        rbx: int = 0,
        rcx: int = 0,
        rdx: int = 0,
        rsi: int = 0,
        rdi: int = 0,
        rsp: int = 0,
        rbp: int = 0,
        r8: int = 0,
        r9: int = 0,
        r10: int = 0,
        r11: int = 0,
        r12: int = 0,
        r13: int = 0,
        r14: int = 0,
        r15: int = 0,
        rip: int = 0,
        rflags: int = _RFLAGS,
        cs: SegmentRegister | None = None,
        ds: SegmentRegister | None = None,
        es: SegmentRegister | None = None,
        fs: SegmentRegister | None = None,
        gs: SegmentRegister | None = None,
        ss: SegmentRegister | None = None,
        tr: SegmentRegister | None = None,
        ldt: SegmentRegister | None = None,
        gdt: TableRegister | None = None,
        idt: TableRegister | None = None,
        cr0: int = 0,
        cr2: int = 0,
        cr3: int = 0,
        cr4: int = 0,
        cr8: int = 0,
        efer: int = 0,
        apic_base: int = 0,
    ) -> None:
        self.rax = rax
        self.rbx = rbx
        self.rcx = rcx
        self.rdx = rdx
        self.rsi = rsi
        self.rdi = rdi
        self.rsp = rsp
        self.rbp = rbp
        self.r8 = r8
        self.r9 = r9
        self.r10 = r10
        self.r11 = r11
        self.r12 = r12
        self.r13 = r13
        self.r14 = r14
        self.r15 = r15
        self.rip = rip
        self.rflags = rflags
        self.cs = cs or SegmentRegister()
        self.ds = ds or SegmentRegister()
        self.es = es or SegmentRegister()
        self.fs = fs or SegmentRegister()
        self.gs = gs or SegmentRegister()
        self.ss = ss or SegmentRegister()
        self.tr = tr or SegmentRegister()
        self.ldt = ldt or SegmentRegister()
        self.gdt = gdt or TableRegister()
        self.idt = idt or TableRegister()
        self.cr0 = cr0
        self.cr2 = cr2
        self.cr3 = cr3
        self.cr4 = cr4
        self.cr8 = cr8
        self.efer = efer
        self.apic_base = apic_base

    @property
    def mode(self) -> Mode:
        """The mode that CR0.PE and EFER.LMA name; compatibility mode counts as long mode."""
        if not self.cr0 & CR0.PE:
            return Mode.REAL
        return Mode.LONG if self.efer & EFER.LMA else Mode.PROTECTED

    @property
    def code_bits(self) -> int:
        """The width of the code at CS:RIP: 16, 32 or 64."""
        if not self.cr0 & CR0.PE or self.rflags & RFLAGS.VM:
            return 16
        if self.efer & EFER.LMA and self.cs.l:
            return 64
        return 32 if self.cs.db else 16

    @property
    def cpl(self) -> int:
        """The current privilege level, kept in SS.DPL (SDM 3C 25.4.1)."""
        if not self.cr0 & CR0.PE:
            return 0
        return 3 if self.rflags & RFLAGS.VM else self.ss.dpl

    @property
    def linear_rip(self) -> int:
        """The linear address of the next instruction: CS base + RIP, RIP alone in 64-bit code."""
        return self.rip if self.code_bits == 64 else (self.cs.base + self.rip) & 0xFFFF_FFFF

    @property
    def linear_rsp(self) -> int:
        """The linear address of the top of the stack."""
        if self.code_bits == 64:
            return self.rsp
        mask = 0xFFFF_FFFF if self.ss.db else 0xFFFF
        return (self.ss.base + (self.rsp & mask)) & 0xFFFF_FFFF

    def problems(self, cpuid: CpuidTable | None = None) -> tuple[str, ...]:
        """What no processor would run, a sentence each: control registers first, then the rest.

        The rules are of SDM 3A 2.5 and 3C 27.3.1.  With the vCPU's `cpuid`, features and the width
        of physical addresses count as well.  Some hosts run a state that others refuse.

        >>> from pykvm.x86.entry import long_mode
        >>> state = long_mode(rip=0, rsp=0, cr3=0x1000, gdt_base=0x2000, tss_base=0x3000)
        >>> state.problems()
        ()
        >>> state.cr4 = 1 << 30
        >>> state.cs.db = 1
        >>> for problem in state.problems():
        ...     print(problem)
        CR4 has reserved bit 30 set
        EFER.LME and CR0.PG without CR4.PAE
        CS.L and CS.D are both set
        """
        from pykvm.x86.consistency import problems

        return tuple(problems(self, cpuid))

    def __repr__(self) -> str:
        """Several lines, as `str` has them: what a prompt and a failed assertion show."""
        return f"<CpuState: {self}>"

    def __str__(self) -> str:
        from pykvm.x86.paging import PagingMode

        paging = PagingMode.of(self.cr0, self.cr4, self.efer)
        title = [f"{self.mode.value} mode"]
        title += [f"{self.code_bits}-bit code"] * (self.mode is not Mode.REAL)
        title += [str(paging)] * (paging is not PagingMode.NONE)
        title += [f"IF={int(bool(self.rflags & RFLAGS.IF))}", f"CPL {self.cpl}"]
        lines = [", ".join(title)]
        for first in range(0, len(_GENERAL), 4):
            row = _GENERAL[first : first + 4]
            lines.append(" ".join(f"{name:3}={getattr(self, name):016x}" for name in row))
        lines.append(f"rip={self.rip:016x} rflags={decode(self.rflags, RFLAGS)}")
        for name in _SEGMENTS:
            segment: SegmentRegister = getattr(self, name)
            lines.append(f"{name:3}={segment.describe(long=self.mode is Mode.LONG)}")
        lines += [f"gdt {self.gdt}", f"idt {self.idt}"]
        lines.append(f"cr0={decode(self.cr0, CR0)}")
        lines.append(f"cr2={self.cr2:016x} cr3={self.cr3:016x} cr8={self.cr8:x}")
        lines.append(f"cr4={decode(self.cr4, CR4)}")
        lines.append(f"efer={decode(self.efer, EFER)}")
        flags = " ".join(names(self.apic_base & 0xFFF, APIC_BASE))
        lines.append(f"apic_base={self.apic_base & -0x1000:x} [{flags}]")
        return "\n".join(lines)
