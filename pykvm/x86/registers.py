"""The bits of the system registers, by the names that the manuals give them.

Each class is a namespace of masks: ``CR0.PE | CR0.PG``.  `decode` turns a value into names.
"""

from __future__ import annotations

__all__ = [
    "APIC_BASE",
    "CR0",
    "CR3",
    "CR4",
    "DR6",
    "EFER",
    "RFLAGS",
    "PageFaultError",
    "decode",
    "names",
]


class CR0:
    """Control register 0 (SDM 3A 2.5)."""

    PE = 1 << 0
    MP = 1 << 1
    EM = 1 << 2
    TS = 1 << 3
    ET = 1 << 4
    NE = 1 << 5
    WP = 1 << 16
    AM = 1 << 18
    NW = 1 << 29
    CD = 1 << 30
    PG = 1 << 31


class CR3:
    """Control register 3, the bits beside the address (SDM 3A 2.5; with CR4.PCIDE they differ)."""

    PWT = 1 << 3
    PCD = 1 << 4
    LAM_U57 = 1 << 61
    LAM_U48 = 1 << 62


class CR4:
    """Control register 4 (SDM 3A 2.5)."""

    VME = 1 << 0
    PVI = 1 << 1
    TSD = 1 << 2
    DE = 1 << 3
    PSE = 1 << 4
    PAE = 1 << 5
    MCE = 1 << 6
    PGE = 1 << 7
    PCE = 1 << 8
    OSFXSR = 1 << 9
    OSXMMEXCPT = 1 << 10
    UMIP = 1 << 11
    LA57 = 1 << 12
    VMXE = 1 << 13
    SMXE = 1 << 14
    FSGSBASE = 1 << 16
    PCIDE = 1 << 17
    OSXSAVE = 1 << 18
    KL = 1 << 19
    SMEP = 1 << 20
    SMAP = 1 << 21
    PKE = 1 << 22
    CET = 1 << 23
    PKS = 1 << 24
    UINTR = 1 << 25
    LASS = 1 << 27
    LAM_SUP = 1 << 28
    FRED = 1 << 32


class EFER:
    """The extended feature enable register, MSR C0000080 (SDM 3A 2.2.1, APM 2 3.1.7)."""

    SCE = 1 << 0
    LME = 1 << 8
    LMA = 1 << 10
    NXE = 1 << 11
    SVME = 1 << 12
    LMSLE = 1 << 13
    FFXSR = 1 << 14
    TCE = 1 << 15
    MCOMMIT = 1 << 17
    INTWB = 1 << 18
    UAIE = 1 << 20
    AIBRSE = 1 << 21


class RFLAGS:
    """The flags register (SDM 1 3.4.3).  Bit 1 always reads as one and has no name."""

    CF = 1 << 0
    _ONE = 1 << 1
    PF = 1 << 2
    AF = 1 << 4
    ZF = 1 << 6
    SF = 1 << 7
    TF = 1 << 8
    IF = 1 << 9
    DF = 1 << 10
    OF = 1 << 11
    IOPL = 3 << 12
    NT = 1 << 14
    RF = 1 << 16
    VM = 1 << 17
    AC = 1 << 18
    VIF = 1 << 19
    VIP = 1 << 20
    ID = 1 << 21


class DR6:
    """The debug status register (SDM 3B 18.2.3).  BLD and RTM mean "happened" when clear."""

    B0 = 1 << 0
    B1 = 1 << 1
    B2 = 1 << 2
    B3 = 1 << 3
    _ONES = 0xFFFE_07F0
    BLD = 1 << 11
    BD = 1 << 13
    BS = 1 << 14
    BT = 1 << 15
    RTM = 1 << 16


class APIC_BASE:  # noqa: N801 - the field's name for MSR 1B
    """IA32_APIC_BASE, MSR 1B, the bits beside the address (SDM 3A 11.4.4)."""

    BSP = 1 << 8
    EXTD = 1 << 10
    EN = 1 << 11


class PageFaultError:
    """The error code of #PF (SDM 3A 4.7)."""

    P = 1 << 0
    W = 1 << 1
    U = 1 << 2
    RSVD = 1 << 3
    I = 1 << 4  # noqa: E741 - the manual's name, I/D
    PK = 1 << 5
    SS = 1 << 6
    HLAT = 1 << 7
    SGX = 1 << 15


def names(value: int, bits: type) -> list[str]:
    """The names of the bits set in `value`, lowest first; `bits` is one of the classes here.

    A field of several bits is shown with its value, a bit without a name by its number; bits that
    always read as one are left out.

    >>> names(0x3202, RFLAGS)
    ['IF', 'IOPL=3']
    >>> names(0x8000_0040, CR0)
    ['bit6', 'PG']
    """
    known = 0
    found: list[tuple[int, str]] = []
    for name, mask in vars(bits).items():
        # A class has numbers of Python's own, as __firstlineno__.
        if not isinstance(mask, int) or name.startswith("__"):
            continue
        low = mask & -mask
        if not name.startswith("_"):
            if mask == low:
                if value & mask:
                    found.append((low, name))
            elif value & mask:
                found.append((low, f"{name}={(value & mask) // low}"))
        known |= mask
    rest = value & ~known
    while rest:
        low = rest & -rest
        found.append((low, f"bit{low.bit_length() - 1}"))
        rest ^= low
    return [name for _, name in sorted(found)]


def decode(value: int, bits: type, *, digits: int = 8) -> str:
    """`value` in hex and its bits by name; `digits` is the least number of hex digits.

    >>> decode(0x8000_0011, CR0)
    '80000011 [PE ET PG]'
    """
    return f"{value:0{digits}x} [{' '.join(names(value, bits))}]"
