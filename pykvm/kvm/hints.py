"""What to do about the errors that KVM answers most often."""

from __future__ import annotations

import errno

from pykvm.errors import is_exhaustion, resource_error

__all__ = ["hint_for"]

# The capability without which KVM does not know an ioctl.
NEEDS = {
    "KVM_CLEAR_DIRTY_LOG": "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2",
    "KVM_CREATE_DEVICE": "KVM_CAP_DEVICE_CTRL",
    "KVM_CREATE_GUEST_MEMFD": "KVM_CAP_GUEST_MEMFD",
    "KVM_CREATE_IRQCHIP": "KVM_CAP_IRQCHIP",
    "KVM_CREATE_PIT": "KVM_CAP_PIT",
    "KVM_CREATE_PIT2": "KVM_CAP_PIT2",
    "KVM_GET_CLOCK": "KVM_CAP_ADJUST_CLOCK",
    "KVM_GET_DEBUGREGS": "KVM_CAP_DEBUGREGS",
    "KVM_GET_DEVICE_ATTR": "KVM_CAP_DEVICE_CTRL (KVM_CAP_SYS_ATTRIBUTES, KVM_CAP_VCPU_ATTRIBUTES)",
    "KVM_GET_EMULATED_CPUID": "KVM_CAP_EXT_EMUL_CPUID",
    "KVM_GET_MP_STATE": "KVM_CAP_MP_STATE",
    "KVM_GET_MSR_FEATURE_INDEX_LIST": "KVM_CAP_GET_MSR_FEATURES",
    "KVM_GET_NESTED_STATE": "KVM_CAP_NESTED_STATE",
    "KVM_GET_ONE_REG": "KVM_CAP_ONE_REG",
    "KVM_GET_PIT2": "KVM_CAP_PIT_STATE2",
    "KVM_GET_REG_LIST": "KVM_CAP_ONE_REG",
    "KVM_GET_SREGS2": "KVM_CAP_SREGS2",
    "KVM_GET_STATS_FD": "KVM_CAP_BINARY_STATS_FD",
    "KVM_GET_SUPPORTED_CPUID": "KVM_CAP_EXT_CPUID",
    "KVM_GET_SUPPORTED_HV_CPUID": "KVM_CAP_HYPERV_CPUID (KVM_CAP_SYS_HYPERV_CPUID)",
    "KVM_GET_TSC_KHZ": "KVM_CAP_GET_TSC_KHZ",
    "KVM_GET_VCPU_EVENTS": "KVM_CAP_VCPU_EVENTS",
    "KVM_GET_XCRS": "KVM_CAP_XCRS",
    "KVM_GET_XSAVE": "KVM_CAP_XSAVE",
    "KVM_GET_XSAVE2": "KVM_CAP_XSAVE2",
    "KVM_HYPERV_EVENTFD": "KVM_CAP_HYPERV_EVENTFD",
    "KVM_IOEVENTFD": "KVM_CAP_IOEVENTFD",
    "KVM_IRQFD": "KVM_CAP_IRQFD",
    "KVM_IRQ_LINE_STATUS": "KVM_CAP_IRQ_INJECT_STATUS",
    "KVM_KVMCLOCK_CTRL": "KVM_CAP_KVMCLOCK_CTRL",
    "KVM_NMI": "KVM_CAP_USER_NMI",
    "KVM_PRE_FAULT_MEMORY": "KVM_CAP_PRE_FAULT_MEMORY",
    "KVM_REGISTER_COALESCED_MMIO": "KVM_CAP_COALESCED_MMIO (KVM_CAP_COALESCED_PIO)",
    "KVM_REINJECT_CONTROL": "KVM_CAP_REINJECT_CONTROL",
    "KVM_RESET_DIRTY_RINGS": "KVM_CAP_DIRTY_LOG_RING",
    "KVM_SET_BOOT_CPU_ID": "KVM_CAP_SET_BOOT_CPU_ID",
    "KVM_SET_CLOCK": "KVM_CAP_ADJUST_CLOCK",
    "KVM_SET_CPUID2": "KVM_CAP_EXT_CPUID",
    "KVM_SET_DEBUGREGS": "KVM_CAP_DEBUGREGS",
    "KVM_SET_DEVICE_ATTR": "KVM_CAP_DEVICE_CTRL (KVM_CAP_VCPU_ATTRIBUTES)",
    "KVM_SET_GSI_ROUTING": "KVM_CAP_IRQ_ROUTING",
    "KVM_SET_GUEST_DEBUG": "KVM_CAP_SET_GUEST_DEBUG",
    "KVM_SET_IDENTITY_MAP_ADDR": "KVM_CAP_SET_IDENTITY_MAP_ADDR",
    "KVM_SET_MEMORY_ATTRIBUTES": "KVM_CAP_MEMORY_ATTRIBUTES",
    "KVM_SET_MP_STATE": "KVM_CAP_MP_STATE",
    "KVM_SET_NESTED_STATE": "KVM_CAP_NESTED_STATE",
    "KVM_SET_NR_MMU_PAGES": "KVM_CAP_MMU_SHADOW_CACHE_CONTROL",
    "KVM_SET_ONE_REG": "KVM_CAP_ONE_REG",
    "KVM_SET_PIT2": "KVM_CAP_PIT_STATE2",
    "KVM_SET_PMU_EVENT_FILTER": "KVM_CAP_PMU_EVENT_FILTER",
    "KVM_SET_SREGS2": "KVM_CAP_SREGS2",
    "KVM_SET_TSC_KHZ": "KVM_CAP_TSC_CONTROL (KVM_CAP_VM_TSC_CONTROL)",
    "KVM_SET_TSS_ADDR": "KVM_CAP_SET_TSS_ADDR",
    "KVM_SET_USER_MEMORY_REGION2": "KVM_CAP_USER_MEMORY2",
    "KVM_SET_VAPIC_ADDR": "KVM_CAP_VAPIC",
    "KVM_SET_VCPU_EVENTS": "KVM_CAP_VCPU_EVENTS",
    "KVM_SET_XCRS": "KVM_CAP_XCRS",
    "KVM_SET_XSAVE": "KVM_CAP_XSAVE",
    "KVM_SIGNAL_MSI": "KVM_CAP_SIGNAL_MSI",
    "KVM_SMI": "KVM_CAP_X86_SMM",
    "KVM_TPR_ACCESS_REPORTING": "KVM_CAP_VAPIC",
    "KVM_UNREGISTER_COALESCED_MMIO": "KVM_CAP_COALESCED_MMIO (KVM_CAP_COALESCED_PIO)",
    "KVM_X86_GET_MCE_CAP_SUPPORTED": "KVM_CAP_MCE",
    "KVM_X86_SETUP_MCE": "KVM_CAP_MCE",
    "KVM_X86_SET_MCE": "KVM_CAP_MCE",
    "KVM_X86_SET_MSR_FILTER": "KVM_CAP_X86_MSR_FILTER",
}

