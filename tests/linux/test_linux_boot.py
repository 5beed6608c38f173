"""Linux boots to user space, finds all that a PC has, and powers the machine off."""

from __future__ import annotations

import re

import pytest

from pykvm import Machine, Outcome
from support.linux import DEADLINE, Boot, Linux, checks, last_lines

pytestmark = pytest.mark.timeout(DEADLINE + 20)


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


@pytest.mark.parametrize("irqchip", ["user", "kernel"])
def test_one_processor(boot: Boot, irqchip: str) -> None:
    found = run_checks(boot(irqchip=irqchip))
    assert found["processors"] == "1"
    assert found["clocksource"] in ("kvm-clock", "tsc")


def test_two_processors(boot: Boot) -> None:
    machine = boot(vcpus=2)
    assert run_checks(machine)["processors"] == "2"
    assert "smp: Brought up 1 node, 2 CPUs" in machine.serial.text


def test_a_compressed_kernel(boot: Boot, linux: Linux) -> None:
    """An LZ4 bzImage, which pykvm unpacks."""
    run_checks(boot(linux.bzimage))


def test_the_mitigations_that_a_kernel_has_by_default(boot: Boot) -> None:
    """What is said last on a command line counts, so these words undo any before them."""
    machine = boot(append="mitigations=auto pti=on checks")
    run_checks(machine)
    assert "Kernel/User page tables isolation: enabled" in machine.serial.text
    assert re.search(r"Spectre V1 : Mitigation: ", machine.serial.text)
    assert re.search(r"Spectre V2 : Mitigation: ", machine.serial.text)


def where_is_it(boot: Boot, linux: Linux) -> str:
    """Boot a kernel that unpacks itself, up to the line that tells where it is."""
    machine = boot(linux.bzimage, boot="linux64")
    result = machine.run(timeout=DEADLINE, until=lambda machine: "kernel at" in checks(machine))
    assert result.outcome is Outcome.UNTIL, f"{result}\n{last_lines(machine)}"
    return checks(machine)["kernel at"]


@pytest.mark.timeout(2 * DEADLINE + 20)
def test_address_space_layout_randomization(boot: Boot, linux: Linux) -> None:
    """Where it is in memory and in the address space: some 7,000 pairs at 64 MiB."""
    first, second = where_is_it(boot, linux), where_is_it(boot, linux)
    assert re.fullmatch(r"[0-9a-f]{8} ffffffff[0-9a-f]{8}", first)
    assert first != second
