"""The bus as the run loop wants it: a map in C, and the devices' methods by slot.

C finds the range that an access lies in and returns its slot, by which Python finds the device's
method: so an exit costs one look-up in C and one in Python, however many devices there are.
"""

from __future__ import annotations

from _thread import RLock
from collections import deque
from contextlib import nullcontext, suppress
from errno import ENOMEM
from functools import partial

from pykvm._core import ffi, lib, owned
from pykvm.bus import Space
from pykvm.bus.published import Published, Shared, as_accesses, as_writes
from pykvm.errors import KVMError, resource_error
from pykvm.typed import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from typing import Any

    from pykvm.bus import Bus, Device, Range
    from pykvm.bus.published import Access

    _Call = Callable[[], None]
    TakeWrites = Callable[[Sequence[tuple[int, int, int]]], None]

__all__ = ["Coalescing", "Dispatch"]

# From so many collected writes on, the kernel's own collecting pays for what it costs.
MANY = 2048

_SPACE = {Space.PIO: lib.PYKVM_PIO, Space.MMIO: lib.PYKVM_MMIO}


class Coalescing(Protocol):
    """The part of a VM that lets the kernel collect writes (KVM_CAP_COALESCED_MMIO, _PIO)."""

    def register_coalesced_mmio(self, addr: int, size: int, *, pio: bool = False) -> None:
        """KVM_REGISTER_COALESCED_MMIO."""

    def unregister_coalesced_mmio(self, addr: int, size: int, *, pio: bool = False) -> None:
        """KVM_UNREGISTER_COALESCED_MMIO."""


class Readers(dict[int, "Callable[[int, int], int]"]):
    """How the range of a slot is read.

    Another thread may remove a device between the look-up in C and the one here: then nothing
    answers there.
    """

    def __missing__(self, slot: int) -> Callable[[int, int], int]:
        return _float


class Writers(dict[int, "Callable[[int, int, int], None]"]):
    """How the range of a slot is written; see `Readers`."""

    def __missing__(self, slot: int) -> Callable[[int, int, int], None]:
        return _drop


