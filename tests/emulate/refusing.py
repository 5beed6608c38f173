"""Whether this host's KVM refuses instructions, so that pykvm emulates them."""

from __future__ import annotations

from pykvm import Machine, Mode, Outcome
from support.host import host_probe
from support.listing import assemble

__all__ = ["REFUSES", "TWO"]

REFUSES = "refuses-instructions"

# POPCNT and a vector instruction in ring 0, then the sum of what they gave.
TWO = """
    BF 00 00 01 00               mov edi, 0x10000
    48 B8 FF 00 FF 00 00 00 00 00  mov rax, 0xff00ff
    F3 48 0F B8 D8               popcnt rbx, rax
    66 48 0F 6E C0               movq xmm0, rax
    66 0F D4 C0                  paddq xmm0, xmm0
    66 0F D6 07                  movq [rdi], xmm0
    88 D8                        mov al, bl
    E6 F4                        out 0xf4, al
    F4                           hlt
"""


@host_probe(REFUSES)
def refuses() -> str | None:
    with Machine(assemble(TWO), mode=Mode.LONG, memory="4M", emulate="off") as machine:
        result = machine.run(timeout=10)
    return None if result.outcome is Outcome.CRASHED else "its KVM refuses nothing in ring 0"
