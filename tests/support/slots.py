"""A VM that is its memory slots and nothing else."""

from __future__ import annotations

from typing import Any

from pykvm._core import lib
from pykvm.errors import ClosedError, KVMError
from pykvm.memory import GuestMemory

__all__ = ["FakeVM"]

LOG, READONLY = 1, 2
PAGE = 4096


class FakeVM:
    """Keeps the slots it is given, and logs what its guest writes; refuses the slot `refused`."""

    def __init__(self, refused: int | None = None) -> None:
        self.slots: dict[int, tuple[int, int, int, int]] = {}
        self.refused = refused
        self.closed = False
        #: How often a slot was deleted.
        self.deleted = 0
        self._logs: dict[int, set[int]] = {}

    def set_user_memory_region(
        self, slot: int, flags: int, start: int, size: int, host: int
    ) -> None:
        self._check()
        if size == 0:
            if slot not in self.slots:
                raise KVMError("KVM_SET_USER_MEMORY_REGION", 22)
            del self.slots[slot]
            self._logs.pop(slot, None)
            self.deleted += 1
            return
        if slot == self.refused:
            raise KVMError("KVM_SET_USER_MEMORY_REGION", 22)
        for other, (_, first, length, _) in self.slots.items():
            if other != slot and first < start + size and start < first + length:
                raise KVMError("KVM_SET_USER_MEMORY_REGION", 17)
        if flags & LOG:
            self._logs.setdefault(slot, set())
        self.slots[slot] = (flags, start, size, host)

    def merge_dirty_log(self, slot: int, pages: Any) -> None:
        self._check()
        if slot not in self._logs:
            raise KVMError("KVM_GET_DIRTY_LOG", 2)
        for page in self._logs[slot]:
            lib.pykvm_mark(pages, page * PAGE, 1)
        self._logs[slot].clear()

    def guest_writes(self, memory: GuestMemory, address: int, data: bytes) -> None:
        """Write as a guest does: through the mapping, and into the log of the slot."""
        for position, byte in enumerate(data, address):
            region = memory.region_at(position)
            assert region is not None
            assert not region.readonly
            offset = position - region.start
            region.mapping.slice(offset, 1)[0] = byte
            if self.slots[region.slot][0] & LOG:
                self._logs[region.slot].add(offset // PAGE)

    def _check(self) -> None:
        if self.closed:
            raise ClosedError("the VM is closed")