class Dispatch:
    """Who answers what, in the form that the run loop uses.

    `reads` and `writes` say by slot how that range is read and written, `posted` who takes its
    writes in bulk.  `map` is the C side; `rebuild` after the bus has changed.  `collected` is what
    waits in C, and how C knows guest time.
    """

    def __init__(self, bus: Bus, *, vm: Coalescing | None = None, shared: bool = False) -> None:
        """With `vm`, the kernel collects posted writes by itself once `coalesce` is called.

        `shared` is for several vCPUs: their threads enter a device one at a time.
        """
        self.bus = bus
        self.lock: AbstractContextManager[object] = RLock() if shared else nullcontext()
        self._shared = shared
        self.reads = Readers()
        self.writes = Writers()
        self.posted: dict[int, TakeWrites] = {}
        self.collected = Shared()
        self.map: Any = None
        # What a device has published, by its identity, and who is told of posted accesses, by tag.
        self._published: dict[int, tuple[Device, Published]] = {}
        self._replays: dict[int, Callable[[Sequence[Access]], list[_Call]]] = {}
        # The tags of those whose writes are posted whatever comes.
        self._always: set[int] = set()
        self._vm = vm
        self._zones: set[tuple[int, int, bool]] = set()
        self._allowed = False
        self._sunk = 0
        self._waiting: deque[_Call] = deque()
        self.rebuild()

    def rebuild(self) -> None:
        """Follow the bus.  The vCPUs have to be given the new map, and keep the old one until then.

        Whatever a guest makes of its bus, there are no more maps than two a vCPU.
        """
        new = owned(lib.pykvm_map_new, lib.pykvm_map_free, self.collected.core)
        if new == ffi.NULL:
            raise resource_error("no room for the map of ports and addresses", ENOMEM)
        self._publish()
        for range_ in self.bus.ranges:
            result = lib.pykvm_map_add(
                new,
                _SPACE[range_.space],
                range_.first,
                range_.last,
                range_.slot,
                range_.posted is not None,
                self._table(range_.device),
                range_.offset,
            )
            if result:
                raise resource_error("no room for the map of ports and addresses", ENOMEM)
            self.reads[range_.slot] = self._locked(range_.read)
            self.writes[range_.slot] = self._locked(range_.write)
            if range_.posted is not None:
                self.posted[range_.slot] = self._locked(range_.posted)
        self.map = new
        for methods in (self.reads, self.writes, self.posted):
            for slot in methods.keys() - self.bus.by_slot.keys():
                del methods[slot]
        self._set_zones()

    def _publish(self) -> None:
        """Let devices publish that have come, and no longer those that have gone."""
        devices = {
            id(range_.device): range_.device
            for range_ in self.bus.ranges
            if hasattr(range_.device, "publish")
        }
        for identity in self._published.keys() - devices.keys():
            _, published = self._published.pop(identity)
            published.withdraw()
            del self._replays[published.tag]
            self._always.discard(published.tag)
        for identity in devices.keys() - self._published.keys():
            device = devices[identity]
            ends = [
                range_.offset + range_.last - range_.first + 1
                for range_ in self.bus.ranges
                if range_.device is device
            ]
            published = Published(self.collected, min(max(ends), 1 << 16))
            self._replays[published.tag] = _replay_of(device)
            self._published[identity] = device, published
            device.publish(published)
            if published.always:
                self._always.add(published.tag)

    def _table(self, device: Device) -> Any:
        known = self._published.get(id(device))
        return ffi.NULL if known is None or known[1].core is None else known[1].core

    def _locked(self, method: Callable[..., Any]) -> Callable[..., Any]:
        if not self._shared:
            return method
        lock = self.lock

        def locked(*arguments: Any) -> Any:
            with lock:
                return method(*arguments)

        return locked

    def coalesce(self, allowed: bool) -> None:
        """Say whether the kernel may collect posted writes without an exit.

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
            zones = {_zone(range_) for range_ in self.bus.ranges if range_.posted}
            zones |= {zone for range_ in self.bus.ranges for zone in self._posted_zones(range_)}
        for address, size, pio in self._zones - zones:
            self._vm.unregister_coalesced_mmio(address, size, pio=pio)
            self._zones.discard((address, size, pio))
        if zones:
            self.collected.core.coalesces = 1
        for address, size, pio in zones - self._zones:
            # The kernel has room for a limited number; what is left exits, and C collects it.
            with suppress(KVMError):
                self._vm.register_coalesced_mmio(address, size, pio=pio)
                self._zones.add((address, size, pio))

    def _posted_zones(self, range_: Range) -> list[tuple[int, int, bool]]:
        """The zones of registers whose writes are posted whatever comes."""
        known = self._published.get(id(range_.device))
        addresses = [
            range_.first + offset - range_.offset for offset in (known[1].always if known else ())
        ]
        return [
            (address, 1, range_.space is Space.PIO)
            for address in addresses
            if range_.first <= address <= range_.last
        ]

    def deliver(self) -> None:
        """Hand what was collected to the devices, in order.

        What one of them raises comes out; what follows it waits for the next call.
        """
        with self.lock:
            count = 0
            for slot, data in self.collected.take():
                # Neither, if another thread has taken it away meanwhile.
                if slot in self._replays:
                    accesses = as_accesses(data)
                    count += len(accesses) if slot in self._always else 0
                    self._waiting.extend(self._replays[slot](accesses))
                elif slot in self.posted:
                    writes = as_writes(data)
                    count += len(writes)
                    self._waiting.append(partial(self.posted[slot], writes))
            if count:
                self._sunk += count
                if self._sunk - count < MANY <= self._sunk:
                    self._set_zones()
            while self._waiting:
                self._waiting.popleft()()

    def discard(self) -> None:
        """Forget what was collected: its devices are to be restored to a time before it."""
        with self.lock:
            self.collected.take()
            self._waiting.clear()

    @property
    def waiting(self) -> bool:
        """Whether an exception kept collected accesses from their devices."""
        return bool(self._waiting) or self.collected.waiting


def _replay_of(device: Device) -> Callable[[Sequence[Access]], list[_Call]]:
    """The calls that hand posted accesses to a device: one for all, or one each."""
    replay: Callable[[Sequence[Access]], None] | None = getattr(device, "replay", None)
    if replay is not None:
        return lambda accesses: [partial(replay, accesses)]
    write: Callable[[int, int, int], None] = getattr(device, "write", _drop)
    return lambda accesses: [
        partial(write, offset, size, value) for offset, size, read, value, _ in accesses if not read
    ]


def _float(offset: int, size: int) -> int:
    return (1 << 8 * size) - 1


def _drop(offset: int, size: int, value: int) -> None:
    pass


def _zone(range_: Range) -> tuple[int, int, bool]:
    return range_.first, range_.last - range_.first + 1, range_.space is Space.PIO
