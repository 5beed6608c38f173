"""Snapshots in files: what is in one, and `Snapshot.load`.

What is in such a file, beside what `pykvm.savefile` says:

==========  ===================================================================================
section     what is there
==========  ===================================================================================
machine     a `SavedRecord` as JSON: vCPUs, devices, guest time, the host, and what made the machine
symbols     the guest's, a line each
fw_cfg      the items of the device of that name, one after the other; `machine` has their sizes
regions     what memory there is, a `RegionRecord` each
memory.N    the region of that number, page by page
==========  ===================================================================================

A difference has of `memory.N` the pages that its parent has otherwise.
"""

from __future__ import annotations

from contextlib import ExitStack

from pykvm.bus import Placement, Space
from pykvm.errors import ConfigError, LoadError
from pykvm.host.record import HostRecord  # noqa: TC001  `decode` finds it by its name
from pykvm.machine.known_states import import_states
from pykvm.machine.saved_guest import (
    EntryRecord,
    GuestRecord,
    symbols_from_text,
)
from pykvm.machine.snapshot import MachineState, Origin, Snapshot
from pykvm.memory.image import MemoryImage, Section
from pykvm.savefile import SavedFile, parse_json
from pykvm.typed import TYPE_CHECKING
from pykvm.values.state import State, decode

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, TypeVar

    from pykvm.boot import Entry
    from pykvm.boot.symbols import Symbol, Symbols
    from pykvm.devices.fw_cfg import Contents
    from pykvm.values.state import U16, U64
    from pykvm.vcpu.saved import VcpuState
    from pykvm.x86.state import CpuState

    S = TypeVar("S", bound=State)

__all__ = [
    "RegionRecord",
    "SavedRecord",
    "cpu_state",
    "load",
    "read_record",
    "read_regions",
]

#: How long a chain of differences may be.
_CHAIN = 64
_MOST_VCPUS = 4096
_NANOSECOND = 1_000_000_000


class RegionRecord(State):
    """A region of guest memory; `kind` is "ram" or "rom"."""

    name: str
    start: U64
    size: U64
    kind: str


class SavedRecord(State):
    """All of a snapshot but its memory and symbols.

    `cpuid` is the table of each vCPU, `taken` nanoseconds since 1970.  `items` and `files` are the
    sizes of what fw_cfg holds, by key and by name.
    """

    machine: MachineState
    guest: GuestRecord
    entry: EntryRecord | None
    host: HostRecord
    cpuid: tuple[bytes, ...]
    taken: U64
    items: tuple[tuple[U16, U64], ...]
    files: tuple[tuple[str, U64], ...]


def load(path: str | os.PathLike[str], *, force: bool) -> Snapshot:
    """See `Snapshot.load`."""
    with ExitStack() as stack:
        files = [stack.enter_context(SavedFile(path))]
        while files[-1].parent is not None:
            if len(files) == _CHAIN:
                raise LoadError(f"{files[0].path}: has more than {_CHAIN} parents")
            files.append(stack.enter_context(files[-1].open_parent()))
        snapshot: Snapshot | None = None
        for file in reversed(files):
            snapshot = _load(file, snapshot, force)
        assert snapshot is not None
        return snapshot


def _load(file: SavedFile, parent: Snapshot | None, force: bool) -> Snapshot:
    record = read_record(file)
    memory = _read_memory(file, None if parent is None else parent.memory)
    contents = _read_contents(file, record)
    snapshot = Snapshot(
        record.machine,
        memory,
        family=object() if parent is None else parent.family,
        guest=record.guest.guest(contents, file.path),
        entry=None if record.entry is None else _entry(file, record, record.entry),
        placements=tuple(_placements(file.path, record.machine)),
        parent=parent,
        cpuid=record.cpuid,
        tsc_movable=record.host.tsc_movable,
    )
    snapshot.taken = record.taken / _NANOSECOND
    snapshot.file = file.path, file.id
    snapshot.origin = Origin(file.path, record.host, force)
    return snapshot


def _state(file: SavedFile, name: str, kind: type[S]) -> S:
    """The state in a section.  Raises LoadError."""
    value = parse_json(file.read(name), f"{file.path}: {name}")
    import_states(value, [kind.__name__])
    return decode(value, kind, where=f"{file.path}: {name}")


def read_record(file: SavedFile) -> SavedRecord:
    """What a file says of a machine, and whether it is of one piece.  Raises LoadError."""
    record = _state(file, "machine", SavedRecord)
    machine, count = record.machine, record.guest.vcpus
    if not (1 <= count <= _MOST_VCPUS and count == len(machine.cpus) == len(record.cpuid)):
        raise LoadError(
            f"{file.path}: {count} vCPUs, states of {len(machine.cpus)} and CPUID tables of "
            f"{len(record.cpuid)}"
        )
    return record


