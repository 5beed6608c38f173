"""Read and change a guest: memory, registers, symbols, page tables.

Run it:  python examples/04_memory_and_registers.py

There are three kinds of address.  The guest's code uses guest-virtual addresses (GVA).  The guest's
page tables translate them to guest-physical addresses (GPA).  KVM's memory slots translate those to
addresses of this process (HVA).  `machine.memory` takes GPAs, a vCPU's `read` and `write` take
GVAs.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pykvm import Machine

GUESTS = Path(__file__).parents[1] / "guests" / "build"


def change_what_it_is_given() -> None:
    """Edit a guest before its first instruction: args.elf prints its arguments."""
    with Machine(GUESTS / "args.elf", args=["one", "two"]) as machine:
        cpu = machine.vcpus[0]
        print(f"rip is at {machine.symbol_at(cpu.regs.rip)}; argc is in rdi: {cpu.regs.rdi}")

        # argv, in rsi, is an array of 8-byte pointers, all of them guest-virtual.
        argv = cpu.regs.rsi
        pointers = memoryview(cpu.read(argv, 8 * cpu.regs.rdi)).cast("Q")
        print("argv:", [cpu.read_cstring(pointer).decode() for pointer in pointers])

        # Assign to registers one by one ...
        cpu.write(pointers[1], b"ONE")
        cpu.regs.rdi = 2

        # ... or all at once: the state is a value to print, edit and assign.
        state = cpu.state
        state.rax = 0x1234
        cpu.state = state
        print(f"cs is {state.cs}")

        machine.run(timeout=10)
        print(machine.serial.text)


def follow_its_page_tables() -> None:
    """paging.elf maps one page at two virtual addresses, and writes 43 through the second."""
    window = 0x4000_0000_0000
    with Machine(GUESTS / "paging.elf") as machine:
        print(machine.run(timeout=10, until="through the old: 43\n").check().sentence)
        cpu = machine.vcpus[0]

        walk = cpu.walk(window)
        print(walk)

        # The same eight bytes by GVA, by GPA, and in place: a view shares them with the guest.
        gpa = cpu.translate(window)
        view = machine.memory.view(gpa, 8).cast("Q")
        print(int.from_bytes(cpu.read(window, 8), "little"), machine.memory.read_u64(gpa), view[0])

        # For a page that is not mapped the walk says which level ends it, and with which #PF.
        print(cpu.walk(window + 4096, access="write"))


if __name__ == "__main__":
    if not GUESTS.exists():
        sys.exit("Build the guests first: make guests")
    change_what_it_is_given()
    follow_its_page_tables()
