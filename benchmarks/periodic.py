"""A guest asleep between the ticks of a timer: are all ticks there, and what does it cost."""

from __future__ import annotations

from functools import cache
from statistics import median
from time import monotonic_ns, perf_counter, process_time
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.batches import both_irqchips
from benchmarks.bench import Bench
from benchmarks.guest import Guest
from benchmarks.measure import Pair, in_turns
from benchmarks.row import Row
from pykvm._core import lib

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.batches import Batches
    from benchmarks.measure import Method
    from benchmarks.rig import Rig
    from pykvm import Machine

MS = 1_000_000  # ns


class Course(NamedTuple):
    """So many ticks, `period` ns apart."""

    ticks: int
    period: int


# 10 s of a kernel's clock interrupt, and 1 s of a guest that has little to do.
FAST = Course(10_000, MS)
SLOW = Course(10, 100 * MS)


class Ran(NamedTuple):
    """What became of a course."""

    #: Periods until the last interrupt that had none of their own.
    merged: float
    #: By how many the timer's own count of those is wrong.
    lost: float
    #: How much later after their periods the last hundredth of the ticks came than the first,
    #: in µs.
    drift: float
    #: Process CPU time, in percent of the time that passed.
    cpu: float


def _missed(machine: Machine) -> int:
    """What the timer in software has counted; the kernel's does not count."""
    platform = getattr(machine._board.irqchip, "platform", None)
    return platform.lapics[0].timer.missed if platform is not None else 0


def _run(batches: Batches, course: Course) -> Ran:
    missed = _missed(batches.machine)
    cpu, wall = process_time(), perf_counter()
    cycles, time = lib.pykvm_cycles(), monotonic_ns()
    batches.run()
    # The guest's TSC against the clock that its timer is made from.
    ns_a_cycle = (monotonic_ns() - time) / (lib.pykvm_cycles() - cycles)
    share = (process_time() - cpu) / (perf_counter() - wall)
    (begin,) = batches.numbers("begin", 1)
    ticks = batches.numbers("ticks", course.ticks)
    times = [(tick - begin) * ns_a_cycle for tick in ticks]
    late = [time % course.period for time in times]
    merged = times[-1] // course.period - course.ticks
    some = max(course.ticks // 100, 1)
    return Ran(
        merged=merged,
        lost=abs(merged - (_missed(batches.machine) - missed)),
        drift=(median(late[-some:]) - median(late[:some])) / 1e3,
        cpu=100 * share,
    )


@cache
def _runs(rig: Rig, course: Course, pairs: int) -> list[tuple[Ran, Ran]]:
    """Over either irqchip: one measurement for all rows."""
    guest = Guest("periodic.c", args=(str(course.ticks), str(course.period)))
    with both_irqchips(rig, guest) as (user, kernel):
        return in_turns(lambda: _run(user, course), lambda: _run(kernel, course), pairs)


def _bench(
    name: str,
    title: str,
    course: Course,
    method: Method,
    limit: float | None,
    unit: str,
    value: Callable[[Ran], float],
    *,
    pairs: int = 1,
) -> Bench:
    def measure(rig: Rig, pairs: int) -> tuple[Pair, ...]:
        return tuple(Pair(value(ours), value(kernel)) for ours, kernel in _runs(rig, course, pairs))

    row = Row(name, title, "kernel irqchip", method, limit, unit, 0)
    return Bench(row, measure, pairs=pairs)


BENCHES = (
    _bench(
        "ticks-lost",
        "1 kHz for 10 s: periods neither interrupted nor counted",
        FAST,
        "own",
        0,
        "periods",
        lambda ran: ran.lost,
    ),
    _bench(
        "ticks-merged",
        "1 kHz for 10 s: periods that shared an interrupt",
        FAST,
        "own",
        None,
        "periods",
        lambda ran: ran.merged,
    ),
    _bench("ticks-drift", "1 kHz for 10 s: drift", FAST, "own", None, "µs", lambda ran: ran.drift),
    _bench("ticks-cpu", "1 kHz for 10 s: host CPU", FAST, "own", None, "%", lambda ran: ran.cpu),
    _bench(
        "idle",
        "halted but for a 10 Hz timer: host CPU",
        SLOW,
        "own",
        1.0,
        "%",
        lambda ran: ran.cpu,
        pairs=3,
    ),
)
