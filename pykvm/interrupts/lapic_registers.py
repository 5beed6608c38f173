"""The local APIC's registers: numbers, bits and what may be written (SDM 3A 11.4.1, 11.12.1.2).

A register has one number in both modes: in xAPIC mode it stands at 16 times that in the page at the
APIC base, in x2APIC mode it is MSR 0x800 plus that.
"""

from __future__ import annotations

from pykvm import layout

__all__ = ["GpFault", "lvt_registers", "lvt_writable", "version", "x2apic_ldr"]


class GpFault(Exception):
    """The guest's RDMSR or WRMSR raises #GP(0).  Not an error of the machine's."""


MSR_APIC_BASE = 0x1B
MSR_TSC_DEADLINE = 0x6E0
MSR_X2APIC = 0x800

# IA32_APIC_BASE (SDM 3A 11.4.4 and 11.12.1).
BASE_BSP = 1 << 8
BASE_X2APIC = 1 << 10
BASE_ENABLE = 1 << 11
BASE_FLAGS = 0xFFF
DEFAULT_ADDRESS = layout.LOCAL_APIC

ID = 0x02
VERSION = 0x03
TPR = 0x08
APR = 0x09
PPR = 0x0A
EOI = 0x0B
LDR = 0x0D
DFR = 0x0E
SVR = 0x0F
ISR = 0x10  # eight registers each, 32 vectors in one
TMR = 0x18
IRR = 0x20
ESR = 0x28
LVT_CMCI = 0x2F
ICR = 0x30
ICR_HIGH = 0x31
LVT_TIMER = 0x32
LVT_THERMAL = 0x33
LVT_PERFORMANCE = 0x34
LVT_LINT0 = 0x35
LVT_LINT1 = 0x36
LVT_ERROR = 0x37
INITIAL_COUNT = 0x38
CURRENT_COUNT = 0x39
DIVIDE = 0x3E
SELF_IPI = 0x3F

# Version register (SDM 3A 11.4.8): an integrated APIC, as KVM shows it.
APIC_VERSION = 0x14
VERSION_DIRECTED_EOI = 1 << 24

# Spurious-interrupt vector register (SDM 3A 11.9).
SVR_ENABLE = 1 << 8
SVR_WRITABLE = 0x3FF
SVR_SUPPRESS_EOI = 1 << 12

# Error status register (SDM 3A 11.5.3).
ESR_SEND_ILLEGAL_VECTOR = 1 << 5
ESR_RECEIVE_ILLEGAL_VECTOR = 1 << 6
ESR_ILLEGAL_REGISTER = 1 << 7

# Interrupt command register, low half (SDM 3A 11.6.1 and 11.12.9).
ICR_LOGICAL = 1 << 11
ICR_PENDING = 1 << 12
ICR_ASSERT = 1 << 14
ICR_LEVEL = 1 << 15
ICR_WRITABLE = 0x000C_CFFF

# Destination format register (SDM 3A 11.6.2.2): the model in bits 28-31, ones below.
DFR_FIXED_BITS = 0x0FFF_FFFF
DFR_FLAT = 0xF
DFR_CLUSTER = 0x0

DIVIDE_WRITABLE = 0xB

# Local vector table (SDM 3A 11.5.1).
LVT_PENDING = 1 << 12
LVT_ACTIVE_LOW = 1 << 13
LVT_REMOTE_IRR = 1 << 14
LVT_LEVEL = 1 << 15
LVT_MASKED = 1 << 16
LVT_TIMER_PERIODIC = 1 << 17
LVT_TIMER_DEADLINE = 1 << 18
_LVT_VECTOR_AND_MASK = LVT_MASKED | 0xFF
_LVT_MODE = 0x700
_LVT_WRITABLE = {
    LVT_CMCI: _LVT_VECTOR_AND_MASK | _LVT_MODE,
    LVT_TIMER: _LVT_VECTOR_AND_MASK | LVT_TIMER_PERIODIC,
    LVT_THERMAL: _LVT_VECTOR_AND_MASK | _LVT_MODE,
    LVT_PERFORMANCE: _LVT_VECTOR_AND_MASK | _LVT_MODE,
    LVT_LINT0: _LVT_VECTOR_AND_MASK | _LVT_MODE | LVT_ACTIVE_LOW | LVT_LEVEL,
    LVT_LINT1: _LVT_VECTOR_AND_MASK | _LVT_MODE | LVT_ACTIVE_LOW | LVT_LEVEL,
    LVT_ERROR: _LVT_VECTOR_AND_MASK,
}
LVT_NAMES = {
    LVT_TIMER: "timer",
    LVT_THERMAL: "thermal",
    LVT_PERFORMANCE: "performance",
    LVT_LINT0: "LINT0",
    LVT_LINT1: "LINT1",
    LVT_ERROR: "error",
    LVT_CMCI: "CMCI",
}

# Bits of an LVT entry that are read-only: writing them is no fault in x2APIC mode.
_LVT_READ_ONLY = {LVT_LINT0: LVT_PENDING | LVT_REMOTE_IRR, LVT_LINT1: LVT_PENDING | LVT_REMOTE_IRR}

# MSRs that can be written in x2APIC mode, and their bits that may be set (SDM 3A table 11-6).  The
# ICR has 64 bits, and LVT entries and SVR depend on what the APIC has.
_X2APIC_WRITABLE = {
    TPR: 0xFF,
    EOI: 0,
    ESR: 0,
    ICR: 0xFFFF_FFFF << 32 | ICR_WRITABLE | ICR_PENDING,
    INITIAL_COUNT: 0xFFFF_FFFF,
    DIVIDE: DIVIDE_WRITABLE,
    SELF_IPI: 0xFF,
}


def lvt_registers(*, cmci: bool) -> tuple[int, ...]:
    """The entries of the local vector table, in the order of the version register's count."""
    entries = (LVT_TIMER, LVT_THERMAL, LVT_PERFORMANCE, LVT_LINT0, LVT_LINT1, LVT_ERROR)
    return (*entries, LVT_CMCI) if cmci else entries


def lvt_writable(*, cmci: bool, tsc_deadline: bool) -> dict[int, int]:
    """The bits that software can set in each entry of the local vector table."""
    writable = {register: _LVT_WRITABLE[register] for register in lvt_registers(cmci=cmci)}
    if tsc_deadline:
        writable[LVT_TIMER] |= LVT_TIMER_DEADLINE
    return writable


def x2apic_writable(lvt: dict[int, int], svr: int) -> dict[int, int]:
    """The x2APIC registers that can be written, with the bits whose setting is no fault."""
    entries = {
        register: bits | _LVT_READ_ONLY.get(register, LVT_PENDING) for register, bits in lvt.items()
    }
    return {**_X2APIC_WRITABLE, **entries, SVR: svr}


def version(*, entries: int, directed_eoi: bool) -> int:
    """The version register of an APIC with `entries` in its local vector table."""
    return APIC_VERSION | (entries - 1) << 16 | (VERSION_DIRECTED_EOI if directed_eoi else 0)


def x2apic_ldr(apic_id: int) -> int:
    """The logical x2APIC ID: the cluster over one bit of sixteen (SDM 3A 11.12.10.2).

    >>> hex(x2apic_ldr(0x23))
    '0x20008'
    """
    return (apic_id >> 4 & 0xFFFF) << 16 | 1 << (apic_id & 0xF)
