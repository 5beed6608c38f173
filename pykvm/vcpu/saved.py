"""The state of one vCPU as a value."""

from __future__ import annotations

from pykvm.kvm.uapi import kvm_regs
from pykvm.typed import TYPE_CHECKING
from pykvm.values.state import State

if TYPE_CHECKING:
    from pykvm.values.state import U32, U64

__all__ = ["RUNNING_MSRS", "VcpuState"]

#: MSRs that go on counting: IA32_TSC, and Hyper-V's time that a vCPU has run.
RUNNING_MSRS = frozenset({0x10, 0x4000_0010})

# The current count of the local APIC's timer (SDM 3A table 11-1), in KVM's copy of its registers.
_TMCCT = slice(0x390, 0x394)

_RIP = kvm_regs.offset_of("rip")


class VcpuState(State):
    """All of a vCPU that its guest can notice: `CPU.save` makes it, `CPU.load` puts it back.

    `regs`, `xcrs`, `xsave`, `debugregs`, `events` (kvm_vcpu_events) and `nested` are KVM's structs
    as they are, and so is `lapic`, where the local APIC is KVM's.  `sregs` is a kvm_sregs2, also
    where KVM knows only kvm_sregs.  `msrs` are (index, value), in the order in which they are set.

    `tsc_offset` is what KVM adds to the host's TSC, modulo 2**64; None where KVM does not say, and
    IA32_TSC is among the MSRs.

    `halted` is True for a vCPU that waits in HLT outside the kernel, `at_breakpoint` for one that a
    breakpoint of ours has stopped.  `cr8` and the three after it are those of the kvm_run page.
    """

    regs: bytes
    sregs: bytes
    xcrs: bytes
    xsave: bytes
    debugregs: bytes
    lapic: bytes | None
    msrs: tuple[tuple[U32, U64], ...]
    nested: bytes | None
    tsc_khz: U32
    tsc_offset: U64 | None
    mp_state: U32
    events: bytes
    cr8: U64
    interrupts_on: bool
    ready_for_interrupt: bool
    wants_interrupt_window: bool
    parked: bool
    halted: bool
    at_breakpoint: bool

    @property
    def rip(self) -> int:
        """RIP."""
        return int.from_bytes(self.regs[_RIP : _RIP + 8], "little")

    def at_rest(self) -> VcpuState:
        """The same without what runs on by itself, to be compared.

        That is `RUNNING_MSRS`, and the current count of the local APIC's timer.
        """
        fields = {name: getattr(self, name) for name in type(self).__fields__}
        fields["msrs"] = tuple(
            (index, 0 if index in RUNNING_MSRS else value) for index, value in self.msrs
        )
        if self.lapic is not None:
            lapic = bytearray(self.lapic)
            lapic[_TMCCT] = bytes(4)
            fields["lapic"] = bytes(lapic)
        return VcpuState(**fields)
