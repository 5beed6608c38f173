"""Single steps that pass ring 3 by.

KVM_GUESTDBG_SINGLESTEP ends KVM_RUN after each instruction of ring 0; in ring 3 the guest runs on
until it comes back there.  `pykvm step` says so where it happens.
"""

from __future__ import annotations

from pykvm.exits import Debug
from pykvm.kvm.constants import KVM_GUESTDBG_SINGLESTEP
from pykvm.quirks.probe_vm import USER
from pykvm.quirks.quirk import Quirk
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.quirks.probe_vm import ProbeVM

__all__ = ["QUIRK"]

NOP = b"\x90"


def _passes_by(vm: ProbeVM) -> bool:
    vm.cpu.kvm.set_guest_debug(KVM_GUESTDBG_SINGLESTEP)
    try:
        stop = vm.run(NOP, 3)
    finally:
        vm.cpu.kvm.set_guest_debug(0)
    return not (isinstance(stop.exit, Debug) and stop.exit.pc == USER + len(NOP))


QUIRK = Quirk(
    "single-step", "single steps (KVM_GUESTDBG_SINGLESTEP) do not stop in ring 3", _passes_by
)
