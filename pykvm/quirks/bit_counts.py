"""LZCNT and TZCNT in ring 0 that run as BSR and BSF.

The encodings differ by a prefix that older processors ignore, and so does an emulator that has
never heard of it: a wrong number, without an exit, so there is no workaround; what
helps is a guest that does not find them in CPUID, and no model of pykvm's has them but the host's
own and x86-64-v3.
"""

from __future__ import annotations

from pykvm.quirks.quirk import Quirk
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.quirks.probe_vm import ProbeVM

__all__ = ["QUIRK"]

LZCNT_EAX_EAX = bytes.fromhex("F30FBDC0")
TZCNT_EAX_EAX = bytes.fromhex("F30FBCC0")
# Of 0x10 these are 27 and 4; BSR and BSF give 4 for both, and TZCNT of 0 is 32.
_CASES = ((LZCNT_EAX_EAX, 0x10), (TZCNT_EAX_EAX, 0))


def _differ_by_ring(vm: ProbeVM) -> bool:
    """A processor that lacks them gives both rings the same."""
    return any(
        vm.run(code, 0, {"rax": value}).state.rax != vm.run(code, 3, {"rax": value}).state.rax
        for code, value in _CASES
    )


QUIRK = Quirk(
    "bit-counts", "LZCNT and TZCNT in ring 0 are executed as BSR and BSF", _differ_by_ring
)
