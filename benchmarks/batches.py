"""Guests that note times of their own: they are run batch by batch, and their notes read."""

from __future__ import annotations

import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

from benchmarks.bench import CannotMeasureError
from benchmarks.stop import add_stop
from pykvm import Machine, Outcome, PykvmError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.guest import Guest
    from benchmarks.rig import Rig

DEADLINE = 60.0
SIDES = ("user", "kernel")


class Batches:
    """A machine whose guest does a batch of work between two writes to the stop port."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.tsc_khz: int = machine.vcpus[0].kvm.get_tsc_khz()
        add_stop(machine)

    def run(self) -> None:
        """To the next stop."""
        result = self.machine.run(timeout=DEADLINE)
        if result.outcome is not Outcome.EXITED or result.exit_code != 0:
            raise CannotMeasureError(result.sentence)

    def numbers(self, symbol: str, count: int) -> tuple[int, ...]:
        """`count` of the guest's 64-bit variables."""
        data = self.machine.memory.read(self.machine.symbols[symbol], 8 * count)
        return struct.unpack(f"<{count}Q", data)

    def us(self, ticks: float) -> float:
        """TSC ticks as µs."""
        return ticks * 1e3 / self.tsc_khz


@contextmanager
def both_irqchips(rig: Rig, guest: Guest, vcpus: int = 1) -> Iterator[Sequence[Batches]]:
    """The same guest over the irqchip in software and over the kernel's."""
    try:
        with (
            rig.machine(guest, vcpus, "user") as user,
            rig.machine(guest, vcpus, "kernel") as kernel,
        ):
            yield Batches(user), Batches(kernel)
    except PykvmError as error:
        raise CannotMeasureError(str(error)) from error