def _placements(path: str, machine: MachineState) -> Iterator[Placement]:
    """Where devices stood; the devices themselves come with the machine."""
    spaces = {space.value: space for space in Space}
    for place in machine.places:
        if place.space not in spaces:
            raise LoadError(f"{path}: {place.name} stands in {place.space!r:.60}")
        irq = None if place.irq < 0 else place.irq
        device = _Elsewhere(place.name)
        yield Placement(device, spaces[place.space], place.first, place.length, place.offset, irq)


class _Elsewhere:
    """In the place of a device that is not in a file; it is on no bus."""

    stateless = True

    def __init__(self, name: str) -> None:
        self.name = name

    def read(self, offset: int, size: int) -> int:
        raise NotImplementedError


def _entry(file: SavedFile, record: SavedRecord, entry: EntryRecord) -> Entry:
    from pykvm.boot import Entry
    from pykvm.boot.symbols import Symbols

    # Those of Linux take as long to unpack as to load all the rest.
    text = file.read_later("symbols")
    symbols: Symbols = Symbols(lambda: _symbols(text), extents=entry.extents)
    # For the guest it is where it goes on that is its start.
    state = cpu_state(record.machine.cpus[0], file.path)
    return Entry(state, entry.ranges, symbols, entry.remarks, entry.suspicions)


def _symbols(text: Callable[[], bytes]) -> Iterable[Symbol]:
    """What is wrong with them counts for nothing: it comes out in the middle of a report."""
    try:
        return symbols_from_text(text())
    except LoadError:
        return ()


def cpu_state(cpu: VcpuState, where: str) -> CpuState:
    """The registers of a saved vCPU.  Raises LoadError."""
    from pykvm.kvm.uapi import kvm_regs, kvm_sregs2
    from pykvm.vcpu.registers import state_of

    if len(cpu.regs) != kvm_regs.size or len(cpu.sregs) != kvm_sregs2.size:
        raise LoadError(f"{where}: the registers of a vCPU have not the size of KVM's")
    return state_of(kvm_sregs2.unpack(cpu.sregs), kvm_regs.unpack(cpu.regs))


def _read_contents(file: SavedFile, record: SavedRecord) -> Contents | None:
    if not (record.items or record.files):
        return None
    from pykvm.devices.fw_cfg import Contents

    data = memoryview(file.read("fw_cfg"))
    sizes = [size for _, size in (*record.items, *record.files)]
    if sum(sizes) != len(data):
        raise LoadError(f"{file.path}: fw_cfg has {len(data)} bytes, and its items {sum(sizes)}")
    items: dict[int, Any] = {}
    files: dict[str, Any] = {}
    for key, size in record.items:
        items[key], data = data[:size], data[size:]
    for name, size in record.files:
        files[name], data = data[:size], data[size:]
    return Contents(items, files)


def read_regions(file: SavedFile) -> tuple[RegionRecord, ...]:
    """The regions of memory.  Raises LoadError."""
    value = parse_json(file.read("regions"), f"{file.path}: regions")
    return decode(value, tuple[RegionRecord, ...], where=f"{file.path}: regions")


def _read_memory(file: SavedFile, parent: MemoryImage | None) -> MemoryImage:
    regions = read_regions(file)
    for number, region in enumerate(regions):
        pages = file.pages(f"memory.{number}")
        if pages.size != region.size or region.kind not in ("ram", "rom"):
            raise LoadError(f"{file.path}: region {region.name!r} is not as its section")
        if parent is None and pages.absent != "zero":
            raise LoadError(f"{file.path}: is a difference to no parent")
    if parent is not None:
        return _patched(file, parent, regions)
    return MemoryImage.from_file(
        file.fileno(),
        [
            Section(one.name, one.start, one.size, one.kind, file.pages(f"memory.{number}").offset)  # type: ignore[arg-type]
            for number, one in enumerate(regions)
        ],
    )


def _patched(
    file: SavedFile, parent: MemoryImage, regions: tuple[RegionRecord, ...]
) -> MemoryImage:
    """The image that a difference makes of its parent's."""
    memory = parent.attach()
    try:
        wanted = {(one.name, one.start, one.size, one.kind) for one in regions}
        for old in memory.regions:
            if old.key not in wanted:
                memory.remove(old)
        there = {old.key for old in memory.regions}
        for number, region in enumerate(regions):
            key = (region.name, region.start, region.size, region.kind)
            name = f"memory.{number}"
            if (file.pages(name).absent == "parent") != (key in there):
                raise LoadError(f"{file.path}: region {region.name!r} is not as its parent's")
            if key not in there and region.kind == "ram":
                memory.add_ram(region.start, region.size, name=region.name)
            elif key not in there:
                memory.add_rom(region.start, b"", name=region.name, size=region.size)
            for start, data in file.data(name):
                memory.write(region.start + start, data, rom=True)
        return memory.freeze()
    except ConfigError as error:
        raise LoadError(f"{file.path}: {error.message}") from error
    finally:
        memory.close()
