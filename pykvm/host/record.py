"""What of a host a guest's state depends on, and whether another host can go on with it."""

from __future__ import annotations

import os
import struct
from contextlib import suppress

from pykvm.errors import HostError
from pykvm.kvm import uapi
from pykvm.typed import TYPE_CHECKING
from pykvm.values.spelling import option
from pykvm.values.state import State
from pykvm.x86.cpuid import CpuidTable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pykvm.kvm import System
    from pykvm.values.state import U32, U64

__all__ = ["HostRecord", "check_host", "differences", "without_apic_ids"]

# The ioctls that carry a vCPU's state, and what every run is built on.
_ALWAYS = (
    *("KVM_CAP_SYNC_REGS", "KVM_CAP_IMMEDIATE_EXIT", "KVM_CAP_MP_STATE"),
    *("KVM_CAP_VCPU_EVENTS", "KVM_CAP_DEBUGREGS", "KVM_CAP_XCRS", "KVM_CAP_XSAVE"),
    *("KVM_CAP_ADJUST_CLOCK", "KVM_CAP_SET_GUEST_DEBUG"),
)
# By irqchip, what its interrupts and clocks are built on.
_IRQCHIP = {
    "user": ("KVM_CAP_X86_USER_SPACE_MSR", "KVM_CAP_X86_MSR_FILTER"),
    "split": ("KVM_CAP_SPLIT_IRQCHIP",),
    "kernel": ("KVM_CAP_IRQCHIP", "KVM_CAP_PIT_STATE2", "KVM_CAP_IRQ_ROUTING"),
}

# KVM_SET_TSC_KHZ takes a frequency as the host's own if it is this near (arch/x86/kvm/x86.c,
# tsc_tolerance_ppm).
_TSC_TOLERANCE = 250e-6

# Features that pykvm adds to the table itself, or that follow a register (SDM 2A CPUID).
_NOT_THE_HOSTS = frozenset({"hypervisor", "tsc_deadline_timer", "ht", "osxsave", "ospke"})

_XSAVE_LEAF = 0xD
# Subleaf 0 and 1 describe all; those after them a component each (SDM 1 13.2).
_FIRST_COMPONENT = 2

_HEAD = struct.Struct("<II")  # struct kvm_cpuid2 before its entries
_ENTRY = struct.Struct("<7I12x")  # struct kvm_cpuid_entry2

# What stays of EAX to EDX without the ID of the processor's local APIC, and of its core and node
# (SDM 2A, CPUID; APM 3, appendix E.4.17).
_ALL = (1 << 32) - 1
_WITHOUT_APIC_ID = {
    0x1: (_ALL, _ALL >> 8, _ALL, _ALL),
    0xB: (_ALL, _ALL, _ALL, 0),
    0x1F: (_ALL, _ALL, _ALL, 0),
    0x8000_001E: (0, _ALL << 8 & _ALL, _ALL << 8 & _ALL, _ALL),
}
_LISTED = 8


class HostRecord(State):
    """A host, as far as a guest on it can tell.

    `backend` is what serves /dev/kvm ("kvm_intel"), `linux` the kernel's release, `processor` its
    brand.  `shown` is the CPUID table of the guest's vCPU, `offered` what KVM offers, both as
    struct kvm_cpuid2; `unmasked` says that guests see features that are not in theirs.  `xcr0` has
    the XSAVE components that there are, `xsave_size` the bytes that a vCPU's take.  `tsc_khz` is
    the frequency of the guest's TSC.
    """

    backend: str
    linux: str
    processor: str
    shown: bytes
    offered: bytes
    unmasked: bool
    xcr0: U64
    xsave_size: U32
    msrs: tuple[U32, ...]
    capabilities: tuple[tuple[str, U64], ...]
    tsc_khz: U32
    tsc_scalable: bool
    tsc_movable: bool
    page_size: U32

    @classmethod
    def of(
        cls,
        system: System,
        *,
        shown: bytes,
        irqchip: str,
        tsc_khz: int,
        tsc_movable: bool,
        unmasked: bool = False,
    ) -> HostRecord:
        """This host, and what it shows to a guest.

        On the host that is to go on, `shown` is the table of a machine made there, and not the one
        that was saved: some KVMs show guests what they do not offer.  `tsc_movable` says whether
        guests see the TSC offset that KVM is given.
        """
        offered = without_apic_ids(system.supported_cpuid_packed())
        table = CpuidTable.of_packed(offered)
        extension = system.check_extension
        needed = (*_ALWAYS, *_IRQCHIP.get(irqchip, ()))
        return cls(
            backend=_backend("/sys/module"),
            linux=os.uname().release,
            processor=_processor("/proc/cpuinfo"),
            shown=shown,
            offered=offered,
            unmasked=unmasked,
            xcr0=_xcr0(table),
            xsave_size=extension(uapi.KVM_CAP_XSAVE2),
            msrs=tuple(system.msr_index_list()),
            capabilities=tuple((name, extension(getattr(uapi, name))) for name in needed),
            tsc_khz=tsc_khz,
            tsc_scalable=bool(extension(uapi.KVM_CAP_TSC_CONTROL)) and tsc_movable,
            tsc_movable=tsc_movable,
            page_size=os.sysconf("SC_PAGE_SIZE"),
        )


def check_host(saved: HostRecord, here: HostRecord, what: str, *, force: bool) -> tuple[str, ...]:
    """Raise HostError with all that keeps this host from going on with `what`, unless `force`.

    Returns the same sentences.  `saved` is the host that it was saved on.
    """
    found = differences(saved, here)
    if found and not force:
        where = " with ".join(filter(None, (_single(saved.processor), saved.backend)))
        raise HostError(
            f"{what}: this host is not as the one that it was saved on ({where})",
            hint="\n".join([*found, f"{option('force', True)} goes on all the same"]),
        )
    return found


