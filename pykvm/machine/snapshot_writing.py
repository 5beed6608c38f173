"""Writing a snapshot to a file: `Snapshot.save`.  `snapshot_file` says what is in one."""

from __future__ import annotations

import os
import time

from pykvm.errors import ConfigError
from pykvm.host import Host
from pykvm.host.record import HostRecord
from pykvm.machine.saved_guest import (
    EntryRecord,
    GuestRecord,
    symbols_to_text,
)
from pykvm.machine.snapshot_file import RegionRecord, SavedRecord
from pykvm.savefile import Parent, SavedFile
from pykvm.typed import TYPE_CHECKING
from pykvm.values.sizes import format_size
from pykvm.values.state import State, encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from pykvm.bus import Placement
    from pykvm.devices.fw_cfg import Contents
    from pykvm.machine.snapshot import Snapshot
    from pykvm.memory.image import FrozenRegion, MemoryImage
    from pykvm.savefile import Bytes, Pages

__all__ = ["save"]

_PAGE = 4096
# Pages that are written at once.
_RUN = 256
_NANOSECOND = 1_000_000_000


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
                and self._next[0] == start + len(run) * _PAGE < region.end
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
