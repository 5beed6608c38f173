"""Whether this host's debug registers stop a guest: QEMU's emulation of SVM has none in a guest."""

from __future__ import annotations

from pykvm import Machine, Mode, Outcome
from support.host import host_probe
from support.listing import assemble

__all__ = ["BREAKPOINTS"]

BREAKPOINTS = "debug-registers-stop-the-guest"

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