_REGION = (
    "addresses and sizes are multiples of 4096, slots lie below KVM_CAP_NR_MEMSLOTS, and a slot "
    "that exists can change its flags or move but not its size or its host memory"
)
_SREGS = (
    "control registers contradict each other, have a reserved bit set, or use a feature that the "
    "vCPU's CPUID does not show (SDM 3A 2.5)"
)
_NO_IRQCHIP = "create the in-kernel irqchip first (create_irqchip)"
_IRQCHIP_ORDER = "the in-kernel irqchip comes before the first vCPU, and only once"

HINTS = {
    ("KVM_CREATE_VM", errno.EBUSY): "another hypervisor (VirtualBox, VMware) holds VT-x or SVM",
    ("KVM_CREATE_VM", errno.EINVAL): "this host offers no VM of that type (KVM_CAP_VM_TYPES)",
    ("KVM_CREATE_VCPU", errno.EEXIST): "this VM already has a vCPU of that id",
    ("KVM_CREATE_VCPU", errno.EINVAL): (
        "ids lie below KVM_CAP_MAX_VCPU_ID, and a VM has at most KVM_CAP_MAX_VCPUS vCPUs"
    ),
    ("KVM_SET_USER_MEMORY_REGION", errno.EEXIST): "the range overlaps another memory slot",
    ("KVM_SET_USER_MEMORY_REGION", errno.EINVAL): _REGION,
    ("KVM_SET_USER_MEMORY_REGION2", errno.EEXIST): "the range overlaps another memory slot",
    ("KVM_SET_USER_MEMORY_REGION2", errno.EINVAL): _REGION,
    ("KVM_SET_SREGS", errno.EINVAL): _SREGS,
    ("KVM_SET_SREGS2", errno.EINVAL): _SREGS,
    ("KVM_SET_CPUID2", errno.E2BIG): "too many CPUID entries",
    ("KVM_SET_CPUID2", errno.EINVAL): "CPUID cannot change once the vCPU has run",
    ("KVM_CREATE_IRQCHIP", errno.EEXIST): _IRQCHIP_ORDER,
    ("KVM_CREATE_IRQCHIP", errno.EINVAL): _IRQCHIP_ORDER,
    ("KVM_CREATE_PIT2", errno.EEXIST): "this VM already has a PIT",
    ("KVM_CREATE_PIT2", errno.ENOENT): _NO_IRQCHIP,
    ("KVM_IRQ_LINE", errno.ENXIO): _NO_IRQCHIP,
    ("KVM_IRQ_LINE_STATUS", errno.ENXIO): _NO_IRQCHIP,
    ("KVM_GET_IRQCHIP", errno.ENXIO): _NO_IRQCHIP,
    ("KVM_SET_IRQCHIP", errno.ENXIO): _NO_IRQCHIP,
    ("KVM_IRQFD", errno.EINVAL): _NO_IRQCHIP,
    ("KVM_SIGNAL_MSI", errno.ENXIO): _NO_IRQCHIP,
    ("KVM_GET_LAPIC", errno.EINVAL): _NO_IRQCHIP,
    ("KVM_SET_LAPIC", errno.EINVAL): _NO_IRQCHIP,
    ("KVM_INTERRUPT", errno.ENXIO): "with an in-kernel irqchip, use irq_line or signal_msi",
    ("KVM_GET_DIRTY_LOG", errno.ENOENT): "the slot does not exist or does not log dirty pages",
    ("KVM_IOEVENTFD", errno.EEXIST): "an eventfd already takes these writes",
}


def hint_for(ioctl: str, number: int) -> str:
    """Return what to do about errno `number` of `ioctl`, "" where there is no advice."""
    known = HINTS.get((ioctl, number))
    if known is not None:
        return known
    if is_exhaustion(number):
        return resource_error(ioctl, number).hint
    if number == errno.EIO:
        return "a VM works only in the process that created it, not after a fork"
    if number in (errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP) and ioctl in NEEDS:
        return f"needs {NEEDS[ioctl]}: ask check_extension"
    if number == errno.ENOTTY:
        return "this host's KVM does not have it"
    return ""
