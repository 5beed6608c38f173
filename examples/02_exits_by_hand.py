"""The loop of example 01, by pykvm: every VM exit is a value to `match` on.

Run it:  python examples/02_exits_by_hand.py

`Machine` does what steps 1 to 5 of example 01 did: it opens KVM, creates a VM with memory and a
vCPU, loads the guest and sets the registers.  `raw_exits` is step 6: it calls KVM_RUN and yields
the VM exit that it ends with.  `IoOut`, `IoIn`, `MmioWrite` and `Hlt` are the exits that example 01
took out of struct kvm_run by hand; `exit.answer` writes the value that an IN or a load gets.

The first guest is that of example 01.  The second, hello.elf, is 64-bit code compiled from C
(guests/hello.c).  It prints a line on the PC's first serial port, 0x3f8 to 0x3ff: before each byte
it polls the line status register until the port is ready.  No device answers here; example 03 adds
one.
"""

from __future__ import annotations

import runpy
import sys
from collections import Counter
from pathlib import Path
from typing import NoReturn

from pykvm import Machine
from pykvm.exits import Exit, Hlt, IoIn, IoOut, MmioWrite

EXAMPLES = Path(__file__).parent
HELLO = EXAMPLES.parent / "guests" / "build" / "hello.elf"

TRANSMITTER_EMPTY = 0x20  # a bit of the line status register


def code_of_example_01() -> tuple[bytes, int]:
    """The guest of example 01, and the address that it is written for."""
    names = runpy.run_path(str(EXAMPLES / "01_raw_ioctls.py"))
    return names["CODE"] + names["MESSAGE"], names["CODE_ADDRESS"]


def not_handled(exit: Exit) -> NoReturn:
    sys.exit(f"not handled: {exit}")


def the_guest_of_example_01() -> None:
    code, address = code_of_example_01()
    # No irqchip: this processor alone, as in example 01, without interrupt controllers and clocks.
    with Machine(code, mode="real", load_address=address, memory="64K", irqchip="none") as machine:
        for exit in machine.vcpus[0].raw_exits():
            match exit:
                case IoOut(port=port, data=data):
                    print(f"out  port {port:#x}: {data!r}")
                case IoIn(port=port):
                    exit.answer(b"7")
                    print(f"in   port {port:#x}: we answer b'7'")
                case MmioWrite(address=address, data=data):
                    print(f"mmio address {address:#x}: write {data!r}")
                case Hlt():
                    print("hlt  the guest is done")
                    break
                case other:
                    not_handled(other)


def a_guest_with_a_serial_port() -> None:
    seen: Counter[str] = Counter()
    with Machine(HELLO) as machine:
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
                    not_handled(other)
    print("VM exits:", ", ".join(f"{count} {kind}" for kind, count in seen.items()))


if __name__ == "__main__":
    if not HELLO.exists():
        sys.exit("Build the guests first: make guests")
    the_guest_of_example_01()
    a_guest_with_a_serial_port()
