"""Guest memory frozen and put back: what a page costs, and what the size of memory does."""

from __future__ import annotations

from contextlib import closing, contextmanager
from time import perf_counter_ns
from typing import TYPE_CHECKING

from benchmarks.bench import Bench
from benchmarks.measure import alone, alternate
from benchmarks.row import Row
from pykvm._core import ffi
from pykvm.kvm import System
from pykvm.memory import GuestMemory, host_address
from pykvm.quirks.probe_vm import SCRATCH, ProbeVM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.measure import Pair
    from benchmarks.rig import Rig

MIB, PAGE = 1 << 20, 4096
PAGES = 256
ROUNDS = 20
# mov rdi, rsi
# 1: mov [rdi], rax; add rdi, 4096; cmp rdi, rdx; jb 1b
# dec ecx; jnz to the beginning
STORES = bytes.fromhex("4889F7 488907 4881C700100000 4839D7 72F1 FFC9 75EA")
TIMES = 200_000


@contextmanager
def attached(size: int) -> Iterator[GuestMemory]:
    """Memory in a VM, so that the guest's log is asked, too."""
    with System() as system, system.create_vm() as vm, GuestMemory(overcommit=True) as memory:
        memory.add_ram(0, size)
        memory.attach(vm)
        yield memory


def fastest(call: Callable[[], object], before: Callable[[], object]) -> float:
    """µs, the least of some rounds: each is short, and much else runs on this host."""
    least = float("inf")
    for _ in range(ROUNDS):
        before()
        start = perf_counter_ns()
        call()
        least = min(least, (perf_counter_ns() - start) / 1e3)
    return least


def _thaw_page(rig: Rig, pairs: int) -> tuple[Pair, ...]:
    import mmap

    with attached(64 * MIB) as memory:
        memory.fill(0, 64 * MIB, 1)
        image = memory.freeze()
        source = mmap.mmap(-1, PAGES * PAGE)
        source[:] = b"\2" * (PAGES * PAGE)
        target = mmap.mmap(-1, PAGES * PAGE)
        to, at = (ffi.cast("char *", host_address(each)) for each in (target, source))

        def one() -> None:
            memory.write_u8(MIB, 2)

        def many() -> None:
            one()
            memory.fill(32 * MIB, PAGES * PAGE, 2)

        def ours() -> float:
            few = fastest(lambda: memory.thaw(image), one)
            return (fastest(lambda: memory.thaw(image), many) - few) / PAGES

        def theirs() -> float:
            copy = fastest(
                lambda: ffi.memmove(to, at, PAGES * PAGE), lambda: memory.fill(0, 8 * MIB, 1)
            )
            return copy / PAGES

        return alternate(ours, theirs, pairs)


def _thaw_sizes(rig: Rig, pairs: int) -> tuple[Pair, ...]:
    with attached(4096 * MIB) as large, attached(16 * MIB) as small:

        def side(memory: GuestMemory) -> Callable[[], float]:
            image = memory.freeze()
            return lambda: fastest(lambda: memory.thaw(image), lambda: memory.write_u8(MIB, 1))

        return alternate(side(large), side(small), pairs)


def _flush(rig: Rig, pairs: int) -> tuple[Pair, ...]:
    with attached(16 * MIB) as memory:
        image = memory.freeze()

        def change() -> None:
            memory.write_u8(MIB, 1)

        return alternate(
            lambda: fastest(lambda: memory.thaw(image, flush=True), change),
            lambda: fastest(lambda: memory.thaw(image), change),
            pairs,
        )


def _freeze_again(rig: Rig, pairs: int) -> tuple[Pair, ...]:
    with attached(64 * MIB) as memory:
        memory.fill(0, 64 * MIB, 1)
        kept = [memory.freeze()]
        value = 0

        def change() -> None:
            nonlocal value
            value += 1
            memory.write_u32(MIB, value)

        def once() -> float:
            return fastest(lambda: kept.append(memory.freeze()), change)

        return tuple(alone(once()) for _ in range(pairs))


def _fork(rig: Rig, pairs: int) -> tuple[Pair, ...]:
    def fresh() -> None:
        with GuestMemory() as memory:
            memory.add_ram(0, 256 * MIB)

    with attached(256 * MIB) as memory:
        memory.fill(0, 256 * MIB, 1)
        image = memory.freeze()
        return alternate(
            lambda: fastest(lambda: image.attach().close(), lambda: None),
            lambda: fastest(fresh, lambda: None),
            pairs,
        )


def _logging(rig: Rig, pairs: int) -> tuple[Pair, ...]:
    registers = {"rsi": SCRATCH, "rdx": SCRATCH + 64 * PAGE, "rax": 1, "rcx": TIMES}
    with closing(ProbeVM()) as logged, closing(ProbeVM()) as other:
        image = logged.memory.freeze()

        def side(vm: ProbeVM) -> Callable[[], float]:
            def once() -> float:
                start = perf_counter_ns()
                vm.run(STORES, 3, registers, patience=60)
                return (perf_counter_ns() - start) / 1e3

            return once

        try:
            return alternate(side(logged), side(other), pairs)
        finally:
            logged.memory.thaw(image)


BENCHES = (
    Bench(
        Row("thaw-page", "memory.thaw, a further dirty page", "memcpy", "own", 0.3, "µs"),
        _thaw_page,
    ),
    Bench(
        Row("thaw-4gib", "memory.thaw, 1 page dirty of 4 GiB", "of 16 MiB", "extra", 20, "µs"),
        _thaw_sizes,
    ),
    Bench(
        Row("thaw-flush", "memory.thaw(flush=True)", "without flush", "extra", None, "µs"),
        _flush,
    ),
    Bench(
        Row("freeze-again", "memory.freeze, 64 MiB, 1 page dirty", "-", "own", 1000, "µs"),
        _freeze_again,
    ),
    Bench(
        Row("fork-memory", "image.attach of 256 MiB", "fresh memory", "extra", 1000, "µs"),
        _fork,
    ),
    Bench(
        Row("dirty-log", "stores with the dirty log on", "without", "ratio", 1.05, "µs", ring=3),
        _logging,
        pairs=20,
    ),
)
