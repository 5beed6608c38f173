"""A guest run by hand: every VM exit is a value, and `match` decides what the world answers.

Run it:  python examples/02_exits_by_hand.py

`for exit in vcpu` enters the guest and yields the next VM exit; no device takes part.  The guest,
hello.elf, prints a line on the PC's first serial port (0x3f8 to 0x3ff): before each byte it polls
the line status register until the port says that it can take one.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from pykvm import Machine
from pykvm.exits import IoIn, IoOut

GUEST = Path(__file__).parents[1] / "guests" / "build" / "hello.elf"

TRANSMITTER_EMPTY = 0x20  # a bit of the line status register


def main() -> None:
    seen: Counter[str] = Counter()
    with Machine(GUEST) as machine:
        for exit in machine.vcpus[0].raw_exits():
            seen[type(exit).__name__] += 1
            match exit:
                case IoOut(port=0x3F8, data=data):
                    print(data.decode(), end="")
                case IoIn(port=0x3FD):
                    exit.answer(TRANSMITTER_EMPTY)
                case IoOut(port=0xF4, value=code):
                    print(f"The guest ended with code {code}.")
                    break
                case other:
                    sys.exit(f"Nobody is there to answer {other}.")
    print("VM exits:", ", ".join(f"{count} {kind}" for kind, count in seen.items()))


if __name__ == "__main__":
    if not GUEST.exists():
        sys.exit("Build the guests first: make guests")
    main()
