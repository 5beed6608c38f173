"""Machines without an image, in which ring 3 has begun: the tables of the probes' own VM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pykvm import Machine
from pykvm.quirks.probe_vm import KERNEL, STACK_TOP, TSS, USER, beginning, lay_out
from pykvm.quirks.signs import LSTAR, STAR, SYSCALL_MASK
from pykvm.x86.descriptors import CODE64, USER_CODE32
from pykvm.x86.registers import EFER, RFLAGS
from pykvm.x86.tss import tss64

FMASK = RFLAGS.TF | RFLAGS.IF | RFLAGS.DF
# A ring-3 program and a stack for each vCPU, so many bytes apart.
STEP = 0x1000


def ring_3(programs: Sequence[bytes], kernel: bytes, **options: Any) -> Machine:
    """A machine with a vCPU for each program in ring 3, and `kernel` where SYSCALL leads.

    RSI of each vCPU is its number.
    """
    options = {"memory": "8M", "quirks": "on", "irqchip": "none"} | options
    machine = Machine(vcpus=len(programs), **options)
    lay_out(machine.memory)
    machine.memory.write(KERNEL, kernel)
    for number, (cpu, program) in enumerate(zip(machine.vcpus, programs, strict=True)):
        machine.memory.write(USER + number * STEP, program)
        tss = TSS + 0x100 * number
        machine.memory.write(tss, tss64(rsp0=STACK_TOP + number * STEP))
        state = beginning(3)
        state.rip += number * STEP
        state.rsp += number * STEP
        state.rsi, state.tr.base = number, tss
        state.rflags |= RFLAGS.IF
        state.efer |= EFER.SCE
        cpu.state = state
        cpu.kvm.set_msrs(
            {STAR: CODE64 << 32 | USER_CODE32 << 48, LSTAR: KERNEL, SYSCALL_MASK: FMASK}
        )
        cpu.parked = False
    return machine
