"""All quirks there are, in the order in which `pykvm info` lists them."""

from __future__ import annotations

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
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.quirks.quirk import Quirk

__all__ = ["QUIRKS"]

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
