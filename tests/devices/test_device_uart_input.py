"""Typing at a guest that is interrupted by each character: none is lost, whenever it comes."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import pytest

from pykvm import Machine
from support.irqchips import IRQCHIPS
from support.slowness import longer

pytestmark = pytest.mark.kvm

TRIES = 25
PATIENCE = longer(20.0)


def echoed(machine: Machine, character: str) -> bool:
    until = time.monotonic() + PATIENCE
    while character not in machine.serial.text:
        if time.monotonic() > until:
            return False
        time.sleep(0.001)
    return True


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_each_character_is_echoed(guests: Path, irqchip: str) -> None:
    chance = random.Random(1)
    for _ in range(TRIES):
        with Machine(guests / "paste.elf", irqchip=irqchip) as machine:
            thread = threading.Thread(target=machine.run, kwargs={"timeout": 5 * PATIENCE})
            thread.start()
            try:
                time.sleep(chance.random() / 10)
                for character in "ab\x03c":
                    machine.serial.send(character)
                    assert echoed(machine, character), repr(machine.serial)
            finally:
                machine.stop()
                thread.join()
