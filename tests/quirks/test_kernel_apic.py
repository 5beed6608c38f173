"""Whether KVM's own local APICs keep an interrupt in service, and what comes of it."""

from __future__ import annotations

from typing import Any

import pytest

from pykvm import Outcome
from pykvm.quirks import found, kernel_apic
from pykvm.quirks.kernel_apic import IN_SERVICE, LEVEL
from support.guest import MakeGuest
from support.listening import LEVEL as LEVEL_TRIGGERED
from support.listening import VECTOR, Source, count, listening, once_ready, run_until

NOTHING: Any = None  # the VM that these probes do not use


@pytest.mark.parametrize(
    ("served", "in_service", "twice"),
    [([2], False, False), ([0], True, False), ([0, 0], True, True), ([2, 2], False, True)],
)
def test_what_is_made_of_what_was_served(
    monkeypatch: pytest.MonkeyPatch, served: list[int], in_service: bool, twice: bool
) -> None:
    monkeypatch.setattr(kernel_apic, "served", lambda: served)
    assert (IN_SERVICE.probe(NOTHING), LEVEL.probe(NOTHING)) == (in_service, twice)


@pytest.mark.kvm
@pytest.mark.parametrize("irqchip", ["kernel", "split", "user"])
def test_a_level_comes_as_often_as_the_probe_says(guest: MakeGuest, irqchip: str) -> None:
    """Never twice where the interrupt controllers are pykvm's."""
    twice = irqchip == "kernel" and LEVEL.name in found([LEVEL])
    machine = listening(guest, irqchip, LEVEL_TRIGGERED | VECTOR)
    line = machine.line(5)
    machine.add(Source(line, times=1), pio=0x11, length=1)
    thread = once_ready(machine, lambda: line.set(True))
    run_until(machine, 2 if twice else 1)
    thread.join()
    assert machine.run(timeout=0.05).outcome is Outcome.TIMEOUT
    assert count(machine) == (2 if twice else 1)
