"""Builds `pykvm._core._native`: cffi in API mode over core.h and the C files beside it.

setup.py calls this; nothing imports it at run time.
"""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent

# Headers are C for the compiler and declarations for cffi, which knows no preprocessor.
DECLARATIONS = "\n".join(
    line
    for header in ("line.h", "published.h", "vcpu_state.h", "dirty.h", "core.h")
    for line in (HERE / header).read_text().splitlines()
    if not line.startswith("#")
)

# The registers and events that Python reads straight from the kvm_run page (KVM_CAP_SYNC_REGS).
REGISTERS = """
struct kvm_regs {
    uint64_t rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp;
    uint64_t r8, r9, r10, r11, r12, r13, r14, r15;
    uint64_t rip, rflags;
};
struct kvm_segment {
    uint64_t base;
    uint32_t limit;
    uint16_t selector;
    uint8_t type, present, dpl, db, s, l, g, avl, unusable;
    ...;
};
struct kvm_dtable {
    uint64_t base;
    uint16_t limit;
    ...;
};
struct kvm_sregs {
    struct kvm_segment cs, ds, es, fs, gs, ss, tr, ldt;
    struct kvm_dtable gdt, idt;
    uint64_t cr0, cr2, cr3, cr4, cr8, efer, apic_base;
    ...;
};
struct kvm_vcpu_events {
    struct { uint8_t injected, nr, has_error_code, pending; uint32_t error_code; } exception;
    struct { uint8_t injected, nr, soft, shadow; } interrupt;
    struct { uint8_t injected, pending, masked, pad; } nmi;
    ...;
};
struct kvm_sync_regs {
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_vcpu_events events;
};
"""

ffibuilder = FFI()
ffibuilder.cdef(DECLARATIONS + REGISTERS)
ffibuilder.set_source(
    "pykvm._core._native",
    '#include <linux/kvm.h>\n#include "core.h"\n#include "vcpu_state.h"\n',
    sources=[
        f"pykvm/_core/{name}.c"
        for name in (
            *("by_hand", "claim", "content", "core", "descriptor", "dirty", "drive", "exit"),
            *("freeze", "functions", "hold", "line", "map", "native", "published", "syscall"),
            *("thread", "vcpu_state"),
        )
    ],
    include_dirs=["pykvm/_core"],
    depends=[
        f"pykvm/_core/{name}.h"
        for name in (
            *("claim", "content", "core", "dirty", "functions", "line", "pages", "published"),
            *("shared", "vcpu", "vcpu_state"),
        )
    ],
    extra_compile_args=[
        *("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wno-unused-parameter"),
        # Calls without a stub in between: after KVM_RUN each jump is one that is not predicted.
        *("-fvisibility=hidden", "-fno-plt"),
    ],
)
