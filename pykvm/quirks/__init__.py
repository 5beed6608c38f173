"""What a host's KVM gets wrong in the guest's sight, and how each is made good.

A quirk is found by doing it, in a tiny VM, at most once in a process and only if a machine needs to
know (or `pykvm info` asks); nothing goes by the name of a module or a processor.  On a host that
has none of them nothing here is active.  docs/quirks.md is the reader's page.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from pykvm.errors import PykvmError
from pykvm.quirks import (
    bit_counts,
    breakpoints,
    cpuid,
    hypercall,
    kernel_apic,
    legacy_paging,
    single_step,
    software_interrupt,
    stale_mappings,
    syscall,
    triple_fault,
)
from pykvm.quirks.probe_vm import ProbeVM
from pykvm.quirks.quirk import Quirk

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["QUIRKS", "Quirk", "found"]

QUIRKS: tuple[Quirk, ...] = (
    syscall.QUIRK,
    software_interrupt.QUIRK,
    breakpoints.SOFTWARE,
    breakpoints.HARDWARE,
    single_step.QUIRK,
    bit_counts.QUIRK,
    stale_mappings.QUIRK,
    cpuid.QUIRK,
    legacy_paging.TWO_LEVEL,
    legacy_paging.PAE,
    hypercall.QUIRK,
    kernel_apic.IN_SERVICE,
    kernel_apic.LEVEL,
    triple_fault.QUIRK,
)

_known: dict[str, bool] = {}


def found(quirks: Iterable[Quirk] = QUIRKS) -> frozenset[str]:
    """The names of those that this host has.

    Those that were not asked for before are probed, all in one VM, in about 2 ms.  A probe that
    cannot be made finds nothing.  Raises HostError and KVMError where there is no VM to be had.
    """
    asked = tuple(quirks)
    new = [quirk for quirk in asked if quirk.name not in _known]
    if new:
        with closing(ProbeVM()) as vm:
            for quirk in new:
                _known[quirk.name] = _probe(quirk, vm)
    return frozenset(quirk.name for quirk in asked if _known[quirk.name])


def _probe(quirk: Quirk, vm: ProbeVM) -> bool:
    try:
        return quirk.probe(vm)
    except (PykvmError, TimeoutError):
        return False
