"""What ring 3 meets on this host's processor: QEMU's own differs from the manuals in this.

`pykvm.quirks` is for what KVM gets wrong, and has remedies; these are the processor's own.
"""

from __future__ import annotations

from contextlib import closing

from pykvm.quirks.probe_vm import IDT, ProbeVM
from support.host import host_probe

__all__ = ["INT_N_ERROR"]

INT_N_ERROR = "int-n-tells-its-vector"

VECTOR, GENERAL_PROTECTION = 0x82, 13
INT_N = bytes((0xCD, VECTOR))
ACCESS, RING_0_GATE = 5, 0x8E  # of a gate's 16 bytes


@host_probe(INT_N_ERROR)
def int_n_tells_its_vector() -> str | None:
    """Whether INT n through a gate of ring 0's has the vector in its error code (SDM 3A 6.13)."""
    with closing(ProbeVM()) as vm:
        vm.memory.write(IDT + VECTOR * 16 + ACCESS, bytes((RING_0_GATE,)))
        stop = vm.run(INT_N, 3)
        # Where INT n is no #GP at all, the quirk `int-n` says so.
        if stop.vector != GENERAL_PROTECTION:
            return None
        code = vm.memory.u64(stop.state.rsp)
    return None if code == VECTOR * 8 + 2 else f"INT {VECTOR:#x} is #GP with {code:#x}"
