"""CPUID features that were hidden from the guest and show all the same.

KVM may add what the host's processor has to the table that it was given, and ring 3 may see the
processor's own CPUID.  A kernel then uses instructions that KVM refuses it: its command line is
where to forbid that (`clearcpuid=`, `noxsave` for Linux).
"""

from __future__ import annotations

import struct

from pykvm.quirks.quirk import Quirk
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.quirks.probe_vm import ProbeVM

__all__ = ["QUIRK"]

CPUID = bytes.fromhex("0FA2")
_FEATURES = 1
# OSXSAVE follows CR4, not the table (SDM 2A CPUID).
_FOLLOWS_CR4 = 1 << 27

_HEAD, _ENTRY = 8, struct.Struct("<7I12x")  # struct kvm_cpuid2, struct kvm_cpuid_entry2


def _show(vm: ProbeVM) -> bool:
    entries = _ENTRY.iter_unpack(vm.cpuid[_HEAD:])
    hidden = next(~ecx & ~_FOLLOWS_CR4 for leaf, _, _, _, _, ecx, _ in entries if leaf == _FEATURES)
    seen = (vm.run(CPUID, ring, {"rax": _FEATURES}).state.rcx for ring in (0, 3))
    return any(ecx & hidden for ecx in seen)


QUIRK = Quirk("cpuid", "CPUID shows features that were hidden from the guest", _show)
