"""What ring 3 meets on this host's processor: QEMU's own differs from the manuals in this.

`pykvm.quirks` is for what KVM gets wrong, and has workarounds; these are the processor's own.
"""

from __future__ import annotations

from contextlib import closing

from pykvm.exits import IoOut
from pykvm.quirks.probe_vm import IDT, STACK_TOP, TSS, ProbeVM, beginning
from pykvm.x86.tss import tss64
from support.host import host_probe

__all__ = ["BUSY_TSS", "INT_N_ERROR"]

INT_N_ERROR = "int-n-gives-its-vector"
BUSY_TSS = "knows-a-busy-tss"

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
        code = vm.memory.read_u64(stop.state.rsp)
    return None if code == VECTOR * 8 + 2 else f"INT {VECTOR:#x} is #GP with {code:#x}"


PORT = 0x80
OUT = bytes((0xE6, PORT))


@host_probe(BUSY_TSS)
def knows_a_busy_tss() -> str | None:
    """Whether ring 3 may use the ports that the TSS in TR permits, though it is busy as ever.

    QEMU's own processor takes none but an available TSS for one.  Where 32-bit code leaves ring 3
    through a busy one that ends QEMU, so what is asked is how it looks up a port (SDM 1 19.5.2).
    """
    with closing(ProbeVM()) as vm:
        image = tss64(rsp0=STACK_TOP, ports=[PORT])
        vm.memory.write(TSS, image)
        state = beginning(3)
        state.tr.limit = len(image) - 1
        stop = vm.run_from(state, OUT)
        if isinstance(stop.exit, IoOut):
            return None
    return f"a port that the TSS permits ring 3 raises {stop.vector or stop.exit}"
