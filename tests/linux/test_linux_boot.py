"""Linux boots to user space, finds all that a PC has, and powers the machine off.

These are the boots that have to be ones; what begins at the shell does so from a file
(support/booted.py).
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from pykvm import Machine, Outcome
from support.linux import DEADLINE, Boot, Linux, checks, last_lines
from support.once import cpu_for

pytestmark = pytest.mark.timeout(DEADLINE + 20)

#: CONFIG_PHYSICAL_ALIGN: KASLR moves a kernel by multiples of it.
ALIGNMENT = 2 << 20


def run_checks(machine: Machine) -> dict[str, str]:
    """Boot to the end, see that all went well, and return what the checks found."""
    result = machine.run(timeout=DEADLINE)
    assert (result.outcome, result.exit_code) == (Outcome.EXITED, 0), (
        f"{result}\n{last_lines(machine)}"
    )
    found = checks(machine)
    assert found["done"] == "0 failed", last_lines(machine)
    assert "FAILED" not in machine.serial.text
    assert re.fullmatch(r"\d+, and [1-9]\d* more in 0.2 s", found["timer interrupts"])
    assert "registers and sums are kept" in found["fpsig"]
    return found


def test_two_processors_and_a_compressed_kernel(boot: Boot, linux: Linux) -> None:
    """An LZ4 bzImage, which pykvm unpacks; interrupts are the kernel's, as Linux has them here."""
    machine = boot(linux.bzimage, vcpus=2)
    found = run_checks(machine)
    assert found["processors"] == "2"
    # On what it takes for bare metal it has no kvm-clock, and not every host's TSC is stable.
    others = ("hpet", "acpi_pm") if "-hypervisor" in cpu_for("kernel") else ()
    assert found["clocksource"] in ("kvm-clock", "tsc", *others)
    assert "smp: Brought up 1 node, 2 CPUs" in machine.serial.text


def slide(boot: Boot, linux: Linux, *words: str, **options: Any) -> tuple[Machine, int]:
    """Start a kernel that unpacks itself; it has just printed a line, moved by so many bytes."""
    append = " ".join(("earlyprintk=ttyS0", *words, "checks"))
    machine = boot(linux.bzimage, boot="linux64", append=append, **options)
    result = machine.run(timeout=DEADLINE, until="Linux version")
    assert result.outcome is Outcome.UNTIL, f"{result}\n{last_lines(machine)}"
    # It is in the function that writes to the UART.
    moved = machine.vcpus[0].regs.rip - linux.symbol("io_serial_out")
    return machine, moved & -ALIGNMENT


@pytest.mark.timeout(3 * DEADLINE)
def test_a_kernel_by_its_own_entry_as_it_is_by_default(boot: Boot, linux: Linux) -> None:
    """It moves itself, to two of some 500 places, and mitigates what processors let through.

    With the software's interrupt controllers.  The last word on a command line counts.
    """
    second, moved_again = slide(boot, linux)
    second.close()
    machine, moved = slide(boot, linux, "mitigations=auto", irqchip="user")
    assert moved != moved_again
    found = run_checks(machine)
    assert int(found["kernel at"].split()[1], 16) == linux.symbol("_stext") + moved
    assert found["processors"] == "1"
    assert re.search(r"Spectre V1 : Mitigation: ", machine.serial.text)
    assert re.search(r"Spectre V2 : Mitigation: ", machine.serial.text)
