"""Exits as users of pykvm meet them: posted write, answered by a device, or looped over."""

from __future__ import annotations

from time import thread_time_ns
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.bench import Bench
from benchmarks.guest import ADDRESS, EXITS_PER_BATCH, PORT, STOP_PORT, exits
from benchmarks.measure import alternate
from benchmarks.row import Row
from benchmarks.stop import add_stop
from pykvm.exits import IoOut, MmioWrite

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.guest import Guest
    from benchmarks.measure import Method, Pair
    from benchmarks.rig import Rig
    from pykvm import Machine

    # Brings the guest from one stop to the next; returns how many exits were seen on the way.
    Run = Callable[[], int]


class PostedProbe:
    """Counts the writes that were collected in C."""

    name = "posted"

    def __init__(self) -> None:
        self.count = 0

    def posted(self, writes: Sequence[tuple[int, int, int]]) -> None:
        self.count += len(writes)


class DeviceProbe:
    """Counts its writes one by one."""

    name = "device"

    def __init__(self) -> None:
        self.count = 0

    def write(self, offset: int, size: int, value: int) -> None:
        self.count += 1


def _run_with(machine: Machine, probe: PostedProbe | DeviceProbe) -> Run:
    machine.add(probe, pio=PORT, length=1)
    machine.add(probe, mmio=ADDRESS, length=4096)
    add_stop(machine)

    def run() -> int:
        before = probe.count
        machine.run()
        return probe.count - before

    return run


def run_posted(machine: Machine) -> Run:
    return _run_with(machine, PostedProbe())


def run_device(machine: Machine) -> Run:
    return _run_with(machine, DeviceProbe())


def run_loop(machine: Machine) -> Run:
    vcpu = machine.vcpus[0]

    def run() -> int:
        count = 0
        for exit in vcpu.raw_exits():
            match exit:
                case IoOut(port=port):
                    if port == STOP_PORT:
                        break
                    count += 1
                case MmioWrite():
                    count += 1
        return count

    return run


class Way(NamedTuple):
    """One way to take exits: its promise, and what prepares our side."""

    name: str
    title: str
    method: Method
    limit: float
    prepare: Callable[[Machine], Run]
    # With a second vCPU, which stays parked, the kernel collects no posted writes.
    vcpus: int = 1


WAYS = (
    Way("posted", "posted write", "ratio", 1.03, run_posted),
    Way("posted-each", "posted write, none coalesced", "ratio", 1.03, run_posted, vcpus=2),
    Way("device", "answered by a Python device", "extra", 1.0, run_device),
    Way("loop", "for exit in vcpu.raw_exits()", "extra", 2.5, run_loop),
)


def _measure(guest: Guest, way: Way) -> Callable[[Rig, int], tuple[Pair, ...]]:
    def measure(rig: Rig, pairs: int) -> tuple[Pair, ...]:
        with rig.machine(guest, way.vcpus) as machine, rig.cloop(guest) as cloop:
            run = way.prepare(machine)

            def ours() -> float:
                start = thread_time_ns()
                seen = run()
                spent = thread_time_ns() - start
                if seen != EXITS_PER_BATCH:
                    raise RuntimeError(f"{seen} exits seen, not {EXITS_PER_BATCH}")
                return spent / seen / 1e3

            return alternate(ours, lambda: cloop.exit() / 1e3, pairs)

    return measure


def _bench(way: Way, *, mmio: bool, ring: int) -> Bench:
    space = "mmio" if mmio else "pio"
    row = Row(
        name=f"{way.name}-{space}-{ring}",
        title=f"{space.upper()} exit, {way.title}",
        against="C loop",
        method=way.method,
        limit=way.limit,
        unit="µs",
        ring=ring,
    )
    return Bench(row, _measure(exits(ring, mmio=mmio), way))


BENCHES = tuple(
    _bench(way, mmio=mmio, ring=ring) for way in WAYS for mmio in (False, True) for ring in (0, 3)
)
