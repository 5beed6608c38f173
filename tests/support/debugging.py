"""What this host's guests can be stopped by.

QEMU's emulation of SVM has no debug registers in a guest; Bochs' of VMX stops a single step before
the first instruction.
"""

from __future__ import annotations

from pykvm import Machine, Mode, Outcome
from support.host import host_probe
from support.listing import assemble

__all__ = ["BREAKPOINTS", "STEPS"]

BREAKPOINTS = "debug-registers-stop-the-guest"
STEPS = "a-single-step-is-an-instruction"

CODE = """
    90           nop
    90           nop
    B0 00        mov al, 0
    E6 F4        out 0xf4, al
"""


@host_probe(BREAKPOINTS)
def debug_registers_stop_the_guest() -> str | None:
    with Machine(assemble(CODE), mode=Mode.REAL, memory="1M") as machine:
        machine.vcpus[0].debug.set_breakpoints("probe", [0x7C01])
        result = machine.run(timeout=10)
    return None if result.outcome is Outcome.DEBUG else "runs past a breakpoint in DR0"


@host_probe(STEPS)
def a_single_step_is_an_instruction() -> str | None:
    with Machine(assemble(CODE), mode=Mode.REAL, memory="1M") as machine:
        cpu = machine.vcpus[0]
        cpu.debug.single_step(True)
        result = machine.run(timeout=10)
        stuck = result.outcome is Outcome.DEBUG and cpu.regs.rip == 0x7C00
    return "stops a single step before its instruction" if stuck else None
