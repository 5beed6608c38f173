"""What a machine needs of this host: an open KVM, the limits it sets, the CPUID table it offers."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from pykvm.errors import ConfigError, HostError
from pykvm.kvm import VM, System
from pykvm.tables.e820 import KVM_PAGES

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Host"]

# Intel processors without "unrestricted guest" keep three pages of their own for real mode, which
# must not lie in guest memory: here right below the 16 MiB in which firmware is mapped.
# Documentation/virt/kvm/api.rst, 4.35 and 4.54.
IDENTITY_MAP_ADDRESS = KVM_PAGES.address
TSS_ADDRESS = IDENTITY_MAP_ADDRESS + 0x1000

# Capabilities by number: to import the enum of all of them costs a millisecond at every start.
KVM_CAP_NR_VCPUS = 9
KVM_CAP_COALESCED_MMIO = 15
KVM_CAP_MAX_VCPUS = 66
KVM_CAP_COALESCED_PIO = 162

# What the run loop is built on; Linux has all of it since 4.17.
REQUIRED = {
    "KVM_CAP_USER_MEMORY": 3,
    "KVM_CAP_EXT_CPUID": 7,
    "KVM_CAP_SYNC_REGS": 74,
    "KVM_CAP_IMMEDIATE_EXIT": 136,
}

_CPUID_HEAD = struct.Struct("<II")  # struct kvm_cpuid2 before its entries
_CPUID_ENTRY = struct.Struct("<7I12x")  # struct kvm_cpuid_entry2

PAGE = 4096
RING_ENTRY = 24  # struct kvm_coalesced_mmio
RING_HEAD = 8  # struct kvm_coalesced_mmio_ring before its entries


class Host:
    """An open /dev/kvm, checked once; what it answers is remembered for the life of the process.

    Raises HostError where there is no KVM, or one that is too old.
    """

    _checked = False
    _tables: dict[tuple[str, int, int, bool], bytes] = {}  # noqa: RUF012 - one for the process, on purpose
    _max_vcpus = 0
    _ring: tuple[int, int] | None = None

    def __init__(self) -> None:
        self.system = System()
        try:
            self._check()
        except BaseException:
            self.system.close()
            raise

    def close(self) -> None:
        """Close /dev/kvm; VMs made from it live on."""
        self.system.close()

    def _check(self) -> None:
        if Host._checked:
            return
        extension = self.system.check_extension
        missing = [name for name, number in REQUIRED.items() if not extension(number)]
        if missing:
            raise HostError(
                f"this host's KVM lacks {', '.join(missing)}",
                hint="Linux 4.17 or newer has them",
            )
        Host._max_vcpus = extension(KVM_CAP_MAX_VCPUS) or extension(KVM_CAP_NR_VCPUS) or 4
        Host._ring = _coalescing_ring(extension)
        Host._checked = True

    def check_vcpus(self, count: int) -> None:
        """Raise ConfigError unless this host's KVM allows `count` vCPUs in one VM."""
        if not 1 <= count <= Host._max_vcpus:
            raise ConfigError(
                f"vcpus={count}: a machine has at least one, and this host's KVM allows "
                f"{Host._max_vcpus}"
            )

    @property
    def coalescing_ring(self) -> tuple[int, int] | None:
        """The page of a vCPU's mapping with the coalescing ring, and its number of entries."""
        return Host._ring

    def create_vm(self) -> VM:
        """A VM with room set aside for what Intel's processors need in real mode."""
        vm = self.system.create_vm()
        vm.set_tss_addr(TSS_ADDRESS)
        vm.set_identity_map_addr(IDENTITY_MAP_ADDRESS)
        return vm

    def cpuid(self, model: str, index: int, count: int, *, apic: bool) -> bytes:
        """The struct kvm_cpuid2 of vCPU `index` of `count`, with a local APIC or none.

        Raises ConfigError for a model that pykvm does not know or this host cannot give.
        """
        key = model, index, count, apic
        table = Host._tables.get(key)
        if table is None:
            table = Host._tables[key] = _cpuid_table(self.system, *key)
        return table


def _coalescing_ring(extension: Callable[[int], int]) -> tuple[int, int] | None:
    page = extension(KVM_CAP_COALESCED_MMIO)
    if not page or not extension(KVM_CAP_COALESCED_PIO):
        return None
    # include/linux/kvm_host.h: KVM_COALESCED_MMIO_MAX fills one page.
    return page, (PAGE - RING_HEAD) // RING_ENTRY


def _cpuid_table(system: System, model: str, index: int, count: int, apic: bool) -> bytes:
    from pykvm.x86.cpuid import LAPIC_FEATURES, select, with_topology

    # A guest that finds an APIC in CPUID expects one to be there.
    hidden = () if apic else LAPIC_FEATURES
    selected = select(system.supported_cpuid(), model, remove=hidden)
    entries = with_topology(selected, apic_id=index, count=count)
    head = _CPUID_HEAD.pack(len(entries), 0)
    return head + b"".join(_CPUID_ENTRY.pack(*entry) for entry in entries)
