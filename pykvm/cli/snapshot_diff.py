"""How two snapshots differ: registers, devices by field, memory by page."""

from __future__ import annotations

from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import show
from pykvm.values.state import State
from pykvm.x86.msr_names import msr_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from pykvm.machine.snapshot import Snapshot
    from pykvm.vcpu.saved import VcpuState

__all__ = ["differences"]

_PAGE = 4096
#: How many pages of a region are listed.
_LISTED = 20
# So much of a value stands in a line, and so many bytes of a page.
_WIDTH = 60
_BYTES = 8

# Where Linux has its code and data, from physical address 0 on (x86_64/mm.rst).
_KERNEL = 0xFFFF_FFFF_8000_0000

# What a vCPU's state has as a struct of KVM's.
_STRUCTS = {
    "regs": "kvm_regs",
    "sregs": "kvm_sregs2",
    "xcrs": "kvm_xcrs",
    "debugregs": "kvm_debugregs",
    "events": "kvm_vcpu_events",
}


def differences(first: Snapshot, second: Snapshot) -> Iterator[str]:
    """A line for each difference, below one that says what it is of."""
    yield from _headed("machine", _machine(first, second))
    before, after = first.state, second.state
    for index in range(max(len(before.cpus), len(after.cpus))):
        cpus = [state.cpus[index : index + 1] for state in (before, after)]
        if not all(cpus):
            yield f"vCPU {index}: {'added' if cpus[1] else 'gone'}"
            continue
        yield from _headed(f"vCPU {index}", _vcpu(cpus[0][0], cpus[1][0], second))
    yield from _headed("clock", _values("", before.clock, after.clock))
    yield from _headed("irqchip", _values("", before.irqchip, after.irqchip))
    old, new = ({one.name: one.state for one in state.devices} for state in (before, after))
    for name in dict.fromkeys((*old, *new)):
        if name not in new or name not in old:
            yield f"{name}: {'added' if name in new else 'gone'}"
            continue
        yield from _headed(name, _values("", old[name], new[name]))
    yield from _headed("lines", _values("", dict(before.lines), dict(after.lines)))
    yield from _memory(first, second)


def _headed(what: str, lines: Iterator[str]) -> Iterator[str]:
    """The lines, below one that says of what, if there are any."""
    first = next(lines, None)
    if first is not None:
        yield what
        yield f"  {first}"
        yield from (f"  {line}" for line in lines)


def _machine(first: Snapshot, second: Snapshot) -> Iterator[str]:
    from pykvm.machine.saved_guest import GuestRecord

    yield from _values("", GuestRecord.of(first.guest), GuestRecord.of(second.guest))
    yield from _values("places", _places(first), _places(second))


def _places(saved: Snapshot) -> dict[str, str]:
    places: dict[str, str] = {}
    for place in saved.state.places:
        text = f"{place.space} {place.first:#x}, {place.length}"
        places[place.name] = f"{places[place.name]}; {text}" if place.name in places else text
    return places


def _values(name: str, before: Any, after: Any) -> Iterator[str]:
    """The parts of a state, of a struct or of a dict that are not alike, by name."""
    if type(before) is not type(after):
        yield _line(name, before, after)
        return
    if before == after:
        return
    parts = _parts(before), _parts(after)
    if parts[0] is None or parts[1] is None:
        yield _line(name, before, after)
        return
    for key in dict.fromkeys((*parts[0], *parts[1])):
        path = f"{name}.{key}" if name else str(key)
        old, new = parts[0].get(key, _NOTHING), parts[1].get(key, _NOTHING)
        yield from _values(path, old, new)


class _Nothing:
    def __repr__(self) -> str:
        return "nothing"


_NOTHING = _Nothing()


def _parts(value: Any) -> dict[Any, Any] | None:
    """The named parts of a value; None for one that has none."""
    if isinstance(value, State):
        return {name: getattr(value, name) for name in type(value).__fields__}
    if isinstance(value, dict):
        return value
    if isinstance(value, (tuple, list)) and any(
        isinstance(one, (State, dict, tuple)) for one in value
    ):
        return dict(enumerate(value))
    return None


def _line(name: str, before: Any, after: Any) -> str:
    label = f"{name}: " if name else ""
    if (
        isinstance(before, (bytes, str))
        and type(before) is type(after)
        and len(before) > _WIDTH // 2
    ):
        return f"{label}{_far(before, after)}"
    return f"{label}{_shown(before)} -> {_shown(after)}"


