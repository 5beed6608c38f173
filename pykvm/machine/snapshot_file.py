"""Snapshots in files: `Snapshot.save` and `Snapshot.load`.

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

import os
import time
from contextlib import ExitStack

from pykvm.bus import Placement, Space
from pykvm.errors import ConfigError, LoadError
from pykvm.host import Host
from pykvm.host.record import HostRecord
from pykvm.machine.known_states import import_states
from pykvm.machine.saved_guest import (
    EntryRecord,
    GuestRecord,
    symbols_from_text,
    symbols_to_text,
)
from pykvm.machine.snapshot import MachineState, Origin, Snapshot
from pykvm.memory.image import MemoryImage, Section
from pykvm.savefile import Parent, SavedFile, parse_json
from pykvm.typed import TYPE_CHECKING
from pykvm.values.sizes import format_size
from pykvm.values.state import State, decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, TypeVar

    from pykvm.boot import Entry
    from pykvm.boot.symbols import Symbol, Symbols
    from pykvm.devices.fw_cfg import Contents
    from pykvm.memory.image import FrozenRegion
    from pykvm.savefile import Bytes, Pages
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
    "save",
]

PAGE = 4096
#: How long a chain of differences may be.
_CHAIN = 64
# Pages that are written at once.
_RUN = 256
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


def save(saved: Snapshot, path: str | os.PathLike[str], parent: Snapshot | None) -> None:
    """See `Snapshot.save`."""
    # Most files are written once and loaded often.
    import json

    from pykvm.savefile import Bytes, write

    path = os.fsdecode(path)
    link = None if parent is None else _link(parent, path)
    record, data = _record(saved)
    regions = [_region_record(region) for region in saved.memory.regions]
    sections: list[Bytes | Pages] = [Bytes("machine", _packed(record))]
    if saved.entry is not None:
        sections.append(Bytes("symbols", symbols_to_text(saved.entry.symbols)))
    if data:
        sections.append(Bytes("fw_cfg", data))
    sections.append(Bytes("regions", json.dumps([encode(one) for one in regions]).encode()))
    sections += _memory(saved.memory, None if parent is None else parent.memory)
    id = write(path, sections, about=_about(record, regions), parent=link)
    saved.file = path, id


def _packed(record: State) -> bytes:
    import json

    return json.dumps(encode(record), separators=(",", ":")).encode()


def _link(parent: Snapshot, path: str) -> Parent:
    """How a difference at `path` names its parent.  Raises ConfigError without a file of that."""
    if parent.file is None:
        raise ConfigError(
            f"{path}: a difference to a snapshot that is in no file",
            hint="save the parent first, or load it: parent = Snapshot.load(...)",
        )
    where, id = parent.file
    here, there = (os.path.realpath(name) for name in (path, where))
    if here == there or os.path.dirname(here) != os.path.dirname(there):
        raise ConfigError(f"{path}: is to stand beside its parent, {where}")
    with SavedFile(where) as file:
        if file.id != id:
            raise ConfigError(f"{where}: is another file by now, and no parent for {path}")
    return Parent(id, os.path.basename(there))


def _record(saved: Snapshot) -> tuple[SavedRecord, bytes]:
    """The record, and the bytes that fw_cfg holds."""
    guest = GuestRecord.of(saved.guest)
    contents = _contents(saved.placements)
    items = sorted(contents.items.items()) if contents is not None else []
    files = sorted(contents.files.items()) if contents is not None else []
    record = SavedRecord(
        machine=saved.state,
        guest=guest,
        entry=None if saved.entry is None else EntryRecord.of(saved.entry),
        host=saved.origin.host if saved.origin is not None else _this_host(saved, guest),
        cpuid=saved.cpuid,
        taken=round(saved.taken * _NANOSECOND),
        items=tuple((key, len(data)) for key, data in items),
        files=tuple((name, len(data)) for name, data in files),
    )
    return record, b"".join(bytes(data) for _, data in (*items, *files))


def _this_host(saved: Snapshot, guest: GuestRecord) -> HostRecord:
    from pykvm.quirks import found
    from pykvm.quirks.cpuid import QUIRK

    host = Host()
    try:
        return HostRecord.of(
            host.system,
            shown=saved.cpuid[0],
            irqchip=guest.irqchip,
            tsc_khz=saved.state.cpus[0].tsc_khz,
            tsc_movable=saved.tsc_movable,
            unmasked=QUIRK.name in found([QUIRK]),
        )
    finally:
        host.close()


def _contents(placements: Iterable[Placement]) -> Contents | None:
    """What the guest's fw_cfg holds."""
    for placement in placements:
        if placement.name == "fw-cfg":
            contents = getattr(placement.device, "contents", None)
            if contents is not None:
                made: Contents = contents()
                return made
    return None


def _region_record(region: FrozenRegion) -> RegionRecord:
    return RegionRecord(region.name, region.start, region.size, region.kind)


def _memory(image: MemoryImage, parent: MemoryImage | None) -> Iterator[Pages]:
    """The sections of an image; those of regions that `parent` has are differences to it."""
    from pykvm.savefile import Pages

    known = set() if parent is None else {region.key for region in parent.regions}
    changed = _Pages(image.pages() if parent is None else image.changed(parent))
    for number, region in enumerate(image.regions):
        absent = "parent" if region.key in known else "zero"
        yield Pages(f"memory.{number}", region.size, changed.of(region), absent)


class _Pages:
    """Pages by ascending address, dealt out by region, those side by side in one piece."""

    def __init__(self, pages: Iterator[tuple[int, bytes]]) -> None:
        self._pages = pages
        self._next = next(pages, None)

    def of(self, region: FrozenRegion) -> Iterator[tuple[int, memoryview]]:
        """Those of a region, from which offset on."""
        while self._next is not None and self._next[0] < region.end:
            start = self._next[0]
            run: list[bytes] = []
            while (
                self._next is not None
                and self._next[0] == start + len(run) * PAGE < region.end
                and len(run) < _RUN
            ):
                run.append(self._next[1])
                self._next = next(self._pages, None)
            yield start - region.start, memoryview(b"".join(run))


def _about(record: SavedRecord, regions: Iterable[RegionRecord]) -> dict[str, Any]:
    """What a person reads at the start of the file."""
    guest, host, clock = record.guest, record.host, record.machine.clock
    return {
        "what": "snapshot of a pykvm machine",
        "guest": _text(guest.name),
        "kind": _text(guest.kind),
        "append": _text(guest.append),
        "vcpus": guest.vcpus,
        "cpu": guest.cpu,
        "memory": [
            f"{_text(one.name)} at {one.start:#x}, {format_size(one.size)}" for one in regions
        ],
        "irqchip": guest.irqchip,
        "clock": guest.clock,
        "guest time": f"{clock.now / _NANOSECOND:.6f} s",
        "taken": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(record.taken / _NANOSECOND)),
        "devices": [_text(one.name) for one in record.machine.devices],
        "host": {
            "processor": " ".join(host.processor.split()),
            "kvm": host.backend,
            "linux": host.linux,
            "tsc kHz": host.tsc_khz,
        },
    }


def _text(name: str) -> str:
    """A name that may not be Unicode, as a file's."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


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
