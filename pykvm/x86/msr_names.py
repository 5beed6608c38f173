"""The names of model-specific registers, as the manuals and Linux give them.

Source: SDM 4, tables 2-2 and 2-3; APM 2, appendix A; Documentation/virt/kvm/x86/msr.rst for KVM's,
and Documentation/virt/kvm/x86/pvm-spec.rst of virt-pvm/linux for those of kvm_pvm.
"""

from __future__ import annotations

from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["msr_name"]

_NAMES = {
    0x10: "IA32_TSC",
    0x17: "IA32_PLATFORM_ID",
    0x1B: "IA32_APIC_BASE",
    0x34: "MSR_SMI_COUNT",
    0x3A: "IA32_FEATURE_CONTROL",
    0x3B: "IA32_TSC_ADJUST",
    0x48: "IA32_SPEC_CTRL",
    0x49: "IA32_PRED_CMD",
    0x8B: "IA32_BIOS_SIGN_ID",
    0xCE: "MSR_PLATFORM_INFO",
    0xE1: "IA32_UMWAIT_CONTROL",
    0xFE: "IA32_MTRRCAP",
    0x10A: "IA32_ARCH_CAPABILITIES",
    0x10B: "IA32_FLUSH_CMD",
    0x122: "IA32_TSX_CTRL",
    0x140: "MSR_MISC_FEATURES_ENABLES",
    0x174: "IA32_SYSENTER_CS",
    0x175: "IA32_SYSENTER_ESP",
    0x176: "IA32_SYSENTER_EIP",
    0x179: "IA32_MCG_CAP",
    0x17A: "IA32_MCG_STATUS",
    0x17B: "IA32_MCG_CTL",
    0x1A0: "IA32_MISC_ENABLE",
    0x1C4: "IA32_XFD",
    0x1C5: "IA32_XFD_ERR",
    0x1D9: "IA32_DEBUGCTL",
    0x1DB: "MSR_LASTBRANCH_FROM_IP",
    0x1DC: "MSR_LASTBRANCH_TO_IP",
    0x1DD: "MSR_LER_FROM_LIP",
    0x1DE: "MSR_LER_TO_LIP",
    0x250: "IA32_MTRR_FIX64K_00000",
    0x258: "IA32_MTRR_FIX16K_80000",
    0x259: "IA32_MTRR_FIX16K_A0000",
    0x277: "IA32_PAT",
    0x2FF: "IA32_MTRR_DEF_TYPE",
    0x309: "IA32_FIXED_CTR0",
    0x30A: "IA32_FIXED_CTR1",
    0x30B: "IA32_FIXED_CTR2",
    0x345: "IA32_PERF_CAPABILITIES",
    0x38D: "IA32_FIXED_CTR_CTRL",
    0x38E: "IA32_PERF_GLOBAL_STATUS",
    0x38F: "IA32_PERF_GLOBAL_CTRL",
    0x390: "IA32_PERF_GLOBAL_OVF_CTRL",
    0x3F1: "IA32_PEBS_ENABLE",
    0x480: "IA32_VMX_BASIC",
    0x481: "IA32_VMX_PINBASED_CTLS",
    0x482: "IA32_VMX_PROCBASED_CTLS",
    0x483: "IA32_VMX_EXIT_CTLS",
    0x484: "IA32_VMX_ENTRY_CTLS",
    0x485: "IA32_VMX_MISC",
    0x486: "IA32_VMX_CR0_FIXED0",
    0x487: "IA32_VMX_CR0_FIXED1",
    0x488: "IA32_VMX_CR4_FIXED0",
    0x489: "IA32_VMX_CR4_FIXED1",
    0x48A: "IA32_VMX_VMCS_ENUM",
    0x48B: "IA32_VMX_PROCBASED_CTLS2",
    0x48C: "IA32_VMX_EPT_VPID_CAP",
    0x48D: "IA32_VMX_TRUE_PINBASED_CTLS",
    0x48E: "IA32_VMX_TRUE_PROCBASED_CTLS",
    0x48F: "IA32_VMX_TRUE_EXIT_CTLS",
    0x490: "IA32_VMX_TRUE_ENTRY_CTLS",
    0x491: "IA32_VMX_VMFUNC",
    0x4D0: "IA32_MCG_EXT_CTL",
    0x600: "IA32_DS_AREA",
    0x6A0: "IA32_U_CET",
    0x6A2: "IA32_S_CET",
    0x6A4: "IA32_PL0_SSP",
    0x6A5: "IA32_PL1_SSP",
    0x6A6: "IA32_PL2_SSP",
    0x6A7: "IA32_PL3_SSP",
    0x6A8: "IA32_INTERRUPT_SSP_TABLE_ADDR",
    0x6E0: "IA32_TSC_DEADLINE",
    0xDA0: "IA32_XSS",
    0xC000_0080: "IA32_EFER",
    0xC000_0081: "IA32_STAR",
    0xC000_0082: "IA32_LSTAR",
    0xC000_0083: "IA32_CSTAR",
    0xC000_0084: "IA32_FMASK",
    0xC000_0100: "IA32_FS_BASE",
    0xC000_0101: "IA32_GS_BASE",
    0xC000_0102: "IA32_KERNEL_GS_BASE",
    0xC000_0103: "IA32_TSC_AUX",
    0xC000_0104: "TSC_RATIO",
    0xC001_0015: "HWCR",
    0xC001_001F: "NB_CFG",
    0xC001_0055: "INTERRUPT_PENDING",
    0xC001_0064: "P_STATE_0",
    0xC001_0114: "VM_CR",
    0xC001_0117: "VM_HSAVE_PA",
    0xC001_011F: "VIRT_SPEC_CTRL",
    0xC001_1022: "DC_CFG",
    0xC001_102A: "BU_CFG2",
    # KVM's own.
    0x11: "MSR_KVM_WALL_CLOCK",
    0x12: "MSR_KVM_SYSTEM_TIME",
    0x4B56_4D00: "MSR_KVM_WALL_CLOCK_NEW",
    0x4B56_4D01: "MSR_KVM_SYSTEM_TIME_NEW",
    0x4B56_4D02: "MSR_KVM_ASYNC_PF_EN",
    0x4B56_4D03: "MSR_KVM_STEAL_TIME",
    0x4B56_4D04: "MSR_KVM_EOI_EN",
    0x4B56_4D05: "MSR_KVM_POLL_CONTROL",
    0x4B56_4D06: "MSR_KVM_ASYNC_PF_INT",
    0x4B56_4D07: "MSR_KVM_ASYNC_PF_ACK",
    0x4B56_4D08: "MSR_KVM_MIGRATION_CONTROL",
    0x4B56_4DF0: "MSR_PVM_LINEAR_ADDRESS_RANGE",
    0x4B56_4DF1: "MSR_PVM_VCPU_STRUCT",
    0x4B56_4DF2: "MSR_PVM_SUPERVISOR_RSP",
    0x4B56_4DF3: "MSR_PVM_SUPERVISOR_REDZONE",
    0x4B56_4DF4: "MSR_PVM_EVENT_ENTRY",
    0x4B56_4DF5: "MSR_PVM_RETU_RIP",
    0x4B56_4DF6: "MSR_PVM_RETS_RIP",
    0x4B56_4DF7: "MSR_PVM_SWITCH_CR3",
}

