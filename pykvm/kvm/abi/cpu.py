"""The structs of a vCPU's state: registers, CPUID, MSRs, events, debugging, FPU, nesting."""

from __future__ import annotations

from pykvm.kvm.abi.types import (
    Array,
    Bytes,
    GreedyBytes,
    Struct,
    hole,
    pointer,
    this,
    u8,
    u16,
    u32,
    u64,
    union,
)

kvm_regs = Struct(
    "rax" / u64,
    "rbx" / u64,
    "rcx" / u64,
    "rdx" / u64,
    "rsi" / u64,
    "rdi" / u64,
    "rsp" / u64,
    "rbp" / u64,
    "r8" / u64,
    "r9" / u64,
    "r10" / u64,
    "r11" / u64,
    "r12" / u64,
    "r13" / u64,
    "r14" / u64,
    "r15" / u64,
    "rip" / u64,
    "rflags" / u64,
)

kvm_segment = Struct(
    "base" / u64,
    "limit" / u32,
    "selector" / u16,
    "type" / u8,
    "present" / u8,
    "dpl" / u8,
    "db" / u8,
    "s" / u8,
    "l" / u8,
    "g" / u8,
    "avl" / u8,
    "unusable" / u8,
    "padding" / u8,
)

kvm_dtable = Struct(
    "base" / u64,
    "limit" / u16,
    "padding" / Array(3, u16),
)

kvm_sregs = Struct(
    "cs" / kvm_segment,
    "ds" / kvm_segment,
    "es" / kvm_segment,
    "fs" / kvm_segment,
    "gs" / kvm_segment,
    "ss" / kvm_segment,
    "tr" / kvm_segment,
    "ldt" / kvm_segment,
    "gdt" / kvm_dtable,
    "idt" / kvm_dtable,
    "cr0" / u64,
    "cr2" / u64,
    "cr3" / u64,
    "cr4" / u64,
    "cr8" / u64,
    "efer" / u64,
    "apic_base" / u64,
    "interrupt_bitmap" / Array(4, u64),
)

kvm_sregs2 = Struct(
    "cs" / kvm_segment,
    "ds" / kvm_segment,
    "es" / kvm_segment,
    "fs" / kvm_segment,
    "gs" / kvm_segment,
    "ss" / kvm_segment,
    "tr" / kvm_segment,
    "ldt" / kvm_segment,
    "gdt" / kvm_dtable,
    "idt" / kvm_dtable,
    "cr0" / u64,
    "cr2" / u64,
    "cr3" / u64,
    "cr4" / u64,
    "cr8" / u64,
    "efer" / u64,
    "apic_base" / u64,
    "flags" / u64,
    "pdptrs" / Array(4, u64),
)

kvm_fpu = Struct(
    "fpr" / Array(8, Bytes(16)),
    "fcw" / u16,
    "fsw" / u16,
    "ftwx" / u8,
    "pad1" / u8,
    "last_opcode" / u16,
    "last_ip" / u64,
    "last_dp" / u64,
    "xmm" / Array(16, Bytes(16)),
    "mxcsr" / u32,
    "pad2" / u32,
)

kvm_msr_entry = Struct(
    "index" / u32,
    "reserved" / u32,
    "data" / u64,
)

kvm_msrs = Struct(
    "nmsrs" / u32,
    "pad" / u32,
    "entries" / Array(this.nmsrs, kvm_msr_entry),
)

kvm_msr_list = Struct(
    "nmsrs" / u32,
    "indices" / Array(this.nmsrs, u32),
)

kvm_msr_filter_range = Struct(
    "flags" / u32,
    "nmsrs" / u32,
    "base" / u32,
    hole(4),
    "bitmap" / pointer,
)

kvm_msr_filter = Struct(
    "flags" / u32,
    hole(4),
    "ranges" / Array(16, kvm_msr_filter_range),
)

kvm_cpuid_entry = Struct(
    "function" / u32,
    "eax" / u32,
    "ebx" / u32,
    "ecx" / u32,
    "edx" / u32,
    "padding" / u32,
)

kvm_cpuid = Struct(
    "nent" / u32,
    "padding" / u32,
    "entries" / Array(this.nent, kvm_cpuid_entry),
)

kvm_cpuid_entry2 = Struct(
    "function" / u32,
    "index" / u32,
    "flags" / u32,
    "eax" / u32,
    "ebx" / u32,
    "ecx" / u32,
    "edx" / u32,
    "padding" / Array(3, u32),
)

kvm_cpuid2 = Struct(
    "nent" / u32,
    "padding" / u32,
    "entries" / Array(this.nent, kvm_cpuid_entry2),
)

