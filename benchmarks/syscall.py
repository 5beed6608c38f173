"""SYSCALL from ring 3 and SYSRET, beside a port access from ring 3 of the same guest."""

from __future__ import annotations

from time import thread_time_ns
from typing import TYPE_CHECKING

from benchmarks.bench import Bench, CannotMeasureError, Measured
from benchmarks.guest import PORT, Guest
from benchmarks.handled import DeviceProbe
from benchmarks.measure import Pair, in_turns
from benchmarks.row import Row
from benchmarks.stop import add_stop
from pykvm import Outcome

if TYPE_CHECKING:
    from benchmarks.rig import Rig
    from pykvm import Machine, Result

# As in guests/sysret.c.
COUNT = 500


def _batch(machine: Machine) -> tuple[float, Result]:
    """CPU time of one of the guest's rounds, in µs, and how the batch went."""
    start = thread_time_ns()
    result = machine.run()
    spent = thread_time_ns() - start
    if result.outcome is not Outcome.EXITED:
        raise CannotMeasureError(result.sentence)
    return spent / COUNT / 1e3, result


def _measure(rig: Rig, pairs: int) -> Measured:
    calls, ports = Guest("sysret.c", args=("0",)), Guest("sysret.c", args=("1",))
    with rig.machine(calls) as calling, rig.machine(ports) as accessing:
        add_stop(calling)
        add_stop(accessing)
        accessing.add(DeviceProbe(), pio=PORT, length=1)
        taken = in_turns(lambda: _batch(calling), lambda: _batch(accessing), pairs)
    found = tuple(Pair(ours, theirs) for (ours, _), (theirs, _) in taken)
    result = taken[-1][0][1]
    how = ", ".join(f"{count} x {what}" for what, count in result.workarounds.items())
    return Measured(found, (f"of {COUNT}, workarounds: {how or 'none, KVM does it'}",))


BENCHES = (
    Bench(
        Row("syscall", "SYSCALL and SYSRET", "a device's port", "ratio", None, "µs", 3),
        _measure,
    ),
)