def _far(before: Any, after: Any) -> str:
    """How two long texts differ: from where on."""
    if after[: len(before)] == before:
        return f"{show(after[len(before) :])[:_WIDTH]} added"
    pairs = zip(before, after, strict=False)
    at = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(before), len(after)))
    old, new = (show(one[at : at + _BYTES]) for one in (before, after))
    return f"from {at:#x} on, {old} -> {new}"


def _shown(value: Any) -> str:
    if type(value) is int:
        return f"{value:#x}" if abs(value) > 9 else str(value)
    text = repr(value) if value is _NOTHING else show(value)
    return text if len(text) <= _WIDTH else f"{text[:_WIDTH]}..."


def _vcpu(before: VcpuState, after: VcpuState, saved: Snapshot) -> Iterator[str]:
    old, new = _decoded(before), _decoded(after)
    rip = old["regs"].get("rip"), new["regs"].get("rip")
    if rip[0] != rip[1] and None not in rip:
        yield f"rip: {_place(rip[0], saved)} -> {_place(rip[1], saved)}"
        new["regs"]["rip"] = rip[0]
    # General registers are known by their names alone.
    yield from _values("", old.pop("regs"), new.pop("regs"))
    yield from _values("", old, new)


def _decoded(cpu: VcpuState) -> dict[str, Any]:
    """The fields of a vCPU's state, KVM's structs by field and MSRs by name."""
    fields = {name: getattr(cpu, name) for name in type(cpu).__fields__}
    for name, struct in _STRUCTS.items():
        fields[name] = _struct(struct, fields[name])
    fields["msrs"] = {_msr(index): value for index, value in cpu.msrs}
    return {name.replace("msrs", "MSR"): value for name, value in fields.items()}


def _msr(index: int) -> str:
    name = msr_name(index)
    return f"{name} ({index:#x})" if name else f"{index:#x}"


def _struct(name: str, data: bytes) -> Any:
    from pykvm.kvm import uapi

    layout = getattr(uapi, name)
    if len(data) < layout.size:
        return {"": data}
    return _plain(layout.unpack(data))


def _plain(value: Any) -> Any:
    """A record as a dict, its parts too."""
    as_dict = getattr(value, "as_dict", None)
    if as_dict is not None:
        value = as_dict()
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return {number: _plain(one) for number, one in enumerate(value)}
    return value


def _place(address: int, saved: Snapshot) -> str:
    name = "" if saved.entry is None else saved.entry.symbols.name_at(address)
    return f"{address:#x} ({name})" if name else f"{address:#x}"


def _memory(first: Snapshot, second: Snapshot) -> Iterator[str]:
    before, after = first.memory, second.memory
    known = {region.key for region in before.regions}
    here = {region.key for region in after.regions}
    for region in before.regions:
        if region.key not in here:
            yield f"memory: {region} gone"
    pages = list(after.changed(before))
    for region in after.regions:
        if region.key not in known:
            yield f"memory: {region} added"
            continue
        mine = [page for page in pages if region.start <= page[0] < region.end]
        if not mine:
            continue
        total = region.size // _PAGE
        yield f"memory: {region}: {len(mine)} of {total} pages differ"
        for address, data in mine[:_LISTED]:
            yield f"  {_page(address, before.read(address, _PAGE), data, second)}"
        if len(mine) > _LISTED:
            yield f"  and {len(mine) - _LISTED} more"


def _page(address: int, before: bytes, after: bytes, saved: Snapshot) -> str:
    """A page: how many bytes differ, the first of them, and whose they are."""
    different = [at for at in range(_PAGE) if before[at] != after[at]]
    at = different[0]
    old, new = (data[at : at + _BYTES].hex(" ") for data in (before, after))
    count = len(different)
    name = _symbol(address + at, saved)
    return (
        f"{address:#x}: {count} byte{'s' * (count != 1)} from {address + at:#x}"
        f"{f' ({name})' if name else ''}: {old} -> {new}"
    )


def _symbol(address: int, saved: Snapshot) -> str:
    """What is at a physical address, where symbols are physical or as Linux has them."""
    if saved.entry is None:
        return ""
    symbols = saved.entry.symbols
    return symbols.name_at(address) or symbols.name_at(address + _KERNEL)
