"""Interrupts and the local APIC: pykvm's in software beside the kernel's, with the same guest."""

from __future__ import annotations

import statistics
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.batches import both_irqchips
from benchmarks.bench import Bench
from benchmarks.guest import Guest
from benchmarks.measure import Pair, alternate, in_turns
from benchmarks.row import Row

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.batches import Batches
    from benchmarks.measure import Method
    from benchmarks.rig import Rig

DEADLINES = 100
ROUNDS = 100
FIELDS = 5  # of struct sample in guests/deadline.c


class Deadlines(NamedTuple):
    """A batch of timer interrupts as the guest saw them: medians but for `latest`, in µs."""

    late: float
    #: The 99th percentile.
    latest: float
    eoi: float
    read: float


def _batch(batches: Batches) -> Deadlines:
    batches.run()
    stamps = batches.numbers("samples", FIELDS * DEADLINES)
    samples = [stamps[at : at + FIELDS] for at in range(0, len(stamps), FIELDS)]
    late = [batches.us(entry - deadline) for deadline, entry, *_ in samples]
    # What is between two RDTSC, less what they cost by themselves.
    eoi = [batches.us((ended - idle) - (idle - entry)) for _, entry, idle, ended, _ in samples]
    read = [batches.us((read - ended) - (idle - entry)) for _, entry, idle, ended, read in samples]
    return Deadlines(
        statistics.median(late),
        statistics.quantiles(late, n=100, method="inclusive")[-1],
        statistics.median(eoi),
        statistics.median(read),
    )


@cache
def _deadlines(rig: Rig, ring: int, pairs: int) -> list[tuple[Deadlines, Deadlines]]:
    """Batches over either irqchip: one measurement for all rows."""
    guest = Guest("deadline.c", args=(str(ring), str(DEADLINES)))
    with both_irqchips(rig, guest) as (user, kernel):
        return in_turns(lambda: _batch(user), lambda: _batch(kernel), pairs)


def _bench(
    name: str,
    title: str,
    ring: int,
    value: Callable[[Deadlines], float],
    method: Method = "ratio",
) -> Bench:
    row = Row(f"{name}-{ring}", title, "kernel irqchip", method, None, "µs", ring)

    def measure(rig: Rig, pairs: int) -> tuple[Pair, ...]:
        batches = _deadlines(rig, ring, pairs)
        return tuple(Pair(value(ours), value(theirs)) for ours, theirs in batches)

    return Bench(row, measure, pairs=20)


def _round_trip(batches: Batches) -> float:
    batches.run()
    return batches.us(statistics.median(batches.numbers("rounds", ROUNDS)))


def _round_trips(rig: Rig, pairs: int) -> tuple[Pair, ...]:
    with both_irqchips(rig, Guest("ipi.c", args=(str(ROUNDS),)), vcpus=2) as (user, kernel):
        return alternate(lambda: _round_trip(user), lambda: _round_trip(kernel), pairs)


BENCHES = (
    _bench("latency", "timer to a halted guest's handler, median", 0, lambda batch: batch.late),
    _bench("latency-p99", "timer to a halted guest's handler, p99", 0, lambda batch: batch.latest),
    _bench("latency", "timer to a busy guest's handler, median", 3, lambda batch: batch.late),
    _bench("latency-p99", "timer to a busy guest's handler, p99", 3, lambda batch: batch.latest),
    _bench("apic-read", "read of a local APIC register", 0, lambda batch: batch.read, "extra"),
    _bench("apic-eoi", "end of interrupt", 0, lambda batch: batch.eoi, "extra"),
    Bench(
        Row("ipi", "IPI to a halted vCPU and back", "kernel irqchip", "ratio", None, "µs", 0),
        _round_trips,
        pairs=10,
        pinned=False,
    ),
)
