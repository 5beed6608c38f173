"""The bus in the form that the run loop uses: what C finds is what the bus says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from pykvm._core import ffi, lib
from pykvm.bus import Bus
from pykvm.dispatch import MANY, Dispatch
from pykvm.errors import KVMError


class Plain:
    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: list[tuple[int, ...]] = []

    def read(self, offset: int, size: int) -> int:
        self.calls.append((offset, size))
        return 5

    def write(self, offset: int, size: int, value: int) -> None:
        self.calls.append((offset, size, value))


class Sink:
    def __init__(self, name: str, log: list[Any]) -> None:
        self.name = name
        self.log = log

    def sink(self, writes: Sequence[tuple[int, int, int]]) -> None:
        self.log.append((self.name, list(writes)))


class Zones:
    """A VM that only coalesces, and has room for so many zones."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.zones: set[tuple[int, int, bool]] = set()

    def register_coalesced_mmio(self, addr: int, size: int, *, pio: bool = False) -> None:
        if len(self.zones) == self.room:
            raise KVMError("KVM_REGISTER_COALESCED_MMIO", 28)
        self.zones.add((addr, size, pio))

    def unregister_coalesced_mmio(self, addr: int, size: int, *, pio: bool = False) -> None:
        self.zones.remove((addr, size, pio))


def collected(*batches: tuple[int, list[tuple[int, int, int]]]) -> Any:
    """A vCPU's collection of writes (offset, size, value) by slot, and what keeps it alive."""
    core = ffi.new("struct pykvm_vcpu *")
    flat = [write for _, writes in batches for write in writes]
    core.writes = writes_ = ffi.new("struct pykvm_write[]", flat)
    core.batches = batches_ = ffi.new(
        "struct pykvm_batch[]", [(slot, len(writes)) for slot, writes in batches]
    )
    core.sunk, core.sunk_batches = len(flat), len(batches)
    return core, (writes_, batches_)


def test_handlers_by_slot() -> None:
    bus = Bus()
    device = Plain("device")
    slot = bus.add_pio(0x10, 4, device).slot
    dispatch = Dispatch(bus)

    assert dispatch.reads[slot](1, 2) == 5
    dispatch.writes[slot](1, 2, 3)
    assert device.calls == [(1, 2), (1, 2, 3)]


@pytest.mark.parametrize("shared", [False, True])
def test_writes_are_handed_over_in_order_grouped_by_sink(shared: bool) -> None:
    bus, log = Bus(), list[Any]()
    first = bus.add_pio(0x10, 4, Sink("first", log)).slot
    second = bus.add_mmio(0x1000, 4, Sink("second", log)).slot
    dispatch = Dispatch(bus, shared=shared)
    core, _keep = collected(
        (first, [(0, 1, 7), (1, 1, 8)]), (second, [(0, 4, 9)]), (first, [(2, 2, 10)])
    )
    dispatch.deliver(core)

    assert log == [
        ("first", [(0, 1, 7), (1, 1, 8)]),
        ("second", [(0, 4, 9)]),
        ("first", [(2, 2, 10)]),
    ]
    assert (core.sunk, core.sunk_batches) == (0, 0)
    assert not dispatch.waiting


def test_the_kernel_collects_from_many_writes_on() -> None:
    bus, log, vm = Bus(), list[Any](), Zones(room=2)
    slot = bus.add_pio(0x10, 4, Sink("a", log)).slot
    bus.add_mmio(0x1000, 8, Sink("b", log))
    bus.add_mmio(0x2000, 8, Sink("c", log))
    bus.add_mmio(0x3000, 8, Plain("d"))
    dispatch = Dispatch(bus, vm=vm)
    dispatch.coalesce(True)
    assert vm.zones == set()
    core, _keep = collected((slot, [(0, 1, 1)] * (MANY - 1)))
    dispatch.deliver(core)
    assert vm.zones == set()
    core, _keep = collected((slot, [(0, 1, 1)]))
    dispatch.deliver(core)
    # As many as there is room for; never the plain device.
    assert len(vm.zones) == 2
    assert vm.zones < {(0x10, 4, True), (0x1000, 8, False), (0x2000, 8, False)}

    bus.remove("a")
    dispatch.rebuild()
    assert (0x10, 4, True) not in vm.zones
    dispatch.coalesce(False)
    assert vm.zones == set()


def test_the_map_refuses_what_no_bus_contains() -> None:
    new = ffi.gc(lib.pykvm_map_new(), lib.pykvm_map_free)

    assert lib.pykvm_map_add(new, lib.PYKVM_PIO, 0x10, 0xF, 0, 0) == -22
    assert lib.pykvm_map_add(new, lib.PYKVM_PIO, 0xFFFF, 0x10000, 0, 0) == -22
    assert lib.pykvm_map_add(new, lib.PYKVM_MMIO, 0, 2**64 - 1, 0, 0) == 0


def test_old_maps_live_until_nobody_can_read_them() -> None:
    dispatch = Dispatch(Bus())
    old = dispatch.map
    dispatch.rebuild()
    assert dispatch.map != old
    dispatch.forget_old_maps()
