"""The life of a machine: created, run to the first exit, closed."""

from __future__ import annotations

from time import perf_counter_ns
from typing import TYPE_CHECKING

from benchmarks.bench import Bench
from benchmarks.guest import FIRST
from benchmarks.measure import alternate
from benchmarks.row import Row

if TYPE_CHECKING:
    from benchmarks.measure import Pair
    from benchmarks.rig import Rig

LIVES = 10


def _measure(rig: Rig, pairs: int) -> tuple[Pair, ...]:
    with rig.cloop(FIRST) as cloop:

        def ours() -> float:
            start = perf_counter_ns()
            for _ in range(LIVES):
                with rig.machine(FIRST) as machine:
                    next(machine.vcpus[0].raw_exits())
            return (perf_counter_ns() - start) / LIVES / 1e6

        return alternate(ours, lambda: cloop.life(LIVES) / 1e6, pairs)


BENCHES = (
    Bench(
        Row("life", "create, run to the first exit, close", "C", "extra", 1.0, "ms", 0),
        _measure,
    ),
)
