"""What INIT does to a vCPU."""

from __future__ import annotations

from pykvm.kvm.constants import KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.vcpu.cpu import CPU

__all__ = ["can_reset", "reset_by_init"]

_RESET_VECTOR = 0xFFFF_FFF0
_DR6_INIT = 0xFFFF_0FF0
_DR7_INIT = 0x400
# With what they cover, all events.
_ALL_EVENTS = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW
# A family 6 processor, where CPUID has no leaf 1.
_SIGNATURE = 0x600


def can_reset(cpu: CPU) -> bool:
    """Whether there is memory where a processor begins after RESET."""
    return any(
        region.start <= _RESET_VECTOR < region.start + region.size for region in cpu.memory.regions
    )


def reset_by_init(cpu: CPU) -> None:
    """Do to a vCPU what INIT does to a processor (SDM 3A 10.1 and table 10-1).

    The instruction at hand is given up, and so are events that wait; NMIs are blocked no more.
    """
    from pykvm.x86.entry import after_init

    engine = cpu.engine
    engine.abandon_instruction()
    cpu.loop.pending = None
    leaf = next((leaf for leaf in engine.kvm.get_cpuid2() if leaf.function == 1), None)
    cpu.state = after_init(cpu.state, signature=leaf.eax if leaf is not None else _SIGNATURE)
    engine.kvm.set_debugregs({"db": [0] * 4, "dr6": _DR6_INIT, "dr7": _DR7_INIT})
    engine.kvm.set_vcpu_events({"flags": _ALL_EVENTS})
