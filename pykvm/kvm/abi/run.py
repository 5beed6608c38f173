"""The page that a vCPU shares with its VMM: kvm_run, and what each exit leaves in it.

The kernel gives the members of kvm_run's union no struct names of their own; here each is
`kvm_run_<member>`.  Members of other architectures, Xen and TDX are left out.
"""

from __future__ import annotations

from pykvm.kvm.abi.cpu import kvm_debug_exit_arch, kvm_sync_regs
from pykvm.kvm.abi.types import Array, Bytes, Struct, alias, hole, u8, u16, u32, u64, union

kvm_hyperv_exit = Struct(
    "type" / u32,
    "pad1" / u32,
    "u"
    / union(
        48,
        "synic"
        / Struct(
            "msr" / u32,
            "pad2" / u32,
            "control" / u64,
            "evt_page" / u64,
            "msg_page" / u64,
        ),
        "hcall"
        / Struct(
            "input" / u64,
            "result" / u64,
            "params" / Array(2, u64),
        ),
        "syndbg"
        / Struct(
            "msr" / u32,
            "pad2" / u32,
            "control" / u64,
            "status" / u64,
            "send_page" / u64,
            "recv_page" / u64,
            "pending_page" / u64,
        ),
    ),
)

kvm_run_hw = Struct("hardware_exit_reason" / u64)

kvm_run_fail_entry = Struct(
    "hardware_entry_failure_reason" / u64,
    "cpu" / u32,
    hole(4),
)

kvm_run_ex = Struct(
    "exception" / u32,
    "error_code" / u32,
)

kvm_run_io = Struct(
    "direction" / u8,
    "size" / u8,
    "port" / u16,
    "count" / u32,
    "data_offset" / u64,
)

kvm_run_debug = Struct("arch" / kvm_debug_exit_arch)

kvm_run_mmio = Struct(
    "phys_addr" / u64,
    "data" / Bytes(8),
    "len" / u32,
    "is_write" / u8,
    hole(3),
)

kvm_run_hypercall = Struct(
    "nr" / u64,
    "args" / Array(6, u64),
    "ret" / u64,
    alias("longmode", u32),
    "flags" / u64,
)

kvm_run_tpr_access = Struct(
    "rip" / u64,
    "is_write" / u32,
    "pad" / u32,
)

kvm_run_internal = Struct(
    "suberror" / u32,
    "ndata" / u32,
    "data" / Array(16, u64),
)

kvm_run_emulation_failure = Struct(
    "suberror" / u32,
    "ndata" / u32,
    "flags" / u64,
    "insn_size" / u8,
    "insn_bytes" / Bytes(15),
)

kvm_run_system_event = Struct(
    "type" / u32,
    "ndata" / u32,
    alias("flags", u64),
    "data" / Array(16, u64),
)

kvm_run_eoi = Struct("vector" / u8)

kvm_run_msr = Struct(
    "error" / u8,
    "pad" / Bytes(7),
    "reason" / u32,
    "index" / u32,
    "data" / u64,
)

kvm_run_notify = Struct("flags" / u32)

kvm_run_memory_fault = Struct(
    "flags" / u64,
    "gpa" / u64,
    "size" / u64,
)

# The union has no name in the kernel: kvm_run.io is `exit.io` here.
kvm_run = Struct(
    "request_interrupt_window" / u8,
    "immediate_exit" / u8,
    "padding1" / Bytes(6),
    "exit_reason" / u32,
    "ready_for_interrupt_injection" / u8,
    "if_flag" / u8,
    "flags" / u16,
    "cr8" / u64,
    "apic_base" / u64,
    "exit"
    / union(
        256,
        "hw" / kvm_run_hw,
        "fail_entry" / kvm_run_fail_entry,
        "ex" / kvm_run_ex,
        "io" / kvm_run_io,
        "debug" / kvm_run_debug,
        "mmio" / kvm_run_mmio,
        "hypercall" / kvm_run_hypercall,
        "tpr_access" / kvm_run_tpr_access,
        "internal" / kvm_run_internal,
        "emulation_failure" / kvm_run_emulation_failure,
        "system_event" / kvm_run_system_event,
        "eoi" / kvm_run_eoi,
        "hyperv" / kvm_hyperv_exit,
        "msr" / kvm_run_msr,
        "notify" / kvm_run_notify,
        "memory_fault" / kvm_run_memory_fault,
        "padding" / Bytes(256),
    ),
    "kvm_valid_regs" / u64,
    "kvm_dirty_regs" / u64,
    "s"
    / union(
        2048,
        "regs" / kvm_sync_regs,
        "padding" / Bytes(2048),
    ),
)
