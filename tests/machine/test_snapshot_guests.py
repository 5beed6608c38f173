"""From any of its exits a guest goes on alike: in the same machine, after a reset and in a fork."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from pykvm import Machine, Outcome, StateError
from support.trajectories import rest

pytestmark = pytest.mark.kvm

#: So many of the first exits, in a run of all tests; `make soak` takes each of 200.
SPREAD = (0, 1, 2, 5, 13, 34, 89, 199)


class Kept(NamedTuple):
    """A guest, how its machine is made, and whether its exits depend on the host's time."""

    file: str
    options: Mapping[str, Any] = MappingProxyType({})
    timed: bool = False


GUESTS = {
    "long mode": Kept("hello.elf"),
    "protected mode": Kept("hello32.elf"),
    "real mode": Kept("hello16.bin"),
    "rep outs": Kept("portstrings.elf"),
    "SSE state": Kept("sse.elf"),
    "ring 3": Kept("ring3.elf"),
    "SYSCALL": Kept("syscall.elf", timed=True),
    "exceptions": Kept("exceptions.elf"),
    "MMIO": Kept("mmio.elf"),
    "8254 and 8259": Kept("pit.elf", timed=True),
    "8254 and 8259, warp": Kept("pit.elf", {"clock": "warp"}, timed=True),
    "8254 and 8259 of KVM": Kept("pit.elf", {"irqchip": "kernel"}, timed=True),
    "local APIC's timer": Kept("lapic_timer.elf", timed=True),
    "local APIC's timer of KVM": Kept("lapic_timer.elf", {"irqchip": "kernel"}, timed=True),
    "local APIC's timer, split": Kept("lapic_timer.elf", {"irqchip": "split"}, timed=True),
    "NMIs": Kept("nmi.elf", timed=True),
    "HPET": Kept("hpet.elf", timed=True),
    "two vCPUs": Kept("smp.elf", {"vcpus": 2}, timed=True),
    "two vCPUs, KVM's local APICs": Kept("smp.elf", {"vcpus": 2, "irqchip": "kernel"}, timed=True),
    "tasks that take turns": Kept("tasks.elf", timed=True),
}


@pytest.mark.parametrize("name", GUESTS)
def test_a_guest_goes_on_alike_from_each_of_its_exits(guests: Path, name: str) -> None:
    kept = GUESTS[name]
    with Machine(guests / kept.file, **kept.options) as machine:
        start = machine.snapshot()
        whole = rest(machine, timed=kept.timed)
        assert whole.end
        for stop in SPREAD:
            machine.reset(start)
            exits = machine.exits(timeout=60)
            for number, _ in enumerate(exits):
                if number == stop:
                    break
            if exits.result is not None and exits.result.outcome is not Outcome.STOPPED:
                break
            try:
                saved = machine.snapshot()
            except StateError:
                break  # the guest ends at this exit
            expected = rest(machine, timed=kept.timed)
            assert (expected.printed, expected.end) == (whole.printed, whole.end)
            machine.reset(saved)
            assert rest(machine, timed=kept.timed) == expected
            with saved.fork() as twin:
                assert rest(twin, timed=kept.timed) == expected


# A timer of KVM's goes on between a reset and the snapshot that is to be equal, unless time stands.
RESET: dict[str, tuple[str, dict[str, Any]]] = {
    "bare": ("hello.elf", {}),
    "irqchip user": ("pit.elf", {"irqchip": "user"}),
    "irqchip kernel": ("pit.elf", {"irqchip": "kernel", "clock": "paused"}),
    "two vCPUs, user": ("smp.elf", {"irqchip": "user", "vcpus": 2}),
    "two vCPUs, kernel": ("smp.elf", {"irqchip": "kernel", "clock": "paused", "vcpus": 2}),
}


def reset_again_and_again(guests: Path, name: str, times: int) -> None:
    """Run a little, go back, and compare everything."""
    file, options = RESET[name]
    with Machine(guests / file, **options) as machine:
        machine.run(timeout=0.02)
        saved = machine.snapshot()
        digest = saved.digest()
        for number in range(times):
            machine.run(timeout=0.001 * (number % 5 + 1))
            machine.reset(saved)
            assert machine.snapshot().digest() == digest, f"at reset {number}"


@pytest.mark.parametrize("name", RESET)
def test_each_of_many_resets_is_equal(guests: Path, name: str) -> None:
    reset_again_and_again(guests, name, 40)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", RESET)
def test_each_of_10_000_resets_is_equal(guests: Path, name: str) -> None:
    reset_again_and_again(guests, name, 10_000)