def _single(name: str) -> str:
    """A brand without the blanks that fill it up."""
    return " ".join(name.split())


def differences(saved: HostRecord, here: HostRecord) -> tuple[str, ...]:
    """What a guest that was saved on one host would miss on another: a sentence each."""
    return (
        *_cpuid(saved, here),
        *_xsave(saved, here),
        *_msrs(saved.msrs, here.msrs),
        *_capabilities(saved, here),
        *_tsc(saved, here),
        *_page_size(saved, here),
    )


def _cpuid(saved: HostRecord, here: HostRecord) -> Iterator[str]:
    shown, offered, given = _tables(saved, here)
    if shown.vendor != offered.vendor:
        yield f"the processor is of {offered.vendor}, and the guest was told {shown.vendor}"
    there = offered.features | given.features | _NOT_THE_HOSTS
    lacking = sorted(shown.features - there)
    if lacking:
        yield f"CPUID has shown the guest {', '.join(lacking)}, which this host does not offer"
    if saved.unmasked:
        seen = CpuidTable.of_packed(saved.offered).features - shown.features
        more = sorted(seen - there)
        if more:
            yield (
                f"its programs could see the processor's own {', '.join(more)}, which this host "
                "does not offer"
            )
    if shown.maxphyaddr > offered.maxphyaddr:
        yield (
            f"physical addresses have {offered.maxphyaddr} bits, and the guest was told "
            f"{shown.maxphyaddr}"
        )


def _xsave(saved: HostRecord, here: HostRecord) -> Iterator[str]:
    shown, offered, given = _tables(saved, here)
    lacking = _xcr0(shown) & ~(here.xcr0 | _xcr0(given))
    if lacking:
        yield f"XCR0 has no {lacking:#x}, which the guest may have set"
    if saved.xsave_size > here.xsave_size:
        yield (f"the XSAVE area of a vCPU has {here.xsave_size} bytes, and had {saved.xsave_size}")
    for number in range(_FIRST_COMPONENT, 63):
        before, now = shown.get(_XSAVE_LEAF, number), offered.get(_XSAVE_LEAF, number)
        if before is None or now is None or not _xcr0(shown) >> number & 1:
            continue
        if (before.eax, before.ebx) != (now.eax, now.ebx):
            yield (
                f"XSAVE component {number} is {now.eax} bytes at {now.ebx}, and was "
                f"{before.eax} at {before.ebx}"
            )


def _msrs(saved: Iterable[int], here: Iterable[int]) -> Iterator[str]:
    lacking = sorted(set(saved) - set(here))
    if lacking:
        listed = ", ".join(f"{index:#x}" for index in lacking[:_LISTED])
        more = f" and {len(lacking) - _LISTED} more" if len(lacking) > _LISTED else ""
        yield f"KVM does not list the MSRs {listed}{more}"


def _capabilities(saved: HostRecord, here: HostRecord) -> Iterator[str]:
    offered = dict(here.capabilities)
    for name, value in saved.capabilities:
        lacking = value & ~offered.get(name, 0)
        if lacking == value and value:
            yield f"KVM lacks {name}"
        elif lacking:
            yield f"{name} lacks {lacking:#x}"


def _tsc(saved: HostRecord, here: HostRecord) -> Iterator[str]:
    apart = abs(saved.tsc_khz - here.tsc_khz)
    if apart > saved.tsc_khz * _TSC_TOLERANCE and not here.tsc_scalable:
        yield (
            f"the TSC runs at {here.tsc_khz} kHz, the guest's ran at {saved.tsc_khz} kHz, and "
            "KVM cannot scale it here"
        )


def _page_size(saved: HostRecord, here: HostRecord) -> Iterator[str]:
    if saved.page_size != here.page_size:
        yield f"pages have {here.page_size} bytes, and had {saved.page_size}"


def without_apic_ids(cpuid: bytes | bytearray | memoryview) -> bytes:
    """A struct kvm_cpuid2 that is the same whichever processor was asked for it."""
    table = bytearray(cpuid)
    for at in range(_HEAD.size, len(table) - _ENTRY.size + 1, _ENTRY.size):
        function, index, flags, *registers = _ENTRY.unpack_from(table, at)
        kept = _WITHOUT_APIC_ID.get(function)
        if kept is not None:
            registers = [value & mask for value, mask in zip(registers, kept, strict=True)]
            _ENTRY.pack_into(table, at, function, index, flags, *registers)
    return bytes(table)


def _tables(saved: HostRecord, here: HostRecord) -> tuple[CpuidTable, CpuidTable, CpuidTable]:
    """What the guest was shown, what this host offers, and what it shows a guest."""
    shown, offered, given = map(CpuidTable.of_packed, (saved.shown, here.offered, here.shown))
    return shown, offered, given


def _xcr0(table: CpuidTable) -> int:
    """What XCR0 can have set (SDM 2A CPUID, leaf 0xD)."""
    leaf = table.get(_XSAVE_LEAF)
    return 0 if leaf is None else leaf.eax | leaf.edx << 32


def _processor(path: str) -> str:
    """Its name, as Linux shows it: KVM does not offer it everywhere."""
    with suppress(OSError), open(path, errors="replace") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return ""


def _backend(modules: str) -> str:
    """The module that serves /dev/kvm, beside kvm itself; empty where it is not a module."""
    with suppress(OSError):
        return "+".join(sorted(name for name in os.listdir(modules) if name.startswith("kvm_")))
    return ""
