"""Instructions that KVM refuses and pykvm completes, beside the bare exit that each of them is."""

from __future__ import annotations

from time import thread_time_ns
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.bench import Bench, CannotMeasureError
from benchmarks.guest import STOP_PORT, Guest, exits
from benchmarks.measure import alternate
from benchmarks.row import Row
from benchmarks.stop import add_stop
from pykvm import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.measure import Pair
    from benchmarks.rig import Rig

COUNT = 200
OSXSAVE = 1 << 18


class Kind(NamedTuple):
    """One of the classes that differ in what it takes to complete them, by an example."""

    name: str
    needs: str
    cr4: int = 0


KINDS = (
    Kind("stac", "flags"),
    Kind("popcnt", "a register"),
    Kind("cmpxchg16b", "memory"),
    Kind("fwait", "the x87 state read"),
    Kind("ldmxcsr", "the SSE state changed"),
    Kind("xsave", "x87 and SSE state, into memory", OSXSAVE),
    Kind("addps", "SSE arithmetic, one after the other"),
    Kind("mulps", "SSE arithmetic with memory, each alone"),
)


def _measure(kind: Kind) -> Callable[[Rig, int], tuple[Pair, ...]]:
    defines = (kind.name.upper(), 1), ("COUNT", COUNT), ("FLAGS", kind.cr4), ("STOP", STOP_PORT)
    guest = Guest("refused.S", defines)
    exit = exits(0, mmio=False)

    def measure(rig: Rig, pairs: int) -> tuple[Pair, ...]:
        with rig.machine(guest, cpu="host") as machine, rig.cloop(exit) as cloop:
            add_stop(machine)

            def ours() -> float:
                start = thread_time_ns()
                result = machine.run()
                spent = thread_time_ns() - start
                if result.outcome is not Outcome.EXITED:
                    raise CannotMeasureError(result.sentence)
                if result.emulated.get(kind.name) != COUNT:
                    raise CannotMeasureError(f"this host's KVM executes {kind.name} by itself")
                return spent / COUNT / 1e3

            return alternate(ours, lambda: cloop.exit() / 1e3, pairs)

    return measure


def _bench(kind: Kind) -> Bench:
    row = Row(
        name=f"emulate-{kind.name}",
        title=f"{kind.name} completed ({kind.needs})",
        against="C loop, OUT",
        method="ratio",
        limit=None,
        unit="µs",
        ring=0,
    )
    return Bench(row, _measure(kind))


BENCHES = tuple(map(_bench, KINDS))
