"""What a machine needs of this host: an open KVM, the limits it sets, the CPUID table it offers."""

from __future__ import annotations

import struct

from pykvm.errors import ConfigError, HostError
from pykvm.kvm import VM, System
from pykvm.kvm.uapi import (
    KVM_CAP_COALESCED_MMIO,
    KVM_CAP_COALESCED_PIO,
    KVM_CAP_EXIT_ON_EMULATION_FAILURE,
    KVM_CAP_EXT_CPUID,
    KVM_CAP_IMMEDIATE_EXIT,
    KVM_CAP_MAX_VCPUS,
    KVM_CAP_NR_VCPUS,
    KVM_CAP_SYNC_REGS,
    KVM_CAP_TSC_DEADLINE_TIMER,
    KVM_CAP_USER_MEMORY,
)
from pykvm.layout import KVM_PAGES
from pykvm.typed import TYPE_CHECKING
from pykvm.values.spelling import option
from pykvm.x86.cpuid import (
    LAPIC_FEATURES,
    CpuidEntry,
    Specification,
    select,
    with_topology,
    without,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Host"]

# Intel processors without "unrestricted guest" keep three pages of their own for real mode, which
# must not lie in guest memory: here right below the 16 MiB in which firmware is mapped.
# Documentation/virt/kvm/api.rst, 4.35 and 4.54.
IDENTITY_MAP_ADDRESS = KVM_PAGES
TSS_ADDRESS = IDENTITY_MAP_ADDRESS + 0x1000

# What the run loop is built on; Linux has all of it since 4.17.
REQUIRED = {
    "KVM_CAP_USER_MEMORY": KVM_CAP_USER_MEMORY,
    "KVM_CAP_EXT_CPUID": KVM_CAP_EXT_CPUID,
    "KVM_CAP_SYNC_REGS": KVM_CAP_SYNC_REGS,
    "KVM_CAP_IMMEDIATE_EXIT": KVM_CAP_IMMEDIATE_EXIT,
}

# CPUID.1:ECX
TSC_DEADLINE = 1 << 24
HYPERVISOR = 1 << 31

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
    _tables: dict[tuple[str, int, int, str, frozenset[str] | None], bytes] = {}  # noqa: RUF012 - one for the process, on purpose
    _max_vcpus = 0
    _ring: tuple[int, int] | None = None
    _hands_over = False

    def __init__(self) -> None:
        # Machines and probes are what is forgotten to be closed, not their parts.
        self.system = System(warns=False)
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
        Host._hands_over = bool(extension(KVM_CAP_EXIT_ON_EMULATION_FAILURE))
        Host._checked = True

    def check_vcpus(self, count: int) -> None:
        """Raise ConfigError unless this host's KVM allows `count` vCPUs in one VM."""
        if not 1 <= count <= Host._max_vcpus:
            raise ConfigError(
                f"{option('vcpus', count)}: a machine has at least one, and this host's KVM allows "
                f"{Host._max_vcpus}"
            )

    @property
    def coalescing_ring(self) -> tuple[int, int] | None:
        """The page of a vCPU's mapping with the coalescing ring, and its number of entries."""
        return Host._ring

    def create_vm(self, *, hand_over: bool = False) -> VM:
        """A VM with room set aside for what Intel's processors need in real mode.

        With `hand_over` each instruction that KVM cannot emulate is an exit.  Without, and before
        Linux 5.14, those of ring 3 are #UD on many hosts (handle_emulation_failure).
        """
        vm = self.system.create_vm()
        vm.set_tss_addr(TSS_ADDRESS)
        vm.set_identity_map_addr(IDENTITY_MAP_ADDRESS)
        if hand_over and Host._hands_over:
            vm.enable_cap(KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1)
        return vm

    def offered(self, irqchip: str) -> list[CpuidEntry]:
        """What a guest can be shown on this host: the entries of KVM_GET_SUPPORTED_CPUID.

        KVM leaves the TSC-deadline timer of its local APIC out there and shows it by a
        capability (api.rst 4.46); that of a local APIC in software needs no KVM.
        """
        deadline = irqchip == "user" or self.system.check_extension(KVM_CAP_TSC_DEADLINE_TIMER)
        return self._supported(HYPERVISOR | TSC_DEADLINE if deadline else HYPERVISOR)

    def _supported(self, leaf_1_ecx: int = HYPERVISOR) -> list[CpuidEntry]:
        """What KVM itself offers, and these bits, which it leaves to us to set.

        Linux before 6.14 leaves HYPERVISOR out.  Without it a guest looks for none of KVM's leaves.
        """
        entries = _unpacked(self.system.supported_cpuid_packed())
        return [
            entry._replace(ecx=entry.ecx | leaf_1_ecx) if entry.function == 1 else entry
            for entry in entries
        ]

    def cpuid(
        self,
        model: str,
        index: int,
        count: int,
        *,
        irqchip: str,
        hidden: frozenset[str] | None = None,
    ) -> bytes:
        """The struct kvm_cpuid2 of vCPU `index` of `count` in a machine with this irqchip.

        The features `hidden` are left out: the host offers them and does not give them.  Where
        that was not tried (None), only what KVM itself offers is shown.  Raises ConfigError for a
        model that pykvm does not know or this host cannot give.
        """
        key = model, index, count, irqchip, hidden
        table = Host._tables.get(key)
        if table is None:
            untried = hidden is None and irqchip == "user"
            entries = self._supported() if untried else self.offered(irqchip)
            _refuse(model, irqchip, hidden or frozenset())
            if hidden is not None:
                entries = without(entries, hidden)
            selected = _selected(entries, model, irqchip)
            table = _packed(with_topology(selected, apic_id=index, count=count))
            Host._tables[key] = table
        return table


def _coalescing_ring(extension: Callable[[int], int]) -> tuple[int, int] | None:
    page = extension(KVM_CAP_COALESCED_MMIO)
    if not page or not extension(KVM_CAP_COALESCED_PIO):
        return None
    # include/linux/kvm_host.h: KVM_COALESCED_MMIO_MAX fills one page.
    return page, (PAGE - RING_HEAD) // RING_ENTRY


def _refuse(model: str, irqchip: str, hidden: frozenset[str]) -> None:
    """Raise ConfigError if the model insists on what this host offers and does not give."""
    names = sorted(Specification.parse(model).added & hidden)
    if names:
        raise ConfigError(
            f"this host's KVM does not give {', '.join(names)} to a machine with "
            f"{option('irqchip', irqchip)}",
            hint="leave it out"
            + (
                f", or have the local APICs in the kernel: {option('irqchip', 'kernel')}"
                * (irqchip == "user")
            ),
        )


def _selected(entries: Sequence[CpuidEntry], model: str, irqchip: str) -> list[CpuidEntry]:
    # A guest that finds an APIC in CPUID expects one to be there.
    return select(entries, model, remove=LAPIC_FEATURES if irqchip == "none" else ())


def _unpacked(packed: bytearray) -> list[CpuidEntry]:
    return [CpuidEntry(*entry) for entry in _CPUID_ENTRY.iter_unpack(packed[_CPUID_HEAD.size :])]


def _packed(entries: Sequence[CpuidEntry]) -> bytes:
    head = _CPUID_HEAD.pack(len(entries), 0)
    return head + b"".join(_CPUID_ENTRY.pack(*entry) for entry in entries)
