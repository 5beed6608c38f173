"""Builds `pykvm._core._native`: cffi in API mode over core.h and core.c.

setup.py calls this; nothing imports it at run time.
"""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent

# core.h is C for the compiler and a declaration for cffi, which knows no preprocessor.
DECLARATIONS = "\n".join(
    line for line in (HERE / "core.h").read_text().splitlines() if not line.startswith("#")
)

# The general registers, which Python reads straight from the kvm_run page.
REGISTERS = """
struct kvm_regs {
    uint64_t rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp;
    uint64_t r8, r9, r10, r11, r12, r13, r14, r15;
    uint64_t rip, rflags;
};
"""

ffibuilder = FFI()
ffibuilder.cdef(DECLARATIONS + REGISTERS)
ffibuilder.set_source(
    "pykvm._core._native",
    '#include <linux/kvm.h>\n#include "core.h"\n',
    sources=["pykvm/_core/core.c"],
    include_dirs=["pykvm/_core"],
    depends=["pykvm/_core/core.h"],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wno-unused-parameter"],
)
