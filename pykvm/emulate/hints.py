"""Encodings that do nothing: prefetches and the reserved NOPs, some of which newer processors use.

Those that a feature has given a meaning to stay NOPs where it is missing or not enabled, so that
code may contain them for any processor (SDM 2B NOP, RDSSP, ENDBR64, CLDEMOTE, BNDMOV).
"""

from __future__ import annotations

from pykvm.emulate.fault import UnsupportedError
from pykvm.emulate.features import HINTS
from pykvm.typed import TYPE_CHECKING
from pykvm.x86.registers import CR4

if TYPE_CHECKING:
    from pykvm.emulate.refused import Operations, Refused

__all__ = ["HINT_OPERATIONS"]


def _nop(at: Refused) -> None:
    at.no_lock()


def _rdssp(at: Refused) -> None:
    """RDSSP, which reads the shadow stack pointer where CR4.CET is set."""
    at.no_lock()
    if at.sregs.cr4 & CR4.CET:
        raise UnsupportedError("shadow stacks are enabled")


# PREFETCH and PREFETCHW; PREFETCHh; BNDMOV and its siblings; CLDEMOTE; ENDBR32, ENDBR64; NOP.
_NAMES = {0x0D: "prefetchw", 0x18: "prefetch"}
HINT_OPERATIONS: Operations = {
    **{
        f"{prefix}0f {opcode:02x}": (_NAMES.get(opcode, "nop"), _nop)
        for prefix in ("", "66 ", "f3 ", "f2 ")
        for opcode in sorted(HINTS)
    },
    "f3 0f 1e /1 r": ("rdssp", _rdssp),
}
