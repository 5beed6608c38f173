"""The guests that read a PC's tables, and every way in which they end its life."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import NamedTuple

import pytest

from pykvm import ConfigError, Machine, Outcome
from support.irqchips import IRQCHIPS
from support.pc import MakePc

pytestmark = pytest.mark.kvm


class End(NamedTuple):
    """How a run ended: its outcome, its exit code, and what its sentence says of the reason."""

    outcome: Outcome
    code: int | None
    reason: str


ENDS = {
    "off": End(Outcome.EXITED, 0, "the guest powered itself off (ACPI S5)"),
    "register": End(Outcome.RESET, None, "the guest asked for a reset (port 0xcf9: warm, hard"),
    "keyboard": End(
        Outcome.RESET, None, "the guest asked for a reset (keyboard controller command 0xfe)"
    ),
    "port92": End(Outcome.RESET, None, "the guest asked for a reset (port 0x92)"),
    "fault": End(Outcome.CRASHED, None, "triple fault"),
    "panic": End(Outcome.CRASHED, None, "guest panic: it said so by pvpanic"),
    "shutdown": End(Outcome.EXITED, 0, "the guest powered itself off (pvpanic)"),
}


@pytest.mark.parametrize("way", ENDS)
def test_each_end_has_a_reason_of_its_own(pc: MakePc, guests: Path, way: str) -> None:
    machine = pc(guests / "ends.elf", args=[way])
    result = machine.run(timeout=20)
    assert machine.serial.text == f"ending by {way}\n"
    end = ENDS[way]
    assert (result.outcome, result.exit_code) == (end.outcome, end.code), result
    assert end.reason in result.sentence
    others = [other.reason for name, other in ENDS.items() if name != way]
    assert not any(other in result.sentence for other in others)


@pytest.mark.parametrize(("irqchip", "vcpus"), [("user", 2), ("kernel", 1), ("none", 1)])
def test_every_table_is_found_and_checks(
    pc: MakePc, guests: Path, irqchip: str, vcpus: int
) -> None:
    machine = pc(guests / "acpi.elf", irqchip=irqchip, vcpus=vcpus)
    result = machine.run(timeout=20)
    said = machine.serial.text
    assert result.sentence == "the guest powered itself off (ACPI S5)", f"{result}: {said}"
    assert said.startswith("ACPI: root pointer at e0000\nXSDT: ")
    checked = re.findall(r"^(\w{4}): \d+ bytes, revision \d, checks$", said, re.MULTILINE)
    apic = irqchip != "none"
    assert checked == ["XSDT", "FACP", *["APIC", "HPET"] * apic, "DSDT"]
    lines = [
        "I/O APIC at fec00000",
        "IRQ 0 is GSI 2, flags 0",
        "IRQ 9 is GSI 9, flags d",
        f"{vcpus} processors",
    ]
    assert [line in said.splitlines() for line in lines] == [apic] * 4
    assert said.endswith("switching off: SLP_TYP 0 at port 604\n")


def test_a_root_pointer_that_does_not_check_is_none(guests: Path) -> None:
    with Machine(guests / "acpi.elf") as machine:
        machine.memory.write(0xE0000, b"RSD PTR " + bytes(28))
        machine.memory.write(0xFFFE0, b"RSD PTR " + bytes(28))
        assert machine.run(timeout=60).exit_code == 1


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_the_power_button_is_heard(pc: MakePc, guests: Path, irqchip: str) -> None:
    machine = pc(guests / "button.elf", irqchip=irqchip)
    result = machine.run(timeout=20, until="waiting for the power button")
    assert result.outcome is Outcome.UNTIL
    pressing = threading.Timer(0.2, machine.press_power_button)
    pressing.start()
    result = machine.run(timeout=20)
    pressing.join()
    assert result.sentence == "the guest powered itself off (ACPI S5)", result
    assert machine.serial.text.endswith("the power button was pressed\n")


def test_a_button_pressed_before_the_guest_listens_is_not_lost_nor_heard(
    pc: MakePc, guests: Path
) -> None:
    """Its status is there; this guest clears it before it listens, and then waits."""
    machine = pc(guests / "button.elf")
    machine.press_power_button()
    assert machine.run(timeout=20, until="waiting for").outcome is Outcome.UNTIL
    assert machine.run(timeout=0.3).outcome is Outcome.TIMEOUT, "it is waited for: no HALTED"
    machine.press_power_button()
    assert machine.run(timeout=20).exit_code == 0


def test_a_machine_without_a_button(guests: Path) -> None:
    with Machine(guests / "hello.elf") as machine, pytest.raises(ConfigError) as caught:
        machine.press_power_button()
    assert "no power button" in str(caught.value)
