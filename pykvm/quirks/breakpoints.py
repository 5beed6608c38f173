"""Breakpoints that do not stop the guest: INT3 under KVM_GUESTDBG_USE_SW_BP, and DR0 in ring 3.

INT3 goes to the guest's own #BP handler from ring 3 and is refused in ring 0; an execution
breakpoint in a debug register works in ring 0 alone.
"""

from __future__ import annotations

from pykvm.exits import Debug
from pykvm.kvm.constants import KVM_GUESTDBG_USE_SW_BP
from pykvm.quirks.probe_vm import USER
from pykvm.quirks.quirk import Quirk
from pykvm.typed import TYPE_CHECKING
from pykvm.vcpu.guest_debug import GuestDebug

if TYPE_CHECKING:
    from pykvm.quirks.probe_vm import ProbeVM

__all__ = ["HARDWARE", "SOFTWARE"]

INT3, NOP = b"\xcc", b"\x90"


def _int3_is_missed(vm: ProbeVM) -> bool:
    vm.cpu.kvm.set_guest_debug(KVM_GUESTDBG_USE_SW_BP)
    try:
        exits = [vm.run(INT3, ring).exit for ring in (0, 3)]
    finally:
        vm.cpu.kvm.set_guest_debug(0)
    return not all(isinstance(exit, Debug) for exit in exits)


def _missed_in_ring_3(vm: ProbeVM) -> bool:
    debug = GuestDebug(vm.cpu.kvm)
    debug.set_breakpoints("probe", [USER + len(NOP)])
    try:
        stop = vm.run(NOP * 2, 3)
    finally:
        debug.set_breakpoints("probe", [])
    return not isinstance(stop.exit, Debug)


SOFTWARE = Quirk(
    "int3-breakpoint",
    "INT3 does not stop the guest for a debugger (KVM_GUESTDBG_USE_SW_BP)",
    _int3_is_missed,
)
HARDWARE = Quirk(
    "ring-3-breakpoint",
    "breakpoints in debug registers (KVM_GUESTDBG_USE_HW_BP) do not stop ring 3",
    _missed_in_ring_3,
)
