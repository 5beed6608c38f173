"""Which MSRs are a vCPU's state.

KVM_GET_MSR_INDEX_LIST has most (api.rst 4.3), but not those that every vCPU has had from the first:
MTRRs, PAT and the banks of machine checks.  What of it a vCPU has is found by reading it.
"""

from __future__ import annotations

from pykvm.kvm.uapi import KVM_GET_MSRS, kvm_msr_entry, kvm_msrs
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from pykvm.kvm import VCPU

__all__ = ["IA32_TSC", "IA32_TSC_ADJUST", "IA32_TSC_DEADLINE", "LARGEST_BATCH", "msrs_of", "pack"]

#: KVM_GET_MSRS takes fewer than MAX_IO_MSRS of arch/x86/kvm/x86.c.
LARGEST_BATCH = 255

# SDM 4, table 2-2.
IA32_TSC = 0x10
IA32_TSC_ADJUST = 0x3B
IA32_MTRRCAP = 0xFE
IA32_MCG_CAP = 0x179
IA32_MC0_CTL2 = 0x280
IA32_MC0_CTL = 0x400
IA32_TSC_DEADLINE = 0x6E0

# Not in KVM's list, or in that of some versions only.
_OTHERS = (
    *(0x277, 0x2FF),  # IA32_PAT, IA32_MTRR_DEF_TYPE
    *(0x250, 0x258, 0x259, *range(0x268, 0x270)),  # IA32_MTRR_FIX...
    *(0x1D9, 0xDA0, 0xC000_0103),  # IA32_DEBUGCTL, IA32_XSS, IA32_TSC_AUX
    *(0x48, 0x122, 0x140, 0x1C4, 0x1C5),  # IA32_SPEC_CTRL, _TSX_CTRL, MISC_FEATURES, IA32_XFD, _ERR
    *(0x6A0, 0x6A2, 0x6A4, 0x6A5, 0x6A6, 0x6A7, 0x6A8),  # IA32_U_CET, _S_CET, _PLn_SSP, _SSP_TABLE
    *(0x17A, 0x17B, 0x4D0),  # IA32_MCG_STATUS, _CTL, _EXT_CTL
    # Of kvm_pvm and the guests that know it (virt-pvm/linux, arch/x86/include/uapi/asm/pvm_para.h).
    *range(0x4B56_4DF0, 0x4B56_4DF8),
)

_X2APIC = range(0x800, 0x900)  # the local APIC's registers
_HYPERV = range(0x4000_0000, 0x4000_0200)
_HYPERV_SIGNATURE = (0x7263_694D, 0x666F_736F, 0x7648_2074)  # "Microsoft Hv"
_HV_TIME_REF_COUNT = 0x4000_0020  # the time, by another name


def msrs_of(vcpu: VCPU, listed: Iterable[int], cpuid: Iterable[Any]) -> tuple[int, ...]:
    """The MSRs that are state of this vCPU, in the order in which to set them.

    `listed` are those of KVM_GET_MSR_INDEX_LIST, `cpuid` the leaves that the guest is shown.
    """
    hyperv = any(
        (leaf.ebx, leaf.ecx, leaf.edx) == _HYPERV_SIGNATURE
        for leaf in cpuid
        if leaf.function in _HYPERV
    )
    wanted = dict.fromkeys([*listed, *_OTHERS, *_counted(vcpu)])
    return tuple(_readable(vcpu, [index for index in wanted if _is_state(index, hyperv)]))


def pack(msrs: Iterable[tuple[int, int]]) -> bytes:
    """The struct kvm_msrs of these indices and values."""
    entries = [kvm_msr_entry.packer.pack(index, 0, value) for index, value in msrs]
    return kvm_msrs.packer.pack(len(entries), 0) + b"".join(entries)


def _is_state(index: int, hyperv: bool) -> bool:
    if index in _HYPERV:
        # A guest that is shown no Hyper-V has none of it, and KVM makes room for it when asked.
        return hyperv and index != _HV_TIME_REF_COUNT
    return index not in _X2APIC


def _counted(vcpu: VCPU) -> Iterator[int]:
    """Those of which a capability MSR says how many there are."""
    capabilities = vcpu.get_msrs([IA32_MTRRCAP], partial=True).get(IA32_MTRRCAP, 0)
    yield from range(0x200, 0x200 + 2 * (capabilities & 0xFF))
    banks = vcpu.get_msrs([IA32_MCG_CAP], partial=True).get(IA32_MCG_CAP, 0) & 0xFF
    yield from range(IA32_MC0_CTL, IA32_MC0_CTL + 4 * banks)
    yield from range(IA32_MC0_CTL2, IA32_MC0_CTL2 + banks)


def _readable(vcpu: VCPU, indices: Iterable[int]) -> Iterator[int]:
    """Those that KVM reads: it stops at the first that it refuses, and is asked for the others."""
    left, start = list(indices), 0
    packed, head, size = pack((index, 0) for index in left), kvm_msrs.size, kvm_msr_entry.size
    while start < len(left):
        count = min(len(left) - start, LARGEST_BATCH)
        at = head + start * size
        entries = packed[at : at + count * size]
        found = vcpu.ioctl(KVM_GET_MSRS, bytearray(kvm_msrs.packer.pack(count, 0) + entries))
        yield from left[start : start + found]
        start += found + (found < count)
