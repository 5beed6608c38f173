"""Bulk access to guest memory beside memcpy: 1 MiB between guest RAM and a buffer."""

from __future__ import annotations

from time import thread_time_ns
from typing import TYPE_CHECKING

from benchmarks.bench import Bench
from benchmarks.guest import FIRST, RAM
from benchmarks.measure import alternate
from benchmarks.row import Row
from pykvm.memory import GuestMemory

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.measure import Pair
    from benchmarks.rig import Rig

MIB = 1 << 20
# As in cloop.c: from one MiB of the upper half to the next.
PLACES = range(RAM // 2, RAM, MIB)
COPIES = 6 * len(PLACES)


def _read_into(memory: GuestMemory, gpa: int, buffer: memoryview) -> None:
    memory.read_into(gpa, buffer)


def _view(memory: GuestMemory, gpa: int, buffer: memoryview) -> None:
    with memory.view(gpa, MIB) as view:
        buffer[:] = view


def _read(memory: GuestMemory, gpa: int, buffer: memoryview) -> None:
    memory.read(gpa, MIB)


def _write(memory: GuestMemory, gpa: int, buffer: memoryview) -> None:
    memory.write(gpa, buffer)


def _measure(
    copy: Callable[[GuestMemory, int, memoryview], None], theirs: str
) -> Callable[[Rig, int], tuple[Pair, ...]]:
    def measure(rig: Rig, pairs: int) -> tuple[Pair, ...]:
        buffer = memoryview(bytearray(b"\1" * MIB))
        with GuestMemory() as memory, rig.cloop(FIRST) as cloop:
            memory.add_ram(0, RAM)
            memory.fill(PLACES.start, len(PLACES) * MIB, 1)

            def ours() -> float:
                start = thread_time_ns()
                for _ in range(COPIES // len(PLACES)):
                    for gpa in PLACES:
                        copy(memory, gpa, buffer)
                return (thread_time_ns() - start) / COPIES / 1e3

            memcpy = {"read": cloop.read, "write": cloop.write}[theirs]
            return alternate(ours, lambda: memcpy(COPIES) / 1e3, pairs)

    return measure


def _bench(name: str, title: str, copy: Callable[[GuestMemory, int, memoryview], None]) -> Bench:
    row = Row(f"memory-{name}", f"memory.{title}, 1 MiB", "memcpy", "ratio", 1.2, "µs")
    return Bench(row, _measure(copy, "write" if name == "write" else "read"))


BENCHES = (
    _bench("read-into", "read_into(gpa, buffer)", _read_into),
    _bench("view", "view(gpa, n) copied", _view),
    _bench("read", "read(gpa, n) -> bytes", _read),
    _bench("write", "write(gpa, data)", _write),
)
