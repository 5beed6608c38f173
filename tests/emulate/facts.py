"""What the manuals say of instructions that not every processor executes so: a host probe each.

Each executes one in ring 3 of 64-bit code, which is the processor's on every host, and compares
with the manual, not with pykvm.  QEMU's own processor fails all of them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from contextlib import closing
from types import MappingProxyType
from typing import NamedTuple

from emulate.cases import Case
from emulate.rig import DATA, MISSING, Outcome, Rig, make_rig
from pykvm.kvm import Cap, System
from pykvm.quirks.probe_vm import KERNEL, ProbeVM, Stop, beginning
from pykvm.x86.registers import CR4, RFLAGS
from support.host import host_probe, require_host

__all__ = [
    "ADCX",
    "BLSI",
    "CMPXCHG16B",
    "CVTDQ2PD",
    "HANDED_OVER",
    "INT1",
    "PUNPCKL",
    "SIMD_EXCEPTIONS",
    "SOFT_EVENTS",
    "X87_EXCEPTIONS",
    "X87_PENDING",
    "fact_of",
    "require_processor",
]

ADCX = "adcx-changes-cf-alone"
BLSI = "blsi-sets-cf"
CMPXCHG16B = "cmpxchg16b-is-a-write"
CVTDQ2PD = "cvtdq2pd-reads-8-bytes"
PUNPCKL = "punpckl-reads-4-bytes"
SIMD_EXCEPTIONS = "simd-exceptions-are-raised"
X87_EXCEPTIONS = "x87-exceptions-drop-the-result"
X87_PENDING = "x87-raises-what-is-pending"
INT1 = "int1-is-a-debug-exception"
SOFT_EVENTS = "soft-events-leave-rip-alone"
HANDED_OVER = "hands-over-what-ring-3-cannot"

DEBUG, MATH_FAULT, SIMD_FAULT = 1, 16, 19
WRITE = 2
FCW, FSW, FTW, MXCSR, ST0, XMM0, XSTATE_BV = 0, 2, 4, 24, 32, 160, 512


class Fact(NamedTuple):
    """An instruction, and whether what came of it is what the manual says."""

    otherwise: str
    code: str
    holds: Callable[[Outcome], bool]
    registers: Mapping[str, int] = MappingProxyType({})
    data: bytes = b""
    #: Bytes of the XSAVE image, by offset.
    image: Mapping[int, bytes] = MappingProxyType({})
    cr4: int = 0


FACTS = {
    # SDM 2A, ADCX: 32 bits, which carry; what is above them in RAX does not count.
    ADCX: Fact(
        "ADCX of 32 bits changes flags beside CF",
        "660f38f607",
        lambda outcome: outcome.flags == RFLAGS.CF and outcome.registers["rax"] == 1,
        registers={"rax": 0x10_0000_0002, "rdi": DATA},
        data=b"\xff" * 4,
    ),
    # SDM 2A, BLSI: CF is whether the source is not 0.
    BLSI: Fact(
        "BLSI of a number leaves CF clear",
        "c4e2f8f3db",
        lambda outcome: bool(outcome.flags & RFLAGS.CF),
        registers={"rbx": 6},
    ),
    # SDM 2A, INT n/INTO/INT3/INT1: F1.
    INT1: Fact(
        "INT1 raises no #DB",
        "f1",
        lambda outcome: outcome.exception == (DEBUG, 0, 0),
    ),
    # SDM 2A, CMPXCHG16B: the destination gets a write whatever the comparison says.
    CMPXCHG16B: Fact(
        "CMPXCHG16B of a missing page is a fault of a read",
        "480fc70f",
        lambda outcome: outcome.exception is not None and bool(outcome.exception[1] & WRITE),
        registers={"rdi": MISSING},
    ),
    # SDM 2A, CVTDQ2PD xmm, xmm/m64, and 2B, PUNPCKLBW mm, mm/m32: at the end of a page.
    CVTDQ2PD: Fact(
        "CVTDQ2PD reads beyond its 8 bytes",
        "f30fe607",
        lambda outcome: outcome.exception is None,
        registers={"rdi": MISSING - 8},
    ),
    PUNPCKL: Fact(
        "PUNPCKLBW of MMX reads beyond its 4 bytes",
        "0f6007",
        lambda outcome: outcome.exception is None,
        registers={"rdi": MISSING - 4},
    ),
    # SDM 1 11.5.2.2: 1.0 / 0.0 with MXCSR.ZM clear.
    SIMD_EXCEPTIONS: Fact(
        "DIVSS by zero raises no #XM",
        "f30f5ec1",
        lambda outcome: outcome.exception == (SIMD_FAULT, 0, 0),
        image={MXCSR: (0x1D80).to_bytes(4, "little"), XMM0: struct.pack("<f28x", 1.0)},
        cr4=CR4.OSXMMEXCPT,
    ),
    # SDM 1 8.5.3: with FCW.ZM clear a division by zero leaves the operands as they were.
    X87_EXCEPTIONS: Fact(
        "FDIV by zero stores a result, though the exception is not masked",
        "d837",
        lambda outcome: outcome.xsave[ST0 : ST0 + 10] == bytes.fromhex("0000000000000080ff3f"),
        registers={"rdi": DATA},
        data=bytes(4),
        image={
            FCW: bytes.fromhex("7b03003880"),
            ST0: bytes.fromhex("0000000000000080ff3f"),
        },
    ),
    # SDM 1 8.6: FLD1 is a waiting instruction.
    X87_PENDING: Fact(
        "FLD1 raises no #MF for an exception that is pending",
        "d9e8",
        lambda outcome: outcome.exception == (MATH_FAULT, 0, 0),
        image={FCW: bytes.fromhex("7b038480")},
    ),
}


def register(name: str, fact: Fact) -> None:
    """Make a host probe of a fact."""

    @host_probe(name)
    def probe() -> str | None:
        with make_rig() as rig:
            return None if fact.holds(executed(rig, fact)) else fact.otherwise


def executed(rig: Rig, fact: Fact) -> Outcome:
    image = bytearray(rig.pristine)
    for at, value in fact.image.items():
        image[at : at + len(value)] = value
    image[XSTATE_BV] = 3
    return rig.run(
        bytes.fromhex(fact.code),
        3,
        registers=dict(fact.registers),
        data=fact.data,
        xsave=bytes(image),
        cr4=fact.cr4,
    )


for each in FACTS.items():
    register(*each)


def fact_of(case: Case) -> str | None:
    """The probe that says whether a case can be compared with this processor, or None."""
    name = case.name.partition(" ")[0]
    return {"adcx": ADCX, "blsi": BLSI}.get(name)


def require_processor(case: Case) -> None:
    """Skip the test where this host's processor has no such instruction, or gets it wrong."""
    require_host(f"processor-has-{case.group}")
    fact = fact_of(case)
    if fact is not None:
        require_host(fact)


