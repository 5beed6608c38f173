"""What a machine does to the devices of a PC: their interrupts, the clock, sizes in CMOS RAM."""

from __future__ import annotations

import pytest

from pykvm import Machine, Mode, Outcome
from pykvm.bus import Space
from pykvm.devices.acpi_pm import AcpiPm
from pykvm.tables import build
from support.guest import MakeGuest
from support.interrupts import END, count, listen, platform_of, poke
from support.irqchips import IRQCHIPS
from support.listing import assemble
from support.pc import MakePc

pytestmark = pytest.mark.kvm

MIB = 1 << 20
HALT = assemble("F4        hlt")
# Sleeps until an interrupt was counted at 0x500.
SLEEP = """
    FB                       sti
    F4                       hlt
    83 3E 00 05 00           cmp word [0x500], 0
    74 F8                    je $-6
    FA                       cli
    B0 00                    mov al, 0
    E6 F4                    out 0xf4, al
"""
CLEAR_TIMER_STATUS = """
    50                       push ax
    52                       push dx
    BA 00 06                 mov dx, 0x600
    B8 01 00                 mov ax, 1
    EF                       out dx, ax
    5A                       pop dx
    58                       pop ax
"""


def cmos(machine: Machine, index: int, size: int) -> int:
    """As the guest reads it."""
    value = 0
    for step in range(size):
        assert machine.bus.write(Space.PIO, 0x70, 1, index + step)
        byte = machine.bus.read(Space.PIO, 0x71, 1)
        assert byte is not None
        value |= byte << 8 * step
    return value


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_cmos_ram_has_the_sizes(pc: MakePc, irqchip: str) -> None:
    machine = pc(HALT, irqchip, mode=Mode.REAL, memory="64M", vcpus=2)
    assert cmos(machine, 0x15, 2) == 640
    assert cmos(machine, 0x17, 2) == cmos(machine, 0x30, 2) == 63 * 1024
    assert cmos(machine, 0x34, 2) << 16 == 48 * MIB
    assert cmos(machine, 0x5B, 3) == 0
    assert cmos(machine, 0x5F, 1) == 1
    assert cmos(machine, 0x10, 1) == 0, "no floppy drives"
    assert cmos(machine, 0x32, 1) in (0x19, 0x20), "the century stays the clock's"


def test_cmos_ram_keeps_what_a_guest_writes(pc: MakePc) -> None:
    machine = pc(HALT, mode=Mode.REAL, memory="1M")
    for value in (0x0A, 0x00):
        poke(machine, 0x70, 0x0F, 1)
        poke(machine, 0x71, value, 1)
        assert cmos(machine, 0x0F, 1) == value


def test_a_bare_machine_leaves_cmos_ram_alone(guest: MakeGuest) -> None:
    machine = guest("F4    hlt")
    assert cmos(machine, 0x15, 2) == 0


def test_the_pm_timer_interrupts_when_its_top_bit_changes(pc: MakePc) -> None:
    """Ten minutes of guest time, which are skipped."""
    machine = pc(assemble(SLEEP), mode=Mode.REAL, memory="1M", clock="warp")
    listen(machine, CLEAR_TIMER_STATUS + END, x2apic=True)
    poke(machine, 0xFEC00000, 0x10 + 2 * 9)
    poke(machine, 0xFEC00010, 0x8041)
    poke(machine, 0x602, 1, 2)
    result = machine.run(timeout=20)
    assert result.exit_code == 0, result
    assert count(machine) == 1
    assert machine.clock.now() >= 599 * 10**9


def test_the_keyboard_controller_has_irq_1(pc: MakePc) -> None:
    machine = pc(HALT, mode=Mode.REAL, memory="1M")
    pic = platform_of(machine).pic
    poke(machine, 0x64, 0x60, 1)
    poke(machine, 0x60, 0x01, 1)
    assert not pic.master.read(0, 1) & 2
    poke(machine, 0x60, 0xF2, 1)
    assert pic.master.read(0, 1) & 2


def test_a_guest_that_waits_for_nothing_but_the_button_is_waited_for(pc: MakePc) -> None:
    machine = pc(assemble(SLEEP), mode=Mode.REAL, memory="1M")
    listen(machine)
    assert machine.run(timeout=20).outcome is Outcome.HALTED
    poke(machine, 0x602, 1 << 8, 2)
    machine.vcpus[0].regs.rip = 0x7C00
    assert machine.run(timeout=0.2).outcome is Outcome.TIMEOUT


def test_the_tables_tell_of_the_machine(pc: MakePc) -> None:
    machine = pc(HALT, mode=Mode.REAL, memory="2M", vcpus=3)
    hardware = machine._board.hardware()
    assert (hardware.vcpus, hardware.irqchip, hardware.ram) == (3, "user", ((0, 2 * MIB),))
    assert {"acpi-pm", "pvpanic", "com1", "hpet", "rtc"} <= hardware.devices
    leaf = next(leaf for leaf in machine.vcpus[0].kvm.get_cpuid2() if leaf.function == 1)
    assert (hardware.signature, hardware.features) == (leaf.eax, leaf.edx)
    assert build(hardware).rsdp == 0xE0000
    assert isinstance(machine.devices["acpi-pm"], AcpiPm)
