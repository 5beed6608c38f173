"""What the rows share: a scratch folder, the C programs and the yardstick."""

from __future__ import annotations

import os
import statistics
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from benchmarks.freeze import freeze
from benchmarks.guest import RAM, exits
from benchmarks.yardstick import CLoop, compile_c
from pykvm import Machine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

    from benchmarks.guest import Guest

YARDSTICK_BATCHES = 5


class Rig:
    """Where the measurements are made; use it in a ``with`` statement."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="pykvm-bench-")))
        self._cpus = os.sched_getaffinity(0)
        self.cpu = max(self._cpus)
        with self.pinned():
            self._yardstick = self._stack.enter_context(self.cloop(exits(0, mmio=False)))

    def program(self, name: str) -> Path:
        """A C program of this folder, compiled."""
        return compile_c(name, self.folder)

    def elf(self, guest: Guest) -> Path:
        return guest.build(self.folder)

    def machine(
        self, guest: Guest, vcpus: int = 1, irqchip: str = "user", cpu: str = "baseline"
    ) -> Machine:
        """A machine with this guest loaded and no devices but those of `irqchip`."""
        return Machine(
            self.elf(guest),
            memory=RAM,
            devices=(),
            vcpus=vcpus,
            irqchip=irqchip,
            cpu=cpu,
            args=guest.args,
        )

    def cloop(self, guest: Guest) -> CLoop:
        """The C loop on this guest, from the same RAM and registers as `machine` gives it."""
        image = self.folder / f"{guest.name}.image"
        if not image.exists():
            with self.machine(guest) as machine:
                image.write_bytes(freeze(machine))
        return CLoop(self.program("cloop"), image)

    def yardstick(self) -> float:
        """One OUT exit from ring 0 in the C loop, now, in µs."""
        with self.pinned():
            batches = [self._yardstick.exit() for _ in range(YARDSTICK_BATCHES)]
        return statistics.median(batches) / 1e3

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """Keep this process, and those it starts meanwhile, on one CPU."""
        os.sched_setaffinity(0, {self.cpu})
        try:
            yield
        finally:
            os.sched_setaffinity(0, self._cpus)

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
