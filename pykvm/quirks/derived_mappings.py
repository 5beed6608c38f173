"""Whether KVM may keep a translation that page tables no longer have (the quirk stale-mappings).

To make KVM forget all of them takes longer than the rest of a reset, so it is asked whether it has
any.  Its statistics count the pages that it has made to mirror the guest's page tables
(`mmu_cache_miss`, arch/x86/kvm/mmu/mmu.c): the root alone mirrors nothing yet, and a guest without
a ring 3 has no more.
"""

from __future__ import annotations

import os

from pykvm.errors import KVMError
from pykvm.kvm import uapi
from pykvm.quirks import found, stale_mappings
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.descriptor import Descriptor
    from pykvm.kvm import VM

__all__ = ["DerivedMappings"]

_COUNTER = b"mmu_cache_miss"
_ROOT = 1


class DerivedMappings:
    """What one VM has derived from its guest's page tables, on a host that has the quirk."""

    def __init__(self, vm: VM) -> None:
        self._has_quirk = bool(found([stale_mappings.QUIRK]))
        self._file: Descriptor | None = None
        self._offset = 0
        # The counter when KVM last knew nothing.
        self._nothing = 0
        if self._has_quirk:
            try:
                self._file = vm.get_stats_fd()
                self._offset = _offset_of(self._file.fileno())
            except (KVMError, LookupError):
                self._file = None

    @property
    def are_counted(self) -> bool:
        """Whether there are none but those that `may_be_stale` knows of."""
        return self._file is not None

    def may_be_stale(self) -> bool:
        """Whether a change of page tables has to be told to KVM; where it cannot be known, yes."""
        if not self._has_quirk:
            return False
        return self._file is None or self._count() > self._nothing + _ROOT

    def forgotten(self) -> None:
        """KVM has forgotten all of them."""
        if self._file is not None:
            self._nothing = self._count()

    def _count(self) -> int:
        assert self._file is not None
        return int.from_bytes(os.pread(self._file.fileno(), 8, self._offset), "little")


def _offset_of(fd: int) -> int:
    """Where in a file of statistics the counter is (api.rst, 4.133).  Raises LookupError."""
    header = uapi.kvm_stats_header.unpack(os.pread(fd, uapi.kvm_stats_header.size, 0))
    step = uapi.kvm_stats_desc.size + header.name_size
    descriptors = os.pread(fd, header.num_desc * step, header.desc_offset)
    for at in range(0, len(descriptors), step):
        descriptor = uapi.kvm_stats_desc.unpack(descriptors[at : at + step])
        if descriptor.name.partition(b"\0")[0] == _COUNTER:
            return int(header.data_offset + descriptor.offset)
    raise LookupError(_COUNTER)
