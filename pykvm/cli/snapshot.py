"""`pykvm snapshot`: what is in files that `--save` has made, and how two of them differ."""

from __future__ import annotations

import os

from pykvm.cli.report import show
from pykvm.machine.snapshot import Snapshot
from pykvm.machine.snapshot_file import cpu_state, read_record
from pykvm.printable import printable
from pykvm.savefile import SavedFile
from pykvm.savefile.pages import runs_of
from pykvm.typed import TYPE_CHECKING
from pykvm.values.sizes import format_size

if TYPE_CHECKING:
    from typing import Any

    from pykvm.cli.options import Options

__all__ = ["main"]

_COLUMN = 12


def main(options: Options) -> int:
    """Print what was asked for; the exit status of `diff` is 1 if there is a difference."""
    what, *paths = options.words
    if what == "diff":
        from pykvm.cli.snapshot_diff import differences

        first, second = map(Snapshot.load, paths)
        lines = list(differences(first, second))
        show("".join(f"{printable(line)}\n" for line in lines))
        return int(bool(lines))
    if options.json:
        import json

        facts = [_facts(path, verify=options.verify) for path in paths]
        show(json.dumps(facts, indent=2) + "\n")
        return 0
    for path in paths:
        show(_text(path, verify=options.verify))
    return 0


def _facts(path: str, *, verify: bool) -> dict[str, Any]:
    """What the manifest says, as JSON.  Raises LoadError."""
    with SavedFile(path) as file:
        if verify:
            file.verify()
        parent = None if file.parent is None else file.parent._asdict()
        return {
            "file": path,
            "id": file.id,
            "parent": parent,
            "about": file.about,
            "sections": list(file.names),
            "verified": verify,
        }


def _text(path: str, *, verify: bool) -> str:
    """The same for a person, and where the guest is."""
    with SavedFile(path) as file:
        if verify:
            file.verify()
            if file.parent is not None:
                file.open_parent().close()
        rows = [*_rows(file), ("checked", "every hash is right")][: None if verify else -1]
    lines = [f"{printable(path)}:"]
    lines += (f"  {name.ljust(_COLUMN)}{printable(text)}" for name, text in rows)
    return "\n".join(lines) + "\n"


def _rows(file: SavedFile) -> list[tuple[str, str]]:
    record = read_record(file)
    guest, host, machine = record.guest, record.host, record.machine
    about = file.about if isinstance(file.about, dict) else {}
    status = os.stat(file.fileno())
    rows = [
        ("guest", f"{guest.name or 'none'}{f' ({guest.kind})' if guest.kind else ''}"),
        ("append", guest.append),
        ("id", file.id),
        ("parent", "" if file.parent is None else f"{file.parent.name}, {file.parent.id}"),
        ("taken", f"{about.get('taken', '')}, at {machine.clock.now / 1e9:.6f} s of guest time"),
        ("machine", f"irqchip {guest.irqchip}, clock {guest.clock}, CPU {guest.cpu}"),
        *(_vcpu_rows(file)),
        *(_memory_rows(file)),
        ("devices", ", ".join(device.name for device in machine.devices)),
        (
            "host",
            f"{' '.join(host.processor.split())}, {host.backend}, Linux {host.linux}, "
            f"TSC {host.tsc_khz} kHz",
        ),
        ("file", f"{format_size(status.st_blocks * 512)} on disk"),
    ]
    return [(name, text) for name, text in rows if text]


def _vcpu_rows(file: SavedFile) -> list[tuple[str, str]]:
    record = read_record(file)
    rows = []
    for index, cpu in enumerate(record.machine.cpus):
        state = cpu_state(cpu, file.path)
        doing = "parked" if cpu.parked else f"at {state.rip:#x}, {state.mode.value} mode"
        rows.append((f"vCPU {index}", f"{doing}{', halted' if cpu.halted else ''}"))
    return rows


def _memory_rows(file: SavedFile) -> list[tuple[str, str]]:
    from pykvm.machine.snapshot_file import read_regions

    rows = []
    for number, region in enumerate(read_regions(file)):
        name = f"memory.{number}"
        kept = sum(end - start for start, end in runs_of(file.present(name)))
        what = "differ from the parent's" if file.pages(name).absent == "parent" else "are not zero"
        rows.append(
            (
                "memory",
                f"{region.name} ({region.kind}) at {region.start:#x}, {format_size(region.size)}: "
                f"{kept // 4096} pages {what}",
            )
        )
    return rows
