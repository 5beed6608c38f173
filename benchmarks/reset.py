"""A whole machine put back, kept and forked; devices, vCPU and memory together."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING

from benchmarks.bench import Bench
from benchmarks.measure import alone, alternate
from benchmarks.row import Row
from benchmarks.thaw import fastest
from pykvm import Machine

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.measure import Pair
    from benchmarks.rig import Rig

HELLO = Path(__file__).parent.parent / "guests" / "build" / "hello.elf"
PAGE = 4096


def machine_of(memory: str) -> Machine:
    """A machine that has run: its first output has come."""
    machine = Machine(HELLO, memory=memory)
    machine.run(timeout=5, until=lambda _: True)
    return machine


def _reset_of(machine: Machine) -> Callable[[], float]:
    saved = machine.snapshot()

    def change() -> None:
        machine.memory.write_u8(0x100000, 1)

    return lambda: fastest(lambda: machine.reset(saved), change)


def _reset(rig: Rig, pairs: int) -> tuple[Pair, ...]:
    with machine_of("16M") as machine:
        once = _reset_of(machine)
        return tuple(alone(once()) for _ in range(pairs))


def _reset_sizes(rig: Rig, pairs: int) -> tuple[Pair, ...]:
    with machine_of("4G") as large, machine_of("16M") as small:
        return alternate(_reset_of(large), _reset_of(small), pairs)


def _snapshot(rig: Rig, pairs: int) -> tuple[Pair, ...]:
    with machine_of("64M") as machine:
        kept = [machine.snapshot()]
        value = 0

        def change() -> None:
            nonlocal value
            value += 1
            machine.memory.write_u32(0x100000, value)

        def once() -> float:
            return fastest(lambda: kept.append(machine.snapshot()), change)

        return tuple(alone(once()) for _ in range(pairs))


def _fork(rig: Rig, pairs: int) -> tuple[Pair, ...]:
    def first_exit(make: Callable[[], Machine]) -> float:
        start = perf_counter_ns()
        with closing(make()) as machine:
            next(machine.vcpus[0].raw_exits())
            return (perf_counter_ns() - start) / 1e6

    with Machine(HELLO, memory="256M") as machine:
        machine.memory.fill(16 << 20, 200 << 20, 1)
        saved = machine.snapshot()
        return alternate(
            lambda: min(first_exit(saved.fork) for _ in range(10)),
            lambda: min(first_exit(lambda: Machine(HELLO, memory="256M")) for _ in range(10)),
            pairs,
        )


BENCHES = (
    Bench(Row("reset", "machine.reset, 1 page dirty, 16 MiB", "-", "own", 100, "µs"), _reset),
    Bench(
        Row("reset-4gib", "machine.reset, 1 page dirty of 4 GiB", "of 16 MiB", "ratio", 1.2, "µs"),
        _reset_sizes,
    ),
    Bench(
        Row("snapshot", "machine.snapshot, 64 MiB, 1 page dirty", "-", "own", 1000, "µs"),
        _snapshot,
    ),
    Bench(
        Row("fork", "saved.fork of 256 MiB to its first exit", "a new machine", "extra", 1, "ms"),
        _fork,
    ),
)
