"""What of <linux/kvm.h> is not in pykvm, and why; and what pykvm has that older headers lack."""

from __future__ import annotations

import re

OTHER_ARCHITECTURE = "belongs to another architecture"
XEN = "Xen guests are left out"
SEV = "SEV and TDX are left out"
REMOVED = "the kernel has removed it"
INTERNAL = "no part of the API: how the header is put together"
KERNEL_ONLY = "sized or masked for the kernel's own use"

# A whole name, as a regular expression, to the reason why pykvm leaves it out.
EXCLUDED = {
    r"KVM_.*(S390|PPC|SPAPR|MIPS|RISCV|LOONGARCH).*": OTHER_ARCHITECTURE,
    r"KVM_(.*_)?ARM_.*|KVM_.*_ARM(64)?": OTHER_ARCHITECTURE,
    r"KVM_REG_(IA64|PPC|ARM|ARM64)": OTHER_ARCHITECTURE,
    r"KVM_EXIT_(DCR|OSI|PAPR_HCALL|WATCHDOG|EPR)": OTHER_ARCHITECTURE,
    r"KVM_(GET_)?(DIRTY_TLB|ALLOCATE_RMA)|KVM_MMU_FSL_.*": OTHER_ARCHITECTURE,
    r"KVM_CAP_(SW_TLB|IRQ_MPIC|IRQ_XICS|MSI_DEVID|VM_ATTRIBUTES|PTP_KVM)": OTHER_ARCHITECTURE,
    r"KVM_CAP_(DIRTY_LOG_RING_WITH_BITMAP|COUNTER_OFFSET)": OTHER_ARCHITECTURE,
    r"KVM_MP_STATE_(STOPPED|CHECK_STOP|OPERATING|LOAD|SUSPENDED)": OTHER_ARCHITECTURE,
    r"KVM_DEV_TYPE_(FSL_.*|XICS|FLIC|XIVE)": OTHER_ARCHITECTURE,
    r"KVM_IOEVENTFD_FLAG_VIRTIO_CCW_NOTIFY": OTHER_ARCHITECTURE,
    r"KVM_.*XEN(_.*)?": XEN,
    r"KVM_MEMORY_ENCRYPT_.*|KVM_(CAP_VM_.*_ENC_.*|.*SEV.*|.*TDX.*|X86_SNP_VM)": SEV,
    r"KVM_(SET_MEMORY_REGION|SET_MEMORY_ALIAS|DEBUG_GUEST|TRACE_\w+|TRC_\w+)": REMOVED,
    r"KVM_(ASSIGN|DEASSIGN)_.*|KVM_DEV_(ASSIGN|IRQ)_.*|KVM_MAX_MSIX_PER_DEV": REMOVED,
    r"KVM_X86_DISABLE_VALID_EXITS": KERNEL_ONLY,
    r"__.*|_ASM_X86_KVM_H|KVMIO": INTERNAL,
}

EXCLUDED_STRUCTS = {
    r"kvm_(s390|ppc|arm|riscv|loongarch)_.*|kvm_irq_routing_s390_adapter": OTHER_ARCHITECTURE,
    r"kvm_config_tlb|kvm_dirty_tlb|kvm_vfio_spapr_tce|kvm_pv_cmd": OTHER_ARCHITECTURE,
    r"kvm_xen_.*|kvm_irq_routing_xen_evtchn": XEN,
    r"kvm_sev_.*|kvm_tdx_.*|kvm_enc_region": SEV,
    r"kvm_memory_region|kvm_memory_alias|kvm_assigned_.*": REMOVED,
    r"kvm_user_trace_setup|kvm_breakpoint|kvm_debug_guest": REMOVED,
}

# Members, by the start of their path, that a struct of ours does without.
EXCLUDED_MEMBERS = {
    "kvm_run": {
        "s390_": OTHER_ARCHITECTURE,
        "dcr.": OTHER_ARCHITECTURE,
        "osi.": OTHER_ARCHITECTURE,
        "papr_hcall.": OTHER_ARCHITECTURE,
        "epr.": OTHER_ARCHITECTURE,
        "arm_": OTHER_ARCHITECTURE,
        "riscv_": OTHER_ARCHITECTURE,
        "iocsr_io.": OTHER_ARCHITECTURE,
        "hypercall.pad": "hypercall.flags has taken its place",
        "xen.": XEN,
        "tdx.": SEV,
    },
    "kvm_irq_routing_entry": {"u.adapter.": OTHER_ARCHITECTURE, "u.xen_evtchn.": XEN},
    # Zero-length arrays of unions, kept in C for the ioctl numbers' sake: `data` is bytes here.
    "kvm_nested_state": {"data": KERNEL_ONLY},
}

