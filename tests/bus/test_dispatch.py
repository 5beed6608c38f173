"""The bus in the form that the run loop uses: what C finds is what the bus says."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from typing import Any

import pytest

from pykvm._core import ffi, lib
from pykvm.bus import Bus
from pykvm.bus.dispatch import MANY, Dispatch
from pykvm.bus.published import Shared
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


class PostedDevice:
    def __init__(self, name: str, log: list[Any]) -> None:
        self.name = name
        self.log = log

    def posted(self, writes: Sequence[tuple[int, int, int]]) -> None:
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


def collect(dispatch: Dispatch, *batches: tuple[int, list[tuple[int, int, int]]]) -> None:
    """Have C collect writes (offset, size, value) by slot."""
    for slot, writes in batches:
        for offset, size, value in writes:
            data = value.to_bytes(size, "little")
            assert lib.pykvm_collect(dispatch.collected.core, slot, offset, size, data, 1)


def test_handlers_by_slot() -> None:
    bus = Bus()
    device = Plain("device")
    slot = bus.add_pio(0x10, 4, device).slot
    dispatch = Dispatch(bus)

    assert dispatch.reads[slot](1, 2) == 5
    dispatch.writes[slot](1, 2, 3)
    assert device.calls == [(1, 2), (1, 2, 3)]


@pytest.mark.parametrize("shared", [False, True])
def test_writes_are_handed_over_in_order_grouped_by_device(shared: bool) -> None:
    bus, log = Bus(), list[Any]()
    first = bus.add_pio(0x10, 4, PostedDevice("first", log)).slot
    second = bus.add_mmio(0x1000, 4, PostedDevice("second", log)).slot
    dispatch = Dispatch(bus, shared=shared)
    collect(dispatch, (first, [(0, 1, 7), (1, 1, 8)]), (second, [(0, 4, 9)]), (first, [(2, 2, 10)]))
    dispatch.deliver()

    assert log == [
        ("first", [(0, 1, 7), (1, 1, 8)]),
        ("second", [(0, 4, 9)]),
        ("first", [(2, 2, 10)]),
    ]
    assert not dispatch.waiting


def test_the_kernel_collects_from_many_writes_on() -> None:
    bus, log, vm = Bus(), list[Any](), Zones(room=2)
    slot = bus.add_pio(0x10, 4, PostedDevice("a", log)).slot
    bus.add_mmio(0x1000, 8, PostedDevice("b", log))
    bus.add_mmio(0x2000, 8, PostedDevice("c", log))
    bus.add_mmio(0x3000, 8, Plain("d"))
    dispatch = Dispatch(bus, vm=vm)
    dispatch.coalesce(True)
    assert vm.zones == set()
    collect(dispatch, (slot, [(0, 1, 1)] * (MANY - 1)))
    dispatch.deliver()
    assert vm.zones == set()
    collect(dispatch, (slot, [(0, 1, 1)]))
    dispatch.deliver()
    # As many as there is room for; never the plain device.
    assert len(vm.zones) == 2
    assert vm.zones < {(0x10, 4, True), (0x1000, 8, False), (0x2000, 8, False)}

    bus.remove("a")
    dispatch.rebuild()
    assert (0x10, 4, True) not in vm.zones
    dispatch.coalesce(False)
    assert vm.zones == set()


def test_the_map_refuses_what_no_bus_contains() -> None:
    new = ffi.gc(lib.pykvm_map_new(Shared().core), lib.pykvm_map_free)

    def add(space: int, first: int, last: int, slot: int = 0) -> int:
        return int(lib.pykvm_map_add(new, space, first, last, slot, 0, ffi.NULL, 0))

    assert add(lib.PYKVM_PIO, 0x10, 0xF) == -22
    assert add(lib.PYKVM_PIO, 0xFFFF, 0x10000) == -22
    assert add(lib.PYKVM_MMIO, 0, 2**64 - 1) == 0
    assert add(lib.PYKVM_MMIO, 0, 1, 1 << 56) == -22


def test_a_map_lives_as_long_as_a_vcpu_may_read_it() -> None:
    """However often the bus changes: one for each vCPU, one on its way there, and the newest."""
    gc.collect()
    before = lib.pykvm_maps()
    bus = Bus()
    dispatch = Dispatch(bus)
    page = bytearray(3 * 4096)
    fd = os.open(os.devnull, os.O_RDWR)
    core = ffi.gc(lib.pykvm_vcpu_new(fd, ffi.from_buffer(page), ffi.NULL, 0), lib.pykvm_vcpu_free)
    for step in range(1000):
        dispatch.rebuild()
        lib.pykvm_set_map(core, dispatch.map)
        if step % 3 == 0:
            # The ioctl fails, but the vCPU has taken the map.
            assert lib.pykvm_run(core) == lib.PYKVM_ERROR
        assert lib.pykvm_maps() - before <= 3
    del dispatch
    assert lib.pykvm_maps() - before == 1 + (step % 3 > 0)
    ffi.release(core)
    os.close(fd)
    assert lib.pykvm_maps() == before


def test_a_slot_of_a_device_that_was_removed_finds_no_device() -> None:
    bus, log = Bus(), list[Any]()
    slot = bus.add_pio(0x10, 4, Plain("plain")).slot
    posted = bus.add_pio(0x20, 4, PostedDevice("posted", log)).slot
    kept = bus.add_pio(0x30, 4, PostedDevice("kept", log)).slot
    dispatch = Dispatch(bus)
    reads, writes = dispatch.reads, dispatch.writes
    bus.remove("plain")
    bus.remove("posted")
    dispatch.rebuild()

    assert reads[slot](0, 2) == 0xFFFF
    writes[slot](0, 2, 1)
    collect(dispatch, (posted, [(0, 1, 7)]), (kept, [(0, 1, 8)]))
    dispatch.deliver()
    assert log == [("kept", [(0, 1, 8)])]


def test_devices_that_come_and_go_leave_nothing() -> None:
    bus = Bus()
    dispatch = Dispatch(bus)
    for _ in range(300):
        bus.add_pio(0x10, 4, Plain("plain"))
        dispatch.rebuild()
        bus.remove("plain")
        dispatch.rebuild()
    assert not dispatch.reads
    assert not dispatch.writes
