"""Which guest-physical addresses are memory, and the slots that KVM sees them by."""

from __future__ import annotations

import os
from _thread import RLock
from bisect import bisect_right
from contextlib import suppress
from errno import EINVAL

from pykvm.errors import ClosedError, ConfigError, KVMError, MemoryRangeError, StateError
from pykvm.kvm.constants import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from pykvm.memory.backing import check_affordable, map_memory
from pykvm.memory.pages import PAGE_SIZE
from pykvm.typed import TYPE_CHECKING, Protocol
from pykvm.values.checks import buffer, flag, integer, show, text, wrong
from pykvm.values.frozen import NamedTuple
from pykvm.values.subscribers import Subscribers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Literal

    from typing_extensions import Buffer, Self

    from pykvm.memory.backing import Backing, HostMapping, HugePages

__all__ = [
    "ADDRESS_LIMIT",
    "Region",
    "RegionMap",
    "SlotHost",
    "bytes_of",
    "check_placement",
    "flat",
    "free_slot",
    "merge_log",
    "set_slot",
]

# A physical address has at most 52 bits (SDM 3A 4.1.4), a slot at most KVM_MEM_MAX_NR_PAGES pages.
ADDRESS_LIMIT = 1 << 52
SLOT_LIMIT = ((1 << 31) - 1) * PAGE_SIZE

_IN_MEMORY = ("anonymous", "memfd")


class SlotHost(Protocol):
    """What memory needs of a VM."""

    def set_user_memory_region(
        self,
        slot: int,
        flags: int,
        guest_phys_addr: int,
        memory_size: int,
        userspace_addr: int,
        /,
    ) -> object:
        """KVM_SET_USER_MEMORY_REGION: make a slot or change its flags; size 0 deletes it."""

    def merge_dirty_log(self, slot: int, pages: Any, /) -> object:
        """Mark in a struct pykvm_pages what the guest has written since the last call."""


class Placed(Protocol):
    """What has a place among guest-physical addresses."""

    @property
    def start(self) -> int: ...

    @property
    def end(self) -> int: ...


class Region(NamedTuple):
    """A stretch of guest-physical memory: one mapping of this process, one KVM slot.

    `start` and `size` are in bytes, multiples of 4096.  `backing` says what holds the bytes:
    ``"anonymous"``, ``"memfd"`` or a path.
    """

    name: str
    start: int
    size: int
    kind: Literal["ram", "rom"]
    backing: str
    slot: int
    mapping: HostMapping
    shared: bool = True
    huge_pages: HugePages = False

    @property
    def end(self) -> int:
        """The first address after the region."""
        return self.start + self.size

    @property
    def key(self) -> tuple[str, int, int, Literal["ram", "rom"]]:
        """What makes it a certain region of a frozen image."""
        return self.name, self.start, self.size, self.kind

    @property
    def readonly(self) -> bool:
        """Whether the guest may only read it; its writes then exit as MMIO."""
        return self.kind == "rom"

    @property
    def host_address(self) -> int:
        """Where the region starts in this process (HVA)."""
        return self.mapping.address

    @property
    def fd(self) -> int | None:
        """Its memfd, to share with another process; None for other backings."""
        return self.mapping.fd

    def __str__(self) -> str:
        return f"{self.name} {self.start:#x}-{self.end:#x}"

    def __repr__(self) -> str:
        return f"<Region {self}, {self.kind}, slot {self.slot}, {self.backing}>"


