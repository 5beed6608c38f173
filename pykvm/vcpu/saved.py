"""The state of one vCPU as a value."""

from __future__ import annotations

from pykvm.kvm.uapi import kvm_regs, kvm_sregs2
from pykvm.typed import TYPE_CHECKING
from pykvm.values.state import State

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from pykvm.values.state import U32, U64

__all__ = ["RUNNING_MSRS", "VcpuState", "is_still"]

#: MSRs that go on counting: IA32_TSC, and Hyper-V's time that a vCPU has run.
RUNNING_MSRS = frozenset({0x10, 0x4000_0010})

# Of the local APIC's registers as KVM has them (SDM 3A table 11-1): the timer's vector, its current
# count, and the interrupts that wait.
_LVTT = 0x320
_PPR = slice(0xA0, 0xA4)
_TMCCT = slice(0x390, 0x394)
_IRR = 0x200

# MSRs of KVM's with a guest-physical address, in its low bit whether it is in use; how that is
# aligned, and how much lies there: system time by its two numbers, and stolen time.
_TIME_IN_MEMORY = ((0x12, 4, 32), (0x4B56_4D01, 4, 32), (0x4B56_4D03, 64, 64))

_RIP = kvm_regs.offset_of("rip")
_CR0 = kvm_sregs2.offset_of("cr0")
_EFER = kvm_sregs2.offset_of("efer")
_IDT_LIMIT = kvm_sregs2.offset_of("idt.limit")


class VcpuState(State):
    """All of a vCPU that its guest can notice: `CPU.save` makes it, `CPU.load` puts it back.

    `regs`, `xcrs`, `xsave`, `debugregs`, `events` (kvm_vcpu_events) and `nested` are KVM's structs
    as they are, and so is `lapic`, where the local APIC is KVM's.  `sregs` is a kvm_sregs2, also
    where KVM knows only kvm_sregs.  `msrs` are (index, value), in the order in which they are set.

    `tsc_offset` is what KVM adds to the host's TSC, modulo 2**64; None where KVM does not say, or
    moves it by itself, and IA32_TSC is among the MSRs.

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
    def cr0(self) -> int:
        """CR0."""
        return int.from_bytes(self.sregs[_CR0 : _CR0 + 8], "little")

    @property
    def rip(self) -> int:
        """RIP."""
        return int.from_bytes(self.regs[_RIP : _RIP + 8], "little")

    @property
    def efer(self) -> int:
        """IA32_EFER."""
        return int.from_bytes(self.sregs[_EFER : _EFER + 8], "little")

    @property
    def idt_limit(self) -> int:
        """The limit of IDTR."""
        return int.from_bytes(self.sregs[_IDT_LIMIT : _IDT_LIMIT + 2], "little")

    def time_in_memory(self) -> list[tuple[int, int]]:
        """Where KVM writes the time for its guest whenever the vCPU runs: (address, size) each.

        Documentation/virt/kvm/x86/msr.rst: struct pvclock_vcpu_time_info and kvm_steal_time.
        """
        msrs = dict(self.msrs)
        return [
            (msrs[index] & -align, size)
            for index, align, size in _TIME_IN_MEMORY
            if msrs.get(index, 0) & 1
        ]

    def at_rest(self) -> VcpuState:
        """The same without what runs on by itself, to be compared.

        That is `RUNNING_MSRS`, the current count of the local APIC's timer, and its PPR, which KVM
        computes when the guest reads it (apic_update_ppr in lapic.c): what it shows may be old.
        """
        fields = {name: getattr(self, name) for name in type(self).__fields__}
        fields["msrs"] = tuple(
            (index, 0 if index in RUNNING_MSRS else value) for index, value in self.msrs
        )
        if self.lapic is not None:
            lapic = _without_count(self.lapic)
            fields["lapic"] = lapic[: _PPR.start] + bytes(4) + lapic[_PPR.stop :]
        return VcpuState(**fields)


def is_still(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether nothing came to a local APIC of KVM's between two looks at a vCPU.

    Its timer may only have counted down; but if its interrupt waits already, another one makes no
    difference.
    """
    lapic, later = before["lapic"], after["lapic"]
    same = {**after, "lapic": _without_count(later)}
    if same != {**{name: before[name] for name in after}, "lapic": _without_count(lapic)}:
        return False
    vector = lapic[_LVTT]
    waits = lapic[_IRR + vector // 32 * 0x10 + vector % 32 // 8] >> vector % 8 & 1
    return bool(waits) or _count(later) <= _count(lapic)


def _count(lapic: bytes) -> int:
    return int.from_bytes(lapic[_TMCCT], "little")


def _without_count(lapic: bytes) -> bytes:
    return lapic[: _TMCCT.start] + bytes(4) + lapic[_TMCCT.stop :]
