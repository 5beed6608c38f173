"""A guest with a ring of 64 characters gets all that is pasted, however much, and sends it back."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pykvm import Machine
from support.irqchips import IRQCHIPS
from support.slowness import longer

pytestmark = pytest.mark.kvm

END = b"\x04"
DEADLINE = longer(50.0)


def pasted(size: int) -> bytes:
    """Text that repeats with no period of the rings' or the FIFO's."""
    return bytes(b" "[0] + number % 91 for number in range(size))


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_every_byte_of_a_paste_comes_back(guests: Path, irqchip: str) -> None:
    text = pasted(1 << 12)
    with Machine(guests / "paste.elf", irqchip=irqchip) as machine:
        machine.serial.send(text + END)
        result = machine.run(timeout=DEADLINE)
        assert result.exit_code == 0, result
        assert machine.serial.output == text


def test_input_from_another_thread_while_the_guest_runs(guests: Path) -> None:
    """In pieces of all sizes, from another thread, while the guest takes RTS away and back."""
    text = pasted(1 << 12)

    def type_it(machine: Machine) -> None:
        start = 0
        for length in range(1, 100):
            machine.serial.send(text[start : start + length])
            start += length
        assert start > len(text)
        machine.serial.send(END)

    with Machine(guests / "paste.elf") as machine:
        typist = threading.Thread(target=type_it, args=(machine,))
        typist.start()
        result = machine.run(timeout=DEADLINE)
        typist.join()
        assert result.exit_code == 0, result
        assert machine.serial.output == text