class RegionMap:
    """The regions of one machine's memory, and the VM that has them as slots.

    `GuestMemory` is this and the access to the bytes.
    """

    def __init__(self, *, overcommit: bool = False) -> None:
        self._overcommit = flag("overcommit", overcommit)
        self._lock = RLock()
        self._vm: SlotHost | None = None
        self._closed = False
        # What `remove` is about.
        self._leaving: Region | None = None
        # Whether KVM logs what the guest writes: from the first freeze on.
        self._logging = False
        self._adding = Subscribers()
        # Readers in other threads see either the old or the new table, never half a change.
        self._table: tuple[tuple[Region, ...], list[int], list[int]] = ((), [], [])

    def on_add(self, callback: Callable[[str, int, int, bool], object]) -> Callable[[], None]:
        """Call ``callback(name, start, size, is_rom)`` before memory is added.

        Returns what ends that.  What it raises comes out of `add_ram` and `add_rom`, and the memory
        is not added.
        """
        return self._adding.add(callback)

    @property
    def regions(self) -> tuple[Region, ...]:
        """Every region, lowest address first."""
        return self._table[0]

    @property
    def size(self) -> int:
        """How many bytes all regions hold together."""
        return sum(region.size for region in self.regions)

    def add_ram(
        self,
        start: int,
        size: int,
        *,
        name: str = "ram",
        backing: Backing = "anonymous",
        shared: bool = True,
        huge_pages: HugePages = False,
    ) -> Region:
        """Add `size` bytes of RAM at `start`; a VM that is attached has them at once.

        `backing` is ``"anonymous"`` (zeroed, gone at close), ``"memfd"`` (the same, with a file
        descriptor `Region.fd` that another process can map) or the path of a file at least `size`
        bytes long: with `shared` the guest's writes reach the file, without they stay private
        to this memory (copy on write).  The file must not be shortened while it is mapped: the
        kernel answers an access past its end with SIGBUS.

        `huge_pages` is True for pages reserved in /proc/sys/vm/nr_hugepages or ``"transparent"``
        for madvise(MADV_HUGEPAGE).

        Raises ConfigError (zero, negative or unaligned, overlapping another region), BusConflict (a
        device of the machine is there), HostError (not enough memory, no such file, no huge pages),
        KVMError (KVM refused the slot).
        """
        return self._add(start, size, name, "ram", backing, shared=shared, huge_pages=huge_pages)

    def add_rom(
        self, start: int, data: Buffer, *, name: str = "rom", size: int | None = None
    ) -> Region:
        """Add memory that holds `data` and that the guest may only read (KVM_MEM_READONLY).

        `size` is the data's own, rounded up to 4096, unless given; what `data` leaves is zero.
        Raises as `add_ram` does.
        """
        content = flat(data)
        if size is None:
            size = -(-len(content) // PAGE_SIZE) * PAGE_SIZE
        if len(content) > integer(f"{name}: size", size):
            raise ConfigError(f"{name}: {len(content):#x} bytes of data do not fit in {size:#x}")
        return self._add(start, size, name, "rom", "anonymous", content=content)

    def remove(self, region: Region) -> None:
        """Take `region` from the guest and give its memory back.

        Raises ConfigError if it is not one of `regions`, KVMError if KVM refused (it then stays).
        """
        with self._lock:
            self._check_open()
            if not any(region is known for known in self.regions):
                raise ConfigError(f"{show(region)} is not (or no longer) part of this guest memory")
            # Without its slot it is no memory of the guest's any more, whatever comes in between.
            self._leaving = region
            if self._vm is not None:
                _delete_slot(self._vm, region)
            self._set_regions([other for other in self.regions if other is not region])
            self._leaving = None
            region.mapping.close()

    def _settle(self) -> None:
        """Complete a `remove` that an exception has interrupted."""
        region = self._leaving
        if region is not None and any(region is known for known in self.regions):
            self.remove(region)

    def attach(self, vm: SlotHost) -> None:
        """Give every region, now and in future, to `vm` as a memory slot.

        Raises StateError if a VM is attached already; KVMError if KVM refuses a slot: then none
        of them is left.
        """
        with self._lock:
            self._check_open()
            if self._vm is not None:
                raise StateError("this guest memory is attached to a VM already")
            try:
                for region in self.regions:
                    set_slot(vm, region, log=self._logging)
            except BaseException:
                for region in self.regions:
                    _delete_slot(vm, region)
                raise
            self._vm = vm

    def detach(self) -> None:
        """Delete the slots from the VM; harmless where none is attached or the VM is closed."""
        with self._lock:
            if self._vm is not None and self._logging:
                self._keep_log(self._vm)
            self._delete_slots()

    def _keep_log(self, vm: SlotHost) -> None:
        """Mark what the guest has written, before the log goes."""
        try:
            for region in self.regions:
                merge_log(vm, region)
        except (ClosedError, KVMError):
            for region in self.regions:
                region.mapping.mark_touched()

    def _delete_slots(self) -> None:
        if self._vm is not None:
            with suppress(ClosedError):
                for region in self.regions:
                    _delete_slot(self._vm, region)
        self._vm = None

    def close(self) -> None:
        """Detach and unmap everything.  Closing twice is harmless."""
        with self._lock:
            regions = self.regions
            self._closed = True
            self._adding.clear()
            try:
                self._delete_slots()
            finally:
                self._set_regions([])
                for region in regions:
                    region.mapping.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def region_at(self, address: int) -> Region | None:
        """The region that holds `address`, or None."""
        if type(address) is not int:
            address = integer("address", address)
        regions, starts, ends = self._table
        index = bisect_right(starts, address) - 1
        return regions[index] if index >= 0 and address < ends[index] else None

    def covers(self, address: int, length: int) -> bool:
        """Whether every one of `length` bytes at `address` is memory."""
        address = integer("address", address)
        end = address + integer("length", length, 0)
        return self._hole(address, end) == end

    def is_ram(self, address: int, length: int) -> bool:
        """Whether every one of `length` bytes at `address` is memory that the guest can write."""
        end = address + length
        while address < end:
            region = self.region_at(address)
            if region is None or region.readonly:
                return False
            address = region.end
        return True

    def __repr__(self) -> str:
        state = "closed" if self._closed else self._layout()
        return f"<GuestMemory: {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # The slots must go before the mapping does: the kernel would let the guest write to
        # whatever this process maps at that address next.
        with suppress(Exception):
            self.close()

    def _add(
        self,
        start: int,
        size: int,
        name: str,
        kind: Literal["ram", "rom"],
        backing: Backing,
        *,
        shared: bool = True,
        huge_pages: HugePages = False,
        content: memoryview | None = None,
    ) -> Region:
        with self._lock:
            self._check_open()
            text("name", name)
            start, size = integer(f"{name}: start", start), integer(f"{name}: size", size)
            check_placement(name, start, size, self.regions)
            flag(f"{name}: shared", shared)
            if not isinstance(backing, str) and not hasattr(backing, "__fspath__"):
                raise wrong(f"{name}: backing", "'anonymous', 'memfd' or a path", backing)
            text(f"{name}: backing", os.fsdecode(backing))
            self._adding(name, start, size, kind == "rom")
            # What is written to a shared file is the file's, not this host's memory.
            if not self._overcommit and (backing in _IN_MEMORY or not shared):
                held = sum(region.size for region in self.regions if region.backing in _IN_MEMORY)
                check_affordable(held + size)
            mapping = map_memory(size, backing, shared=shared, huge_pages=huge_pages)
            regions = self.regions
            slot = free_slot(regions)
            region = Region(
                name, start, size, kind, str(backing), slot, mapping, shared, huge_pages
            )
            try:
                if content is not None:
                    mapping.pages.store(0, content, len(content))
                if self._vm is not None:
                    set_slot(self._vm, region, log=self._logging)
                self._set_regions([*regions, region])
            except BaseException:
                # Its slot goes before the mapping: the kernel would let the guest write to what
                # this process maps there next.
                self._set_regions(list(regions))
                if self._vm is not None:
                    _delete_slot(self._vm, region)
                mapping.close()
                raise
            return region

    def _set_regions(self, regions: list[Region]) -> None:
        ordered = sorted(regions, key=lambda region: region.start)
        starts, ends = [region.start for region in ordered], [region.end for region in ordered]
        self._table = (tuple(ordered), starts, ends)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this guest memory is closed")

    def _spans(self, address: int, length: int) -> list[memoryview]:
        """The bytes at `address` as views to read, in order."""
        if type(address) is not int or type(length) is not int:
            address, length = integer("address", address), integer("length", length)
        if length <= 0:
            return self._no_span(length)
        regions, starts, ends = self._table
        index = bisect_right(starts, address) - 1
        if index >= 0 and address + length <= ends[index]:
            return [regions[index].mapping.slice(address - starts[index], length)]
        parts = self._parts(address, length, rom=True)
        return [mapping.slice(offset, size) for mapping, offset, size in parts]

    def _parts(self, address: int, length: int, *, rom: bool) -> list[tuple[HostMapping, int, int]]:
        """Where the bytes at `address` are: mapping, offset and length, in order.

        Without `rom` all of them must be RAM.
        """
        if type(address) is not int or type(length) is not int:
            address, length = integer("address", address), integer("length", length)
        if length <= 0:
            self._no_span(length)
            return []
        regions, starts, _ = self._table
        index = bisect_right(starts, address) - 1
        end = address + length
        position = address
        parts: list[tuple[HostMapping, int, int]] = []
        while position < end:
            region = regions[index] if 0 <= index < len(regions) else None
            if region is None or not region.start <= position < region.end:
                raise self._out_of_range(address, length)
            if not rom and region.readonly:
                raise ConfigError(
                    f"{position:#x} lies in read-only memory ({region})",
                    hint="the guest cannot write there; write(..., rom=True) does it all the same",
                )
            taken = min(end, region.end) - position
            parts.append((region.mapping, position - region.start, taken))
            position += taken
            index += 1
        return parts

    def _no_span(self, length: int) -> list[memoryview]:
        self._check_open()
        if length < 0:
            raise ConfigError(f"a length cannot be negative: {length}")
        return [memoryview(bytearray())]

    def _hole(self, address: int, end: int) -> int:
        """The first address in ``address:end`` that is not memory, else `end`."""
        while address < end and (region := self.region_at(address)) is not None:
            address = region.end
        return min(address, end)

    def _out_of_range(self, address: int, length: int) -> MemoryRangeError:
        self._check_open()
        hole = self._hole(address, address + length)
        where = f"no guest memory at {hole:#x}"
        if length > 1:
            where += f" ({length:#x} bytes from {address:#x} on asked for)"
        message = f"{where}; there is {self._layout()}"
        return MemoryRangeError(message, address=address, length=length)

    def _layout(self) -> str:
        return ", ".join(str(region) for region in self.regions) or "no region"


def flat(data: Buffer) -> memoryview:
    """`data` as a sequence of bytes, copied only where it is not one already."""
    view = buffer("data", data)
    return bytes_of(view) if view.c_contiguous else memoryview(view.tobytes())


def bytes_of(view: memoryview) -> memoryview:
    """The contiguous `view` as a sequence of bytes."""
    # memoryview.cast refuses a view without bytes.
    return view.cast("B") if view.nbytes else memoryview(bytearray())


def check_placement(name: str, start: int, size: int, regions: Sequence[Placed]) -> None:
    """Raise ConfigError unless a region may stand at ``start:start+size``."""
    asked = f"{name}: {size:#x} bytes at {start:#x}"
    if size <= 0:
        raise ConfigError(f"{asked}: a region needs at least one page ({PAGE_SIZE} bytes)")
    if start % PAGE_SIZE or size % PAGE_SIZE:
        raise ConfigError(f"{asked}: start and size must be multiples of {PAGE_SIZE:#x}")
    if start < 0 or start + size > ADDRESS_LIMIT:
        raise ConfigError(f"{asked}: physical addresses are 0 to {ADDRESS_LIMIT - 1:#x}")
    if size > SLOT_LIMIT:
        raise ConfigError(f"{asked}: one region holds at most {SLOT_LIMIT:#x} bytes")
    for other in regions:
        if start < other.end and other.start < start + size:
            raise ConfigError(f"{name} {start:#x}-{start + size:#x} overlaps {other}")


def free_slot(regions: Sequence[Region]) -> int:
    """The lowest number that no slot has."""
    taken = {region.slot for region in regions}
    return next(slot for slot in range(len(taken) + 1) if slot not in taken)


def set_slot(vm: SlotHost, region: Region, *, log: bool) -> None:
    """Give `region` to `vm`, or change whether KVM logs what the guest writes there."""
    flags = KVM_MEM_LOG_DIRTY_PAGES if log else 0
    if region.readonly:
        flags = KVM_MEM_READONLY
    vm.set_user_memory_region(region.slot, flags, region.start, region.size, region.host_address)


def _delete_slot(vm: SlotHost, region: Region) -> None:
    flags = KVM_MEM_READONLY if region.readonly else 0
    try:
        vm.set_user_memory_region(region.slot, flags, region.start, 0, region.host_address)
    except KVMError as error:
        # There is no such slot: an exception came after it was deleted, or before it was made.
        if error.errno != EINVAL:
            raise


def merge_log(vm: SlotHost, region: Region) -> None:
    """Mark what the guest has written to `region`, by KVM's log."""
    if not region.readonly:
        vm.merge_dirty_log(region.slot, region.mapping.pages.core)
