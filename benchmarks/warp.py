"""A kernel that only waits for its clock, under ``clock="warp"``: what an hour's sleep costs."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from benchmarks.bench import Bench, CannotMeasureError
from benchmarks.guest import Guest
from benchmarks.measure import Pair
from benchmarks.row import Row
from pykvm import Machine, Outcome

if TYPE_CHECKING:
    from benchmarks.rig import Rig

TICKS = 1000
GUEST = Guest("ticks.c", args=(str(TICKS),))


def measure(rig: Rig, pairs: int) -> tuple[Pair, ...]:
    """µs a tick, and how many of them pass inside KVM_RUN."""
    taken = []
    with Machine(rig.elf(GUEST), args=GUEST.args, memory="16M", clock="warp") as machine:
        for _ in range(1 + pairs):
            begin = perf_counter()
            result = machine.run(timeout=60)
            seconds = perf_counter() - begin
            if result.outcome is not Outcome.EXITED:
                raise CannotMeasureError(result.sentence)
            taken.append(Pair(seconds / TICKS * 1e6, result.guest_seconds / TICKS * 1e6))
    return tuple(taken[1:])


ROW = Row(
    "warp-tick",
    "clock='warp': a tick of 100 Hz, from HLT to HLT",
    "inside KVM_RUN",
    "own",
    60.0,
    "µs",
    0,
)
BENCHES = (Bench(ROW, measure, pairs=9),)
