"""Why KVM_RUN returned: the exit reasons of x86, and what each leaves in kvm_run.

Documentation/virt/kvm/api.rst, section 5.  Reasons of other architectures, Xen and TDX are left
out; a reason that is not here comes as the plain number.
"""

from __future__ import annotations

from enum import IntEnum

from pykvm.kvm import uapi
from pykvm.kvm.constants import KVM_INTERNAL_ERROR_EMULATION
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.kvm.codec import Buffer, StructLayout
    from pykvm.kvm.records import Record

__all__ = ["PAYLOADS", "PAYLOAD_OFFSET", "ExitReason", "payload"]


class ExitReason(IntEnum):
    """The values of kvm_run.exit_reason.

    >>> ExitReason(2)
    <ExitReason.KVM_EXIT_IO: 2>
    """

    KVM_EXIT_UNKNOWN = 0
    KVM_EXIT_EXCEPTION = 1
    KVM_EXIT_IO = 2
    KVM_EXIT_HYPERCALL = 3
    KVM_EXIT_DEBUG = 4
    KVM_EXIT_HLT = 5
    KVM_EXIT_MMIO = 6
    KVM_EXIT_IRQ_WINDOW_OPEN = 7
    KVM_EXIT_SHUTDOWN = 8
    KVM_EXIT_FAIL_ENTRY = 9
    KVM_EXIT_INTR = 10
    KVM_EXIT_SET_TPR = 11
    KVM_EXIT_TPR_ACCESS = 12
    KVM_EXIT_NMI = 16
    KVM_EXIT_INTERNAL_ERROR = 17
    KVM_EXIT_SYSTEM_EVENT = 24
    KVM_EXIT_IOAPIC_EOI = 26
    KVM_EXIT_HYPERV = 27
    KVM_EXIT_X86_RDMSR = 29
    KVM_EXIT_X86_WRMSR = 30
    KVM_EXIT_DIRTY_RING_FULL = 31
    KVM_EXIT_AP_RESET_HOLD = 32
    KVM_EXIT_X86_BUS_LOCK = 33
    KVM_EXIT_NOTIFY = 37
    KVM_EXIT_MEMORY_FAULT = 39


PAYLOAD_OFFSET = uapi.kvm_run.offset_of("exit")

# KVM_EXIT_INTERNAL_ERROR with suberror EMULATION is a kvm_run_emulation_failure: see `payload`.
PAYLOADS: dict[ExitReason, StructLayout] = {
    ExitReason.KVM_EXIT_UNKNOWN: uapi.kvm_run_hw,
    ExitReason.KVM_EXIT_EXCEPTION: uapi.kvm_run_ex,
    ExitReason.KVM_EXIT_IO: uapi.kvm_run_io,
    ExitReason.KVM_EXIT_HYPERCALL: uapi.kvm_run_hypercall,
    ExitReason.KVM_EXIT_DEBUG: uapi.kvm_run_debug,
    ExitReason.KVM_EXIT_MMIO: uapi.kvm_run_mmio,
    ExitReason.KVM_EXIT_FAIL_ENTRY: uapi.kvm_run_fail_entry,
    ExitReason.KVM_EXIT_TPR_ACCESS: uapi.kvm_run_tpr_access,
    ExitReason.KVM_EXIT_INTERNAL_ERROR: uapi.kvm_run_internal,
    ExitReason.KVM_EXIT_SYSTEM_EVENT: uapi.kvm_run_system_event,
    ExitReason.KVM_EXIT_IOAPIC_EOI: uapi.kvm_run_eoi,
    ExitReason.KVM_EXIT_HYPERV: uapi.kvm_hyperv_exit,
    ExitReason.KVM_EXIT_X86_RDMSR: uapi.kvm_run_msr,
    ExitReason.KVM_EXIT_X86_WRMSR: uapi.kvm_run_msr,
    ExitReason.KVM_EXIT_NOTIFY: uapi.kvm_run_notify,
    ExitReason.KVM_EXIT_MEMORY_FAULT: uapi.kvm_run_memory_fault,
}


def payload(reason: int, run_page: Buffer) -> Record | None:
    """Return what the exit `reason` left in the union of `run_page`, a vCPU's kvm_run.

    None for a reason that leaves nothing there (KVM_EXIT_HLT), or that is not known.
    """
    layout = PAYLOADS.get(reason)  # type: ignore[call-overload]
    if layout is None:
        return None
    record: Record = layout.unpack(run_page, PAYLOAD_OFFSET)
    if layout is uapi.kvm_run_internal and record.suberror == KVM_INTERNAL_ERROR_EMULATION:
        return uapi.kvm_run_emulation_failure.unpack(run_page, PAYLOAD_OFFSET)
    return record
