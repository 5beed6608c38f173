"""fw_cfg's long transfers: piece by piece, while everything else goes on."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from interrupts.fakes import FakeClock

from pykvm.devices.fw_cfg import DMA_ADDRESS, PIECE, ZEROS_AT_ONCE, Contents, FwCfg, Key
from pykvm.memory import GuestMemory
from support.attach import attach

ERROR, READ, SELECT = 1, 2, 8
ACCESS, OTHER, TARGET = 0x100, 0x140, 0x1000
RAM = 8 << 20
DATA = bytes(range(251)) * (3 * PIECE // 251)
BEGUN = Key.KERNEL_DATA << 16 | SELECT | READ


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(overcommit=True) as memory:
        memory.add_ram(0, RAM)
        yield memory


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def device(memory: GuestMemory, clock: FakeClock) -> FwCfg:
    device = FwCfg(lambda: Contents({Key.KERNEL_DATA: DATA, Key.NB_CPUS: b"\1\0"}, {}), memory)
    attach(device, clock=clock)  # type: ignore[arg-type]
    return device


def start(
    device: FwCfg, memory: GuestMemory, control: int, length: int, *, at: int = ACCESS
) -> None:
    memory.write(at, struct.pack(">IIQ", control, length, TARGET))
    device.write(DMA_ADDRESS + 4, 4, int.from_bytes(at.to_bytes(4, "big"), "little"))


def control(memory: GuestMemory, at: int = ACCESS) -> int:
    return int.from_bytes(memory.read(at, 4), "big")


def test_a_long_transfer_goes_one_piece_at_a_time(
    device: FwCfg, memory: GuestMemory, clock: FakeClock
) -> None:
    """The control word stays until all is there; the guest polls it (fw_cfg.rst)."""
    start(device, memory, BEGUN, len(DATA))
    pieces = 1
    while clock.deadline is not None:
        assert control(memory) == BEGUN
        assert memory.read(TARGET, pieces * PIECE) == DATA[: pieces * PIECE]
        assert memory.read(TARGET + pieces * PIECE, 16) == bytes(16)
        clock.advance(1)
        pieces += 1
    assert pieces == 3
    assert control(memory) == 0
    assert memory.read(TARGET, len(DATA)) == DATA


def test_zeros_after_the_end_too(device: FwCfg, memory: GuestMemory, clock: FakeClock) -> None:
    length = len(DATA) + 5 * PIECE + 3
    memory.fill(TARGET, length + 1, 0xEE)
    start(device, memory, BEGUN, length)
    clock.advance(100)
    assert control(memory) == 0
    assert memory.read(TARGET, length + 1) == DATA + bytes(5 * PIECE + 3) + b"\xee"


def test_a_short_transfer_is_done_at_once(
    device: FwCfg, memory: GuestMemory, clock: FakeClock
) -> None:
    start(device, memory, BEGUN, PIECE)
    assert control(memory) == 0
    assert clock.timers == []


def test_a_second_transfer_fails_during_a_long_one(
    device: FwCfg, memory: GuestMemory, clock: FakeClock
) -> None:
    """However many a string instruction asks for, none keeps the vCPU."""
    start(device, memory, BEGUN, len(DATA))
    for _ in range(3):
        start(device, memory, BEGUN, len(DATA), at=OTHER)
        assert control(memory, OTHER) == ERROR
    clock.advance(100)
    assert control(memory) == 0
    start(device, memory, Key.NB_CPUS << 16 | SELECT | READ, 2, at=OTHER)
    assert control(memory, OTHER) == 0


def test_a_reset_ends_a_long_transfer(device: FwCfg, memory: GuestMemory, clock: FakeClock) -> None:
    start(device, memory, BEGUN, len(DATA))
    device.reset()
    clock.advance(100)
    assert control(memory) == BEGUN
    assert memory.read(TARGET + PIECE, 16) == bytes(16)


def test_memory_that_goes_away_meanwhile(
    device: FwCfg, memory: GuestMemory, clock: FakeClock
) -> None:
    more = memory.add_ram(RAM, 1 << 20)
    memory.write(ACCESS, struct.pack(">IIQ", BEGUN, 4 * PIECE, RAM))
    device.write(DMA_ADDRESS + 4, 4, int.from_bytes(ACCESS.to_bytes(4, "big"), "little"))
    memory.remove(more)
    clock.advance(100)
    assert control(memory) == ERROR


def test_without_a_clock_all_at_once_but_zeros_without_end(memory: GuestMemory) -> None:
    device = FwCfg(lambda: Contents({Key.KERNEL_DATA: DATA}, {}), memory)
    start(device, memory, BEGUN, len(DATA) + ZEROS_AT_ONCE)
    assert control(memory) == 0
    assert memory.read(TARGET, len(DATA)) == DATA
    start(device, memory, BEGUN, len(DATA) + ZEROS_AT_ONCE + 1)
    assert control(memory) == ERROR
