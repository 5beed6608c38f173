"""A device of your own: an object with a name, and `read` and `write` that see offsets.

Run it:  python examples/03_a_device.py

A device does not know where it stands: the machine puts it at a physical address (memory-mapped
I/O) or at a port (port I/O), and a load, a store, an IN or an OUT of the guest becomes a call.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pykvm import Machine

GUEST = Path(__file__).parents[1] / "guests" / "build" / "mmio.elf"


class Adder:
    """Three registers of 32 bits: 0 tells who is there, 4 adds, 8 gives the sum."""

    name = "adder"
    total = 0

    def read(self, offset: int, size: int) -> int:
        return {0: 0x4D564B50, 8: self.total}.get(offset, 0)

    def write(self, offset: int, size: int, value: int) -> None:
        self.total += value if offset == 4 else 0


class Dice:
    """One port that gives another number each time.  What is written to it is ignored."""

    name = "dice"

    def __init__(self, *numbers: int) -> None:
        self.numbers = list(numbers)

    def read(self, offset: int, size: int) -> int:
        return self.numbers.pop(0)


# In real mode, as the first sector of a disk would run: throw twice, end with the sum as exit code.
THROW_TWICE = bytes.fromhex(
    "e4 10   "  # in  al, 0x10
    "88 c3   "  # mov bl, al
    "e4 10   "  # in  al, 0x10
    "00 d8   "  # add al, bl
    "e6 f4   "  # out 0xf4, al
)


def main() -> None:
    with Machine(GUEST) as machine:
        machine.add(Adder(), mmio=0xD000_0000, length=12)
        result = machine.run(timeout=10)
        print(machine.serial.text, end="")
        print(f"mmio.elf: {result.sentence}, exits: {dict(result.exits)}")

    with Machine(THROW_TWICE, mode="real", memory="1M") as machine:
        machine.add(Dice(3, 5), pio=0x10, length=1)
        print(f"two dice: {machine.run(timeout=10).sentence}")


if __name__ == "__main__":
    if not GUEST.exists():
        sys.exit("Build the guests first: make guests")
    main()
