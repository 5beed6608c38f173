"""What a getter returns, its setter takes: as a record, and as plain dicts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kvm.guest import Guest

from pykvm.errors import ConfigError
from pykvm.kvm import uapi
from pykvm.kvm.codec import StructLayout, UnionLayout
from pykvm.kvm.records import Overlay, Record
from pykvm.kvm.vm import VM

LAYOUTS = {name: one for name, one in vars(uapi).items() if isinstance(one, StructLayout)}
UNIONS = sorted(
    name for name, one in LAYOUTS.items() if any(isinstance(f[2], UnionLayout) for f in one.fields)
)


def overlays(record: Record) -> Iterator[Overlay]:
    for value in vars(record).values():
        if isinstance(value, Overlay):
            yield value


def some(layout: StructLayout) -> Record:
    """A record with something in every byte."""
    return layout.unpack(random.Random(layout.name).randbytes(layout.size))


def test_there_are_structs_with_unions() -> None:
    assert "kvm_irqchip" in UNIONS


@pytest.mark.parametrize("name", UNIONS)
def test_a_dict_of_it_is_packed_as_the_record_is(name: str) -> None:
    layout = LAYOUTS[name]
    assert layout.pack(some(layout).as_dict()) == layout.pack(some(layout))


@pytest.mark.parametrize("name", UNIONS)
def test_so_is_that_of_one_of_whose_unions_a_member_was_looked_at(name: str) -> None:
    layout = LAYOUTS[name]
    for union in overlays(some(layout)):
        for member in union._layout.members:
            record = some(layout)
            for one in overlays(record):
                if member in one._layout.members:
                    getattr(one, member)
            assert layout.pack(record.as_dict()) == layout.pack(some(layout)), member


def test_raw_bytes_of_a_union_have_its_size_at_most() -> None:
    with pytest.raises(ConfigError, match="513 bytes do not fit in 512"):
        uapi.kvm_irqchip.pack({"chip": {"raw": bytes(513)}})
    with pytest.raises(ConfigError, match="exactly one of dummy, pic, ioapic"):
        uapi.kvm_irqchip.pack({"chip": {"raw": bytes(512), "pic": {}}})


VM_STATE: dict[str, tuple[Callable[[VM], Any], Callable[[VM, Any], object]]] = {
    "pic": (lambda vm: vm.get_irqchip(0), VM.set_irqchip),
    "second pic": (lambda vm: vm.get_irqchip(1), VM.set_irqchip),
    "ioapic": (lambda vm: vm.get_irqchip(2), VM.set_irqchip),
    "pit": (VM.get_pit, VM.set_pit),
    "pit2": (VM.get_pit2, VM.set_pit2),
}


@pytest.mark.parametrize("name", VM_STATE)
def test_state_of_a_vm(chipped: VM, name: str) -> None:
    get, set_ = VM_STATE[name]
    chipped.create_pit2()
    before = get(chipped)
    set_(chipped, before)
    set_(chipped, before.as_dict())
    # Of a timer the time at which it was loaded is the host's.
    assert name.startswith("pit") or get(chipped) == before


@pytest.mark.parametrize("name", ["regs", "sregs", "fpu", "xcrs", "vcpu_events", "debugregs"])
def test_state_of_a_vcpu(guest: Guest, name: str) -> None:
    get: Callable[[], Any] = getattr(guest.vcpu, f"get_{name}")
    set_: Callable[[Any], None] = getattr(guest.vcpu, f"set_{name}")
    before = get()
    set_(before)
    set_(before.as_dict())
    assert get() == before