# What pykvm has and an older header may lack, with the Linux version that brought it.
SINCE = {
    "CP_VECTOR": "6.18",
    "GUEST_MEMFD_FLAG_INIT_SHARED": "6.18",
    "GUEST_MEMFD_FLAG_MMAP": "6.18",
    "HV_VECTOR": "6.18",
    "KVM_CAP_GUEST_MEMFD": "6.8",
    "KVM_CAP_GUEST_MEMFD_FLAGS": "6.18",
    "KVM_CAP_MEMORY_ATTRIBUTES": "6.8",
    "KVM_CAP_MEMORY_FAULT_INFO": "6.8",
    "KVM_CAP_PMU_EVENT_MASKED_EVENTS": "6.3",
    "KVM_CAP_PRE_FAULT_MEMORY": "6.11",
    "KVM_CAP_USER_MEMORY2": "6.8",
    "KVM_CAP_VM_TYPES": "6.8",
    "KVM_CAP_X86_APIC_BUS_CYCLES_NS": "6.11",
    "KVM_CAP_X86_GUEST_MODE": "6.11",
    "KVM_CREATE_GUEST_MEMFD": "6.8",
    "KVM_DEV_VFIO_FILE": "6.6",
    "KVM_DEV_VFIO_FILE_ADD": "6.6",
    "KVM_DEV_VFIO_FILE_DEL": "6.6",
    "KVM_EXIT_HYPERCALL_LONG_MODE": "6.4",
    "KVM_EXIT_MEMORY_FAULT": "6.8",
    "KVM_MEMORY_ATTRIBUTE_PRIVATE": "6.8",
    "KVM_MEMORY_EXIT_FLAG_PRIVATE": "6.8",
    "KVM_MEM_GUEST_MEMFD": "6.8",
    "KVM_MSR_EXIT_REASON_VALID_MASK": "6.2",
    "KVM_MSR_FILTER_RANGE_VALID_MASK": "6.2",
    "KVM_MSR_FILTER_VALID_MASK": "6.2",
    "KVM_PMU_EVENT_FLAGS_VALID_MASK": "6.3",
    "KVM_PMU_EVENT_FLAG_MASKED_EVENTS": "6.3",
    "KVM_PMU_MASKED_ENTRY_EVENT_SELECT": "6.3",
    "KVM_PMU_MASKED_ENTRY_EXCLUDE": "6.3",
    "KVM_PMU_MASKED_ENTRY_UMASK_MASK": "6.3",
    "KVM_PMU_MASKED_ENTRY_UMASK_MASK_SHIFT": "6.3",
    "KVM_PMU_MASKED_ENTRY_UMASK_MATCH": "6.3",
    "KVM_PRE_FAULT_MEMORY": "6.11",
    "KVM_REG_GUEST_SSP": "6.18",
    "KVM_RUN_X86_GUEST_MODE": "6.11",
    "KVM_SET_MEMORY_ATTRIBUTES": "6.8",
    "KVM_SET_USER_MEMORY_REGION2": "6.8",
    "KVM_X86_DEFAULT_VM": "6.8",
    "KVM_X86_DISABLE_EXITS_APERFMPERF": "6.17",
    "KVM_X86_GRP_SYSTEM": "6.10",
    "KVM_X86_QUIRK_IGNORE_GUEST_PAT": "6.16",
    "KVM_X86_QUIRK_SLOT_ZAP_ALL": "6.12",
    "KVM_X86_QUIRK_STUFF_FEATURE_MSRS": "6.13",
    "KVM_X86_REG_TYPE_KVM": "6.18",
    "KVM_X86_REG_TYPE_MSR": "6.18",
    "KVM_X86_SW_PROTECTED_VM": "6.8",
    "SX_VECTOR": "6.18",
    "VC_VECTOR": "6.18",
    "kvm_create_guest_memfd": "6.8",
    "kvm_memory_attributes": "6.8",
    "kvm_pre_fault_memory": "6.11",
    "kvm_run.hypercall.flags": "6.4",
    "kvm_run.memory_fault": "6.8",
    "kvm_userspace_memory_region2": "6.8",
}


def excluded(name: str, patterns: dict[str, str]) -> str | None:
    """Return the reason why `name` is left out, None if there is none."""
    for pattern, reason in patterns.items():
        if re.fullmatch(pattern, name):
            return reason
    return None
