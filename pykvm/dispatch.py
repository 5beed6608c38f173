"""The bus as the run loop wants it: a map in C, and the devices' methods by slot.

C finds the range that an access lies in and returns its slot, by which Python finds the device's
method: so an exit costs one look-up in C and one in Python, however many devices there are.
"""

from __future__ import annotations

import struct
import threading
from collections import deque
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any, Protocol

from pykvm._core import ffi, lib
from pykvm.bus import Space
from pykvm.errors import KVMError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from pykvm.bus import Bus, Range

    Sink = Callable[[Sequence[tuple[int, int, int]]], None]

__all__ = ["Coalescing", "Dispatch"]

# From so many collected writes on, the kernel's own collecting pays for what it costs.
MANY = 2048

_WRITE = struct.Struct("<QQQ")  # struct pykvm_write
_SPACE = {Space.PIO: lib.PYKVM_PIO, Space.MMIO: lib.PYKVM_MMIO}


class Coalescing(Protocol):
    """The part of a VM that lets the kernel collect writes (KVM_CAP_COALESCED_MMIO, _PIO)."""

    def register_coalesced_mmio(self, addr: int, size: int, *, pio: bool = False) -> None:
        """KVM_REGISTER_COALESCED_MMIO."""

    def unregister_coalesced_mmio(self, addr: int, size: int, *, pio: bool = False) -> None:
        """KVM_UNREGISTER_COALESCED_MMIO."""


class Readers(dict[int, "Callable[[int, int], int]"]):
    """How the range of a slot is read.

    Another thread may take a device away between the look-up in C and the one here: then nobody is
    there.
    """

    def __missing__(self, slot: int) -> Callable[[int, int], int]:
        return _float


class Writers(dict[int, "Callable[[int, int, int], None]"]):
    """How the range of a slot is written; see `Readers`."""

    def __missing__(self, slot: int) -> Callable[[int, int, int], None]:
        return _drop


class Dispatch:
    """Who answers what, in the form that the run loop uses.

    `reads` and `writes` say by slot how that range is read and written, `sinks` who takes its
    writes in bulk.  `map` is the C side; `rebuild` after the bus has changed.
    """

    def __init__(self, bus: Bus, *, vm: Coalescing | None = None, shared: bool = False) -> None:
        """With `vm`, the kernel collects the writes of sinks by itself once `coalesce` is called.

        `shared` is for several vCPUs: their threads enter a device one at a time.
        """
        self.bus = bus
        self.lock: AbstractContextManager[object] = threading.RLock() if shared else nullcontext()
        self._shared = shared
        self.reads = Readers()
        self.writes = Writers()
        self.sinks: dict[int, Sink] = {}
        self.map: Any = None
        self._vm = vm
        self._zones: set[tuple[int, int, bool]] = set()
        self._allowed = False
        self._sunk = 0
        self._waiting: deque[tuple[Sink, list[tuple[int, int, int]]]] = deque()
        self.rebuild()

    def rebuild(self) -> None:
        """Follow the bus.  The vCPUs have to be given the new map, and keep the old one until then.

        Whatever a guest makes of its bus, there are no more maps than two a vCPU.
        """
        new = ffi.gc(lib.pykvm_map_new(), lib.pykvm_map_free)
        if new == ffi.NULL:
            raise MemoryError("the map of ports and addresses")
        for range_ in self.bus.ranges:
            result = lib.pykvm_map_add(
                new,
                _SPACE[range_.space],
                range_.first,
                range_.last,
                range_.slot,
                range_.sink is not None,
            )
            if result:
                raise MemoryError("the map of ports and addresses")
            self.reads[range_.slot] = self._locked(range_.read)
            self.writes[range_.slot] = self._locked(range_.write)
            if range_.sink is not None:
                self.sinks[range_.slot] = self._locked(range_.sink)
        self.map = new
        for methods in (self.reads, self.writes, self.sinks):
            for slot in methods.keys() - self.bus.by_slot.keys():
                del methods[slot]
        self._set_zones()

    def _locked(self, method: Callable[..., Any]) -> Callable[..., Any]:
        if not self._shared:
            return method
        lock = self.lock

        def locked(*arguments: Any) -> Any:
            with lock:
                return method(*arguments)

        return locked

    def coalesce(self, allowed: bool) -> None:
        """Say whether the kernel may collect the writes of sinks without an exit.

        It does so from the moment that there were many: a zone makes each write ten times as
        cheap and the end of the VM milliseconds slower.
        """
        self._allowed = allowed
        self._set_zones()

    def _set_zones(self) -> None:
        if self._vm is None:
            return
        zones = set()
        if self._allowed and self._sunk >= MANY:
            zones = {_zone(range_) for range_ in self.bus.ranges if range_.sink}
        for address, size, pio in self._zones - zones:
            self._vm.unregister_coalesced_mmio(address, size, pio=pio)
            self._zones.discard((address, size, pio))
        for address, size, pio in zones - self._zones:
            # The kernel has room for a limited number; what is left exits, and C sinks it.
            with suppress(KVMError):
                self._vm.register_coalesced_mmio(address, size, pio=pio)
                self._zones.add((address, size, pio))

    def deliver(self, core: Any) -> None:
        """Hand the writes that `core` has collected to their sinks, in order.

        What a sink raises passes; the writes behind it wait for the next call.
        """
        count = core.sunk
        if count:
            if self._sunk < MANY <= self._sunk + count:
                self._sunk = MANY
                self._set_zones()
            self._sunk += count
            data = memoryview(ffi.buffer(core.writes, count * _WRITE.size)[:])
            batches = ffi.unpack(core.batches, core.sunk_batches)
            core.sunk = core.sunk_batches = 0
            at = 0
            for batch in batches:
                end = at + batch.count * _WRITE.size
                sink = self.sinks.get(batch.slot)
                if sink is not None:  # else another thread has taken it away meanwhile
                    self._waiting.append((sink, list(_WRITE.iter_unpack(data[at:end]))))
                at = end
        while self._waiting:
            sink, writes = self._waiting.popleft()
            sink(writes)

    @property
    def waiting(self) -> bool:
        """Whether an exception kept writes from their sinks."""
        return bool(self._waiting)


def _float(offset: int, size: int) -> int:
    return (1 << 8 * size) - 1


def _drop(offset: int, size: int, value: int) -> None:
    pass


def _zone(range_: Range) -> tuple[int, int, bool]:
    return range_.first, range_.last - range_.first + 1, range_.space is Space.PIO
