"""Where the fields of struct kvm_run lie in the page that a vCPU shares with KVM, in bytes."""

from __future__ import annotations

from pykvm.kvm.uapi import kvm_run, kvm_sregs, kvm_sync_regs

__all__ = [
    "APIC_BASE",
    "CR8",
    "DIRTY_REGS",
    "EVENTS",
    "EXIT_REASON",
    "IF_FLAG",
    "INTERRUPT_BITMAP",
    "PAYLOAD",
    "PAYLOAD_SIZE",
    "READY_FOR_INTERRUPT_INJECTION",
    "REGS",
    "REQUEST_INTERRUPT_WINDOW",
    "SREGS",
    "SYNC_END",
    "VALID_REGS",
]

REQUEST_INTERRUPT_WINDOW = kvm_run.offset_of("request_interrupt_window")
EXIT_REASON = kvm_run.offset_of("exit_reason")
READY_FOR_INTERRUPT_INJECTION = kvm_run.offset_of("ready_for_interrupt_injection")
IF_FLAG = kvm_run.offset_of("if_flag")
CR8 = kvm_run.offset_of("cr8")
APIC_BASE = kvm_run.offset_of("apic_base")

#: The union of all exits.
PAYLOAD = kvm_run.offset_of("exit")
VALID_REGS = kvm_run.offset_of("kvm_valid_regs")
PAYLOAD_SIZE = VALID_REGS - PAYLOAD
DIRTY_REGS = kvm_run.offset_of("kvm_dirty_regs")

# struct kvm_sync_regs, and the last field of its kvm_sregs.
REGS = kvm_run.offset_of("s.regs")
SREGS = REGS + kvm_sync_regs.offset_of("sregs")
EVENTS = REGS + kvm_sync_regs.offset_of("events")
INTERRUPT_BITMAP = SREGS + kvm_sregs.offset_of("interrupt_bitmap")
SYNC_END = REGS + kvm_sync_regs.size
