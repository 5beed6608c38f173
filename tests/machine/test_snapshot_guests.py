"""From any of its exits a guest goes on alike: in place, after a reset, in a fork, from a file."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from pykvm import Machine, Outcome, Snapshot, StateError
from support.slowness import longer
from support.trajectories import Adder, Trajectory, is_of_time, rest, rests_of_files

pytestmark = pytest.mark.kvm

#: So many of the first exits, in a run of all tests; `make soak` takes each of 200.
SPREAD = (0, 1, 3, 13, 55, 199)
EACH = range(200)
#: So many files go to a process of their own at once.
BATCH = 25


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


def moments(machine: Machine, stops: Container[int]) -> Iterator[tuple[int, Snapshot]]:
    """A snapshot after each of the exits with these numbers; the machine goes on from it after.

    Numbers go by the exits of the guest's program.
    """
    number = 0
    while True:
        exits = machine.exits(timeout=longer(60))
        for exit in exits:
            number += not is_of_time(exit)
            if number - 1 in stops and not is_of_time(exit):
                break
        else:
            assert exits.result is not None
            assert exits.result.outcome is not Outcome.TIMEOUT
            return
        try:
            saved = machine.snapshot()
        except StateError as error:
            # It is the last.
            assert "the guest ends at the exit" in str(error)
            return
        yield number - 1, saved
        machine.reset(saved)


def check_from_each(guests: Path, directory: Path, name: str, stops: Container[int]) -> int:
    """From each of these exits, and in each way: how many there were."""
    kept = GUESTS[name]
    timed, count = kept.timed, 0
    files: list[tuple[Path, Trajectory]] = []

    def check_files() -> None:
        paths = [path for path, _ in files]
        assert rests_of_files(paths, timed=timed) == [expected for _, expected in files]
        for path in paths:
            path.unlink()
        files.clear()

    with Machine(guests / kept.file, memory="16M", **kept.options) as machine:
        machine.add(Adder(), mmio=Adder.address)
        start = machine.snapshot()
        whole = rest(machine, timed=timed)
        assert whole.end
        machine.reset(start)
        for stop, saved in moments(machine, stops):
            expected = whole._replace(exits=whole.exits[stop + 1 :])
            where = f"after exit {stop}"
            assert rest(machine, timed=timed) == expected, where
            machine.reset(saved)
            assert rest(machine, timed=timed) == expected, f"{where}, reset"
            with saved.fork() as twin:
                assert rest(twin, timed=timed) == expected, f"{where}, in a fork"
            files.append((directory / f"{stop}.pykvm", expected))
            saved.save(files[-1][0])
            if len(files) == BATCH:
                check_files()
            count += 1
    check_files()
    return count


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", GUESTS)
def test_a_guest_goes_on_alike_from_each_of_its_exits(
    guests: Path, tmp_path: Path, name: str
) -> None:
    assert check_from_each(guests, tmp_path, name, SPREAD) >= 4


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", GUESTS)
def test_a_guest_goes_on_alike_from_each_of_200_exits(
    guests: Path, tmp_path: Path, name: str
) -> None:
    check_from_each(guests, tmp_path, name, EACH)


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
