"""A vmlinux of 50 MB, read, checked and put into guest memory, beside reading the file."""

from __future__ import annotations

from time import perf_counter_ns
from typing import TYPE_CHECKING

from benchmarks.bench import Bench
from benchmarks.guest import LINK_VMLINUX, Guest
from benchmarks.measure import alternate
from benchmarks.row import Row
from pykvm import boot
from pykvm.memory import GuestMemory

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.measure import Pair
    from benchmarks.rig import Rig

SIZE = 50 << 20
RAM = 128 << 20


def _measure(*, loaded: bool) -> Callable[[Rig, int], tuple[Pair, ...]]:
    guest = Guest("vmlinux.S", (("LOADED", int(loaded)), ("SIZE", SIZE)), link=LINK_VMLINUX)

    def measure(rig: Rig, pairs: int) -> tuple[Pair, ...]:
        path = rig.elf(guest)

        def ours() -> float:
            with GuestMemory() as memory:
                memory.add_ram(0, RAM)
                start = perf_counter_ns()
                image = boot.load(path)
                boot.place(image, memory)
                spent = perf_counter_ns() - start
            if image.kind != "linux":
                raise RuntimeError(f"{path} was taken for a {image.kind} image")
            return spent / 1e6

        def theirs() -> float:
            start = perf_counter_ns()
            content = path.read_bytes()
            spent = perf_counter_ns() - start
            if len(content) < SIZE:
                raise RuntimeError(f"{path} has {len(content)} bytes, not {SIZE}")
            return spent / 1e6

        return alternate(ours, theirs, pairs)

    return measure


def _bench(name: str, title: str, *, loaded: bool) -> Bench:
    row = Row(name, f"load and place a vmlinux, {title}", "reading the file", "ratio", 1.3, "ms")
    return Bench(row, _measure(loaded=loaded), pairs=20)


BENCHES = (
    _bench("load-vmlinux", "50 MiB of it loaded", loaded=True),
    _bench("load-vmlinux-debug", "50 MiB of debugging information", loaded=False),
)
