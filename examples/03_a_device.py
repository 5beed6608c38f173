"""A device of your own: an object with a name, and `read` and `write` that see offsets.

Run it:  python examples/03_a_device.py

Example 02 answered every exit itself.  `machine.run` lets devices answer: each machine has a PC's
serial port and a few others, and `machine.add` adds yours, at a physical address (memory-mapped
I/O) or at a port (port I/O).  A load, a store, an IN or an OUT of the guest becomes a call of
`read` or `write`.  The device sees offsets; it does not know its address.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pykvm import Machine

GUEST = Path(__file__).parents[1] / "guests" / "build" / "mmio.elf"


class Adder:
    """Three 32-bit registers: reading 0 gives an ID, writing 4 adds, reading 8 gives the sum."""

    name = "adder"
    total = 0

    def read(self, offset: int, size: int) -> int:
        return {0: 0x4D564B50, 8: self.total}.get(offset, 0)

    def write(self, offset: int, size: int, value: int) -> None:
        self.total += value if offset == 4 else 0


class Dice:
    """One port; each read gives the next number.  Writes are ignored."""

    name = "dice"

    def __init__(self, *numbers: int) -> None:
        self.numbers = list(numbers)

    def read(self, offset: int, size: int) -> int:
        return self.numbers.pop(0)


# Real-mode code: throw twice, and end with the sum as exit code (port 0xf4 ends a run).
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
