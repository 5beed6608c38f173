"""Whatever a guest does to ports, addresses and MSRs, the host holds no more for it: shortly."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

import pytest
from machine.storms import APIC_BASE, Access, Footprint, Storm, What, alternating, everything

from pykvm import Outcome
from support.irqchips import IRQCHIPS

pytestmark = pytest.mark.kvm

# Each map of the bus that is not freed is some 130 KiB.
MOVES = 700
ALLOWANCE = 8192  # KiB


@pytest.fixture
def chance() -> random.Random:
    return random.Random(7)


@pytest.mark.parametrize(
    "places",
    [
        pytest.param((0xFEE00900, 0xFEE00100), id="disabled and enabled"),
        pytest.param((0xFEE00900, 0xFEE01900, 0xFEE02900), id="moved"),
        pytest.param((0xFEC00900, 0xFED00900, 0xFEE00900), id="over other devices and back"),
        pytest.param((0xFEE00D00, 0xFEE00100, 0xFEE00900), id="x2APIC and back"),
    ],
)
def test_moving_the_local_apic_keeps_nothing(guests: Path, places: tuple[int, ...]) -> None:
    storm = Storm(guests, "user")
    moves = [Access(What.WRMSR, APIC_BASE, places[turn % len(places)]) for turn in range(MOVES)]
    with storm.machine:
        storm.blow([Access(What.LOAD, 0xFEE00020), *moves[:20]])
        before = Footprint.now()
        slots = len(storm.machine.bus.by_slot)
        for _ in range(2):
            assert storm.blow(moves) is Outcome.EXITED
        Footprint.now().assert_flat(before, allow=ALLOWANCE)
        assert len(storm.machine.bus.by_slot) <= slots + 1
        assert len(storm.machine._board.dispatch.reads) <= slots + 1


def test_two_processors_move_their_local_apics_at_once(guests: Path) -> None:
    """Neither is told that a device it wants to move is not there."""
    storm = Storm(guests, "user", vcpus=2)
    with storm.machine as machine:
        moves = [Access(What.WRMSR, APIC_BASE, 0xFEE00800 | turn % 3 << 12) for turn in range(400)]
        second = machine.vcpus[1]
        for _ in range(5):
            state = storm.prepare(moves)
            state.rsp -= 0x1000
            second.state = state
            second.parked = False
            assert machine.run(timeout=20).outcome is Outcome.EXITED


def test_a_device_that_comes_and_goes_on_the_guests_word(guests: Path) -> None:
    class Plug:
        name = "plug"

        def write(self, offset: int, size: int, value: int) -> None:
            if value % 2:
                storm.machine.add(Card(), pio=0xA00, length=8)
            else:
                storm.machine.remove("card")

    class Card:
        name = "card"

        def read(self, offset: int, size: int) -> int:
            return 0

    storm = Storm(guests, "none")
    with storm.machine as machine:
        machine.add(Plug(), pio=0x900, length=1)
        accesses = [
            access
            for turn in range(1, 501)
            for access in (Access(What.OUT, 0x900, turn, size=1), Access(What.IN, 0xA00, size=1))
        ]
        storm.blow(accesses[:40])
        before = Footprint.now()
        assert storm.blow(accesses) is Outcome.EXITED
        Footprint.now().assert_flat(before, allow=ALLOWANCE)


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_alternating_writes_to_every_register_keep_nothing(
    guests: Path, irqchip: str, chance: random.Random
) -> None:
    storm = Storm(guests, irqchip)
    with storm.machine:
        registers = storm.registers()
        storm.blow(access for read in registers[:99] for access in alternating(read, chance, 2))
        before = Footprint.now()
        for at in range(0, len(registers), 100):
            storm.blow(
                access
                for register in registers[at : at + 100]
                for access in alternating(register, chance, 6)
            )
        Footprint.now().assert_flat(before, allow=ALLOWANCE)


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_random_accesses_keep_nothing(guests: Path, irqchip: str, chance: random.Random) -> None:
    storm = Storm(guests, irqchip)
    with storm.machine:
        accesses = everything(storm.registers(), chance)
        for _ in range(5):
            storm.blow(islice(accesses, 500))
        before = Footprint.now()
        for _ in range(15):
            storm.blow(islice(accesses, 500))
        Footprint.now().assert_flat(before, allow=ALLOWANCE)
        assert storm.endings[Outcome.EXITED] >= 10, storm.endings