kvm_lapic_state = Struct("regs" / Bytes(0x400))

kvm_mp_state = Struct("mp_state" / u32)

kvm_interrupt = Struct("irq" / u32)

kvm_translation = Struct(
    "linear_address" / u64,
    "physical_address" / u64,
    "valid" / u8,
    "writeable" / u8,
    "usermode" / u8,
    "pad" / Bytes(5),
)

kvm_signal_mask = Struct(
    "len" / u32,
    "sigset" / Bytes(this.len),
)

kvm_tpr_access_ctl = Struct(
    "enabled" / u32,
    "flags" / u32,
    "reserved" / Array(8, u32),
)

kvm_vapic_addr = Struct("vapic_addr" / u64)

kvm_debug_exit_arch = Struct(
    "exception" / u32,
    "pad" / u32,
    "pc" / u64,
    "dr6" / u64,
    "dr7" / u64,
)

kvm_guest_debug_arch = Struct("debugreg" / Array(8, u64))

kvm_guest_debug = Struct(
    "control" / u32,
    "pad" / u32,
    "arch" / kvm_guest_debug_arch,
)

kvm_vcpu_events = Struct(
    "exception"
    / Struct(
        "injected" / u8,
        "nr" / u8,
        "has_error_code" / u8,
        "pending" / u8,
        "error_code" / u32,
    ),
    "interrupt"
    / Struct(
        "injected" / u8,
        "nr" / u8,
        "soft" / u8,
        "shadow" / u8,
    ),
    "nmi"
    / Struct(
        "injected" / u8,
        "pending" / u8,
        "masked" / u8,
        "pad" / u8,
    ),
    "sipi_vector" / u32,
    "flags" / u32,
    "smi"
    / Struct(
        "smm" / u8,
        "pending" / u8,
        "smm_inside_nmi" / u8,
        "latched_init" / u8,
    ),
    "triple_fault" / Struct("pending" / u8),
    "reserved" / Bytes(26),
    "exception_has_payload" / u8,
    "exception_payload" / u64,
)

kvm_debugregs = Struct(
    "db" / Array(4, u64),
    "dr6" / u64,
    "dr7" / u64,
    "flags" / u64,
    "reserved" / Array(9, u64),
)

# The kernel declares __u32[1024]; everything in it is placed by byte offset (CPUID leaf 0xD).
kvm_xsave = Struct(
    "region" / Bytes(4096),
    "extra" / GreedyBytes,
)

kvm_xcr = Struct(
    "xcr" / u32,
    "reserved" / u32,
    "value" / u64,
)

kvm_xcrs = Struct(
    "nr_xcrs" / u32,
    "flags" / u32,
    "xcrs" / Array(16, kvm_xcr),
    "padding" / Array(16, u64),
)

kvm_sync_regs = Struct(
    "regs" / kvm_regs,
    "sregs" / kvm_sregs,
    "events" / kvm_vcpu_events,
)

kvm_x86_mce = Struct(
    "status" / u64,
    "addr" / u64,
    "misc" / u64,
    "mcg_status" / u64,
    "bank" / u8,
    "pad1" / Bytes(7),
    "pad2" / Array(3, u64),
)

kvm_one_reg = Struct(
    "id" / u64,
    "addr" / u64,
)

kvm_reg_list = Struct(
    "n" / u64,
    "reg" / Array(this.n, u64),
)

kvm_pre_fault_memory = Struct(
    "gpa" / u64,
    "size" / u64,
    "flags" / u64,
    "padding" / Array(5, u64),
)

kvm_vmx_nested_state_data = Struct(
    "vmcs12" / Bytes(0x1000),
    "shadow_vmcs12" / Bytes(0x1000),
)

kvm_vmx_nested_state_hdr = Struct(
    "vmxon_pa" / u64,
    "vmcs12_pa" / u64,
    "smm" / Struct("flags" / u16),
    "pad" / u16,
    "flags" / u32,
    "preemption_timer_deadline" / u64,
)

kvm_svm_nested_state_data = Struct("vmcb12" / Bytes(0x1000))

kvm_svm_nested_state_hdr = Struct("vmcb_pa" / u64)

# `size` counts the header too, which is why `data` cannot name it as its length.
kvm_nested_state = Struct(
    "flags" / u16,
    "format" / u16,
    "size" / u32,
    "hdr"
    / union(
        120,
        "vmx" / kvm_vmx_nested_state_hdr,
        "svm" / kvm_svm_nested_state_hdr,
        "pad" / Bytes(120),
    ),
    "data" / GreedyBytes,
)
