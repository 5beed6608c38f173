"""Guest time as KVM shows it: the TSC offset of each vCPU, and kvmclock.

Source: Documentation/virt/kvm/api.rst, 4.30 (KVM_SET_CLOCK) and 4.56 (KVM_GET_TSC_KHZ);
Documentation/virt/kvm/devices/vcpu.rst, 4.1 (KVM_VCPU_TSC_OFFSET); SDM 4, table 2-2.
"""

from __future__ import annotations

from pykvm.kvm.constants import KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET
from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import unsigned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.clock import Clock
    from pykvm.kvm import VM
    from pykvm.vcpu import CPU

__all__ = [
    "clock_of",
    "follow_tsc_writes",
    "kvmclock",
    "offset_is_kept",
    "restore_kvmclock",
    "set_kvmclock",
    "show_tsc",
    "show_tscs",
    "tsc_offset",
]

IA32_TSC = 0x10
IA32_TSC_ADJUST = 0x3B

_LIMIT = 1 << 64


def set_kvmclock(vm: VM, clock: Clock) -> None:
    """Set KVM's paravirtual clock to guest time."""
    vm.set_clock({"clock": clock.now()})


def kvmclock(vm: VM) -> int:
    """KVM's paravirtual clock, in nanoseconds: a guest may use it that has touched no other."""
    now: int = vm.get_clock().clock
    return now


def restore_kvmclock(vm: VM, clock: int) -> None:
    """Let it go on from there; where the machine has a clock, a run sets it by that."""
    vm.set_clock({"clock": unsigned("kvmclock", clock, 64)})


def show_tscs(cpus: Sequence[CPU], clock: Clock) -> None:
    """Set the TSC offsets to what guest time makes of them, where this host keeps them."""
    for cpu in cpus:
        show_tsc(cpu, clock)


def show_tsc(cpu: CPU, clock: Clock) -> None:
    """The same for one vCPU."""
    if clock.tsc_movable:
        offset = clock.vcpu_tsc_offset(cpu.index)
        _set_tsc_offset(cpu, offset)
        clock.shown_tsc_offsets[cpu.index] = offset


def follow_tsc_writes(cpus: Sequence[CPU], clock: Clock) -> None:
    """Have the clock know what guests wrote to IA32_TSC and IA32_TSC_ADJUST, if KVM took it.

    It moves their offset by as much.  To be called before the offset is set.
    """
    if not clock.tsc_movable:
        return
    for cpu in cpus:
        offset = tsc_offset(cpu) % _LIMIT
        moved = offset - clock.shown_tsc_offsets[cpu.index]
        if moved:
            clock.write_tsc_adjust(cpu.index, (clock.tsc_adjust(cpu.index) + moved) % _LIMIT)
            clock.shown_tsc_offsets[cpu.index] = offset


def _set_tsc_offset(cpu: CPU, offset: int) -> None:
    """Set what KVM adds to the host's TSC (signed)."""
    cpu.kvm.set_device_attr(KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, offset % _LIMIT)


def tsc_offset(cpu: CPU) -> int:
    """What KVM adds to the host's TSC (signed)."""
    value = cpu.kvm.get_device_attr(KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET)
    return value - _LIMIT if value >> 63 else value


def clock_of(
    cpus: Sequence[CPU], policy: str, tsc_khz: int | None = None, *, began: int | None = None
) -> Clock:
    """The clock of a machine with these vCPUs, whose TSC is to run at `tsc_khz` (else the host's).

    Guest time is 0 at `began`, a time of CLOCK_MONOTONIC in nanoseconds, or from now on.

    Raises ConfigError where this host shows guests its own TSC and cannot have it run otherwise.
    """
    from pykvm._core import lib
    from pykvm.clock import Clock
    from pykvm.clock.tsc import signed

    first = cpus[0]
    host_khz = first.kvm.get_tsc_khz()
    before = tsc_offset(first)
    movable = offset_is_kept(first, before)
    by_kvm = not movable and not _is_near(_tsc_of(first), lib.pykvm_cycles(), host_khz)
    clock = Clock(
        policy,
        host_tsc=lib.pykvm_cycles,
        host_tsc_khz=host_khz,
        tsc_khz=tsc_khz,
        tsc_movable=movable,
        tsc_of_kvm=(lambda index: _tsc_of(cpus[index])) if by_kvm else None,
        began=began,
    )
    if by_kvm:
        return clock
    # What the guest has seen so far: KVM started this vCPU's TSC at 0 when it was made, and has
    # kept the MSRs until now.
    adjusted = [cpu.kvm.get_msrs([IA32_TSC_ADJUST], partial=True) for cpu in cpus]
    for cpu, found in zip(cpus, adjusted, strict=True):
        if found.get(IA32_TSC_ADJUST):
            clock.write_tsc_adjust(cpu.index, found[IA32_TSC_ADJUST])
    if movable:
        clock.shown_tsc_offsets = {cpu.index: tsc_offset(cpu) % _LIMIT for cpu in cpus}
        clock.tsc_offset = before - signed(adjusted[0].get(IA32_TSC_ADJUST, 0))
        if clock.tsc_khz != host_khz:
            for cpu in cpus:
                cpu.kvm.set_tsc_khz(clock.tsc_khz)
    return clock


def _tsc_of(cpu: CPU) -> int:
    return cpu.kvm.get_msrs([IA32_TSC])[IA32_TSC]


def _is_near(one: int, other: int, khz: int) -> bool:
    """Whether two readings of a TSC are less than a tenth of a second apart."""
    return abs(one - other) < khz * 100


def offset_is_kept(cpu: CPU, offset: int) -> bool:
    """Probe: whether this host's KVM keeps a TSC offset it is given, and so shows it to guests."""
    moved = offset + (1 << 20)
    _set_tsc_offset(cpu, moved)
    kept = tsc_offset(cpu) == moved
    _set_tsc_offset(cpu, offset)
    return kept