# Registers of a kind: the first one's number, how far the next is, how many there are at most, and
# the name, with their number.
_SERIES = (
    (0xC1, 1, 8, "IA32_PMC{}"),
    (0x186, 1, 8, "IA32_PERFEVTSEL{}"),
    (0x4C1, 1, 8, "IA32_A_PMC{}"),
    (0x200, 2, 32, "IA32_MTRR_PHYSBASE{}"),
    (0x201, 2, 32, "IA32_MTRR_PHYSMASK{}"),
    (0x280, 1, 32, "IA32_MC{}_CTL2"),
    (0x400, 4, 32, "IA32_MC{}_CTL"),
    (0x401, 4, 32, "IA32_MC{}_STATUS"),
    (0x402, 4, 32, "IA32_MC{}_ADDR"),
    (0x403, 4, 32, "IA32_MC{}_MISC"),
    (0xC001_0000, 1, 4, "PERF_EVT_SEL{}"),
    (0xC001_0004, 1, 4, "PERF_CTR{}"),
    (0xC001_0200, 2, 6, "PERF_CTL{}"),
    (0xC001_0201, 2, 6, "PERF_CTR{}"),
)
_FIX4K = range(0x268, 0x270)


def msr_name(index: int) -> str:
    """The name of an MSR; empty if it is not known here.

    >>> msr_name(0x6E0), msr_name(0x203), msr_name(0x26A), msr_name(0xDEAD)
    ('IA32_TSC_DEADLINE', 'IA32_MTRR_PHYSMASK1', 'IA32_MTRR_FIX4K_D0000', '')
    """
    if index in _NAMES:
        return _NAMES[index]
    if index in _FIX4K:
        return f"IA32_MTRR_FIX4K_{0xC0000 + 0x8000 * (index - _FIX4K.start):X}"
    return next(_of_series(index), "")


def _of_series(index: int) -> Iterator[str]:
    for first, step, count, name in _SERIES:
        number, rest = divmod(index - first, step)
        if 0 <= number < count and not rest:
            yield name.format(number)
