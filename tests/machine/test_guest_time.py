"""When guest time begins: with the machine, whenever its clock is looked at."""

from __future__ import annotations

import time

import pytest

from pykvm import Machine, Outcome

pytestmark = pytest.mark.kvm

HALT = b"\xfa\xf4"  # cli; hlt
SPIN = b"\xeb\xfe"  # jmp .


@pytest.mark.parametrize("irqchip", ["user", "none"])
def test_it_begins_with_the_machine_not_with_the_first_look(irqchip: str) -> None:
    before = time.monotonic_ns()
    with Machine(HALT, mode="real", memory="1M", irqchip=irqchip) as machine:
        made = time.monotonic_ns()
        assert machine.run(timeout=10).outcome is Outcome.HALTED
        least = time.monotonic_ns() - made
        now = machine.clock.now()
        most = time.monotonic_ns() - before
    assert least <= now <= most


@pytest.mark.parametrize("clock", ["paused", "warp"])
@pytest.mark.parametrize("irqchip", ["user", "none"])
def test_runs_before_the_first_look_count(irqchip: str, clock: str) -> None:
    with Machine(SPIN, mode="real", memory="1M", irqchip=irqchip, clock=clock) as machine:
        assert machine.run(timeout=0.02).outcome is Outcome.TIMEOUT
        now = machine.clock.now()
        assert 0 < now == machine.clock.now()


def test_looking_at_it_changes_no_run() -> None:
    with Machine(HALT, mode="real", memory="1M") as one, Machine(HALT, mode="real") as other:
        _ = one.clock
        assert dict(one.run(timeout=10).exits) == dict(other.run(timeout=10).exits)
