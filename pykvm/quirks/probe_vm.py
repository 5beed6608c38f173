"""A VM so small that a probe may have one: 64-bit mode, a page for each ring, and every exception.

What runs in it ends with HLT in ring 0, by itself or because a gate of the IDT led there: each
vector has a HLT of its own, and `Stop.vector` says which it was.
"""

from __future__ import annotations

from contextlib import ExitStack

from pykvm.exits import Hlt
from pykvm.host import Host
from pykvm.memory import GuestMemory
from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple
from pykvm.vcpu import CPU
from pykvm.x86.descriptors import CODE64, USER_CODE64, USER_DATA, flat_gdt, interrupt_gate
from pykvm.x86.entry import long_mode
from pykvm.x86.state import SegmentRegister
from pykvm.x86.tss import tss64

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pykvm.exits import Exit
    from pykvm.x86.state import CpuState

__all__ = [
    "HANDLERS",
    "HLT",
    "KERNEL",
    "OTHER",
    "SCRATCH",
    "USER",
    "ProbeVM",
    "Stop",
    "beginning",
    "lay_out",
    "map_page",
]

LARGE_PAGE = 2 << 20
MEMORY = 4 * LARGE_PAGE

# In the first large page, which is ring 0's.
PML4, PDPT, PD, GDT, TSS, IDT = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000
#: A HLT for each vector.
HANDLERS = 0x8000
#: Code for ring 0.
KERNEL = 0x9000
STACK_TOP = 0x10000

#: Large pages: ring 3's code and stack, another one of ring 3's, and one that is not mapped.
USER, SCRATCH, OTHER = LARGE_PAGE, 2 * LARGE_PAGE, 3 * LARGE_PAGE
USER_STACK = USER + 0x10000

PRESENT, WRITABLE, USER_BIT, LARGE = 1, 2, 4, 0x80
TABLE = PRESENT | WRITABLE | USER_BIT
HLT = b"\xf4"
_OFFSETS = [(HANDLERS + vector).to_bytes(2, "little") for vector in range(256)]

# No probe runs more than a few instructions.
PATIENCE = 2.0


class Stop(NamedTuple):
    """Where a probe's code came to its end: the exit, and the state of the vCPU.

    `vector` is the one that led to ring 0, or None.
    """

    exit: Exit
    state: CpuState

    @property
    def vector(self) -> int | None:
        """The vector whose handler halted."""
        vector = self.state.rip - len(HLT) - HANDLERS
        return vector if isinstance(self.exit, Hlt) and 0 <= vector < 256 else None


def lay_out(memory: GuestMemory) -> None:
    """Write the tables that `beginning` names, and the handlers."""
    memory.write_u64(PML4, PDPT | TABLE)
    memory.write_u64(PDPT, PD | TABLE)
    memory.write_u64(PD, PRESENT | WRITABLE | LARGE)
    for page in (USER, SCRATCH):
        map_page(memory, page, page)
    memory.write(GDT, flat_gdt(TSS).image)
    memory.write(TSS, tss64(rsp0=STACK_TOP))
    # They differ in the low 16 bits of their offset, with which they begin (SDM 3A 6.14.1).
    rest = interrupt_gate(CODE64, HANDLERS, dpl=3).encode()[2:]
    memory.write(IDT, rest.join(_OFFSETS) + rest)
    memory.write(HANDLERS, HLT * 256)


def map_page(memory: GuestMemory, page: int, physical: int) -> None:
    """Let the large page at `page` lead to `physical`, for both rings."""
    entry = physical | PRESENT | WRITABLE | USER_BIT | LARGE
    memory.write_u64(PD + page // LARGE_PAGE * 8, entry)


def beginning(ring: int) -> CpuState:
    """The state at the first instruction of a ring's code."""
    state = long_mode(rip=KERNEL, rsp=STACK_TOP, cr3=PML4, gdt_base=GDT, tss_base=TSS)
    state.idt.base, state.idt.limit = IDT, 256 * 16 - 1
    if ring == 3:
        state.rip, state.rsp = USER, USER_STACK
        state.cs = _flat(USER_CODE64, 0xB, l=1)
        state.ss = _flat(USER_DATA, 0x3, db=1)
    return state


class ProbeVM:
    """One VM for any number of probes.  Raises HostError and KVMError as a machine does."""

    def __init__(self) -> None:
        with ExitStack() as stack:
            host = Host()
            stack.callback(host.close)
            vm = host.create_vm()
            stack.callback(vm.close)
            self.memory = GuestMemory()
            stack.callback(self.memory.close)
            self.memory.add_ram(0, MEMORY)
            self.memory.attach(vm)
            vcpu = vm.create_vcpu(0)
            #: The struct kvm_cpuid2 that the guest was given.
            self.cpuid = host.cpuid("baseline", 0, 1, irqchip="none")
            vcpu.set_cpuid2(self.cpuid)
            self.cpu = CPU(vcpu, self.memory)
            stack.callback(self.cpu.close)
            lay_out(self.memory)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Give everything back."""
        self._stack.close()

    def run(
        self,
        code: bytes,
        ring: int,
        registers: Mapping[str, int] | None = None,
        *,
        patience: float = PATIENCE,
    ) -> Stop:
        """Run `code`, which is given a HLT as its end, in a ring.

        Raises TimeoutError if it comes to none.
        """
        state = beginning(ring)
        for name, value in (registers or {}).items():
            setattr(state, name, value)
        return self.run_from(state, code, patience=patience)

    def run_from(self, state: CpuState, code: bytes, *, patience: float = PATIENCE) -> Stop:
        """The same from a state of any mode, whose RIP is where `code` goes."""
        self.memory.write(state.linear_rip, code + HLT)
        self.cpu.state = state
        exits = self.cpu.raw_exits(timeout=patience)
        try:
            exit = next(exits)
        finally:
            exits.close()
        return Stop(exit, self.cpu.state)


def _flat(selector: int, kind: int, *, l: int = 0, db: int = 0) -> SegmentRegister:  # noqa: E741
    return SegmentRegister(
        limit=0xFFFF_FFFF, selector=selector, type=kind, present=1, dpl=3, s=1, g=1, l=l, db=db
    )