VECTOR = 0x82


@host_probe(SOFT_EVENTS)
def soft_events_leave_rip_alone() -> str | None:
    """Whether a software interrupt that is injected returns to the RIP that the vCPU has.

    KVM with SVM goes past the instruction at RIP first (svm_update_soft_interrupt_rip), and with
    VMX by the length of an earlier one; neither refuses INT n itself, so nothing is injected there.
    """
    with closing(ProbeVM()) as vm:
        vm.memory.write(KERNEL, b"\x90\xf4")
        vm.cpu.state = beginning(0)
        events = vm.cpu.kvm.get_vcpu_events()
        events.interrupt.injected, events.interrupt.soft, events.interrupt.nr = 1, 1, VECTOR
        vm.cpu.kvm.set_vcpu_events(events)
        exits = vm.cpu.raw_exits(timeout=5)
        stop = Stop(next(exits), vm.cpu.state)
        exits.close()
        if stop.vector == VECTOR and vm.memory.read_u64(stop.state.rsp) == KERNEL:
            return None
    return "a software interrupt that is injected skips an instruction"


@host_probe(HANDED_OVER)
def hands_over_what_ring_3_cannot() -> str | None:
    """Whether KVM exits where it cannot emulate an instruction of ring 3 that reaches a device."""
    with System() as system:
        if system.check_extension(Cap.KVM_CAP_EXIT_ON_EMULATION_FAILURE):
            return None
    return (
        "what ring 3 executes and KVM cannot is #UD (KVM_CAP_EXIT_ON_EMULATION_FAILURE is missing)"
    )
