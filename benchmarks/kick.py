"""A kick: from a thread's call of `Machine.stop` to the return of `Machine.run` in another."""

from __future__ import annotations

import threading
import time
from statistics import median
from time import monotonic_ns
from typing import TYPE_CHECKING

from benchmarks.bench import Bench
from benchmarks.guest import Guest
from benchmarks.measure import alternate
from benchmarks.row import Row

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.measure import Pair
    from benchmarks.rig import Rig
    from pykvm import Machine

KICKS = 20
BEFORE_KICK = 1e-3  # s, as in cloop.c


def _kick_once(machine: Machine) -> int:
    sent = 0

    def kick_soon() -> None:
        nonlocal sent
        kicked = False
        while not kicked:  # the run may not have begun
            time.sleep(BEFORE_KICK)
            sent = monotonic_ns()
            kicked = machine.stop()

    thread = threading.Thread(target=kick_soon)
    thread.start()
    machine.run()
    back = monotonic_ns()
    thread.join()
    return back - sent


def _measure(ring: int) -> Callable[[Rig, int], tuple[Pair, ...]]:
    guest = Guest("spin.c", args=(str(ring),))

    def measure(rig: Rig, pairs: int) -> tuple[Pair, ...]:
        with rig.machine(guest) as machine, rig.cloop(guest) as cloop:

            def ours() -> float:
                return median(_kick_once(machine) for _ in range(KICKS)) / 1e3

            def theirs() -> float:
                return median(cloop.kick() for _ in range(KICKS)) / 1e3

            return alternate(ours, theirs, pairs)

    return measure


BENCHES = tuple(
    Bench(
        Row(f"kick-{ring}", "kick: stop() to the return of run()", "C", "ratio", None, "µs", ring),
        _measure(ring),
        pairs=20,
        pinned=False,
    )
    for ring in (0, 3)
)
