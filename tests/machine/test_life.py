"""Machines come and go: nothing leaks, whatever goes wrong."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pykvm import BusConflict, ConfigError, GuestMemory, LoadError, Machine, Mode, Outcome
from pykvm.bus import Placement, Space
from support.guest import MakeGuest
from support.guest_code import EXIT_0, live
from support.resources import descriptors, mappings, resident

pytestmark = pytest.mark.kvm


def test_a_thousand_machines_leak_nothing() -> None:
    for number in range(20):
        live(vcpus=1 + number % 2)
    gc.collect()
    before = descriptors(), mappings()
    memory = resident()
    for number in range(1000):
        live(vcpus=2 if number % 50 == 0 else 1)
    gc.collect()

    assert descriptors() == before[0]
    # malloc may keep some arenas for threads that are gone; a leak would be thousands.
    assert mappings() <= before[1] + 40
    assert resident() <= memory + 8192


@pytest.mark.parametrize("by_hand", [False, True])
def test_close_gives_everything_back_at_once(kvm: None, by_hand: bool) -> None:
    """Not when the collector comes by: a VM that is still mapped lives on."""
    live()
    gc.collect()
    gc.disable()
    try:
        before = descriptors()
        with Machine(EXIT_0, mode=Mode.REAL, memory="1M") as machine:
            if by_hand:
                exit = next(machine.vcpus[0].raw_exits())
                assert "port=0xf4" in repr(exit)
            else:
                machine.run(timeout=20, on_exit=lambda cpu, exit: None)
        assert descriptors() == before
        assert "kvm-vcpu" not in Path("/proc/self/maps").read_text()
    finally:
        gc.enable()


def test_many_machines_at_once() -> None:
    machines = [Machine(EXIT_0, mode=Mode.REAL, memory="1M") for _ in range(50)]
    try:
        assert {machine.run(timeout=20).exit_code for machine in machines} == {0}
    finally:
        for machine in machines:
            machine.close()


def test_forgetting_to_close_is_harmless() -> None:
    program = f"""
import gc, os
from pykvm import Machine, Mode
def use():
    machine = Machine({EXIT_0!r}, mode=Mode.REAL, memory="1M")
    assert machine.run(timeout=20).exit_code == 0
use()
gc.collect()
before = len(os.listdir("/proc/self/fd"))
for _ in range(50):
    use()
gc.collect()
print(len(os.listdir("/proc/self/fd")) - before)
kept = Machine({EXIT_0!r}, mode=Mode.REAL, memory="1M")
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False
    )
    assert (ran.stdout, ran.stderr, ran.returncode) == ("0\n", "", 0)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"image": b"not a guest"}, LoadError),
        ({"cpu": "486"}, ConfigError),
        ({"image": EXIT_0, "mode": "real", "load_address": 1 << 40}, LoadError),
        ({"image": EXIT_0, "mode": "real", "args": ["x"]}, LoadError),
    ],
)
def test_a_machine_that_cannot_be_made_leaves_nothing(
    options: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        Machine(**options)  # type: ignore[arg-type]
    gc.collect()
    before = descriptors(), mappings()
    for _ in range(20):
        with pytest.raises(error):
            Machine(**options)  # type: ignore[arg-type]
    gc.collect()
    assert descriptors() == before[0]
    assert mappings() <= before[1] + 2


def test_memory_put_together_by_hand(tmp_path: Path) -> None:
    disk = tmp_path / "ram"
    disk.write_bytes(EXIT_0.ljust(4096, b"\0"))
    memory = GuestMemory()
    memory.add_ram(0x0, 0x10000)
    memory.add_ram(0x10000, 4096, name="file", backing=str(disk), shared=True)
    memory.add_rom(0xFFFF0000, b"\xf4" * 16)
    with Machine(EXIT_0, mode=Mode.REAL, memory=memory) as machine:
        assert machine.run(timeout=20).exit_code == 0
        machine.memory.write(0x10000, b"changed")
    assert disk.read_bytes().startswith(b"changed")
    assert memory.closed


def test_ram_beyond_the_hole_goes_on_above_4_gib(kvm: None) -> None:
    memory = 3 * 2**30 + 2**20
    if os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 2 * memory:
        memory = 2**20  # a small host still shows the plain case
    with Machine(memory=memory) as machine:
        assert machine.memory.size == memory
        assert all(not region.start <= 0xD0000000 < region.end for region in machine.memory.regions)


def test_the_guest_cannot_write_a_rom(guest: MakeGuest) -> None:
    memory = GuestMemory()
    memory.add_ram(0, 0x8000)
    memory.add_rom(0x8000, b"\x11\x22")
    machine = guest(
        """
        C6 06 00 80 99   mov byte [0x8000], 0x99
        F4               hlt
        """,
        memory=memory,
        unclaimed="open-bus",
    )
    result = machine.run(timeout=20)
    assert result.outcome is Outcome.HALTED
    assert result.exits == {"MmioWrite": 1, "Hlt": 1}
    assert machine.memory.read(0x8000, 2) == b"\x11\x22"


class Device:
    def __init__(self, name: str) -> None:
        self.name = name

    def write(self, offset: int, size: int, value: int) -> None:
        pass


def test_two_devices_cannot_have_the_same_port(guest: MakeGuest) -> None:
    machine = guest("F4  hlt", devices=[])
    machine.add(Device("first"), pio=0x100, length=8)
    with pytest.raises(BusConflict, match=r"second .*0x107.* first"):
        machine.add(Device("second"), pio=0x107, length=1)
    machine.remove("first")
    machine.add(Device("second"), pio=0x107, length=1)
    assert "first" not in machine.devices
    assert machine.devices["second"].name == "second"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({}, "either pio= or mmio="),
        ({"pio": 1, "mmio": 1, "length": 1}, "either pio= or mmio="),
        ({"pio": 1}, "length= is missing"),
        ({"pio": 0x10000, "length": 1}, "port"),
        ({"pio": 1, "length": 0}, "length is an integer from 1 to"),
    ],
)
def test_a_device_that_has_no_place(guest: MakeGuest, place: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        guest("F4  hlt").add(Device("device"), **place)


def test_two_devices_of_one_name(guest: MakeGuest) -> None:
    machine = guest("F4  hlt", devices=[Placement(Device("twin"), Space.PIO, 1, 1)])
    with pytest.raises(ConfigError, match="a device named 'twin' already"):
        machine.add(Device("twin"), pio=2, length=1)


def test_removing_what_is_not_there(guest: MakeGuest) -> None:
    with pytest.raises(ConfigError, match="no device 'floppy'"):
        guest("F4  hlt").remove("floppy")


def test_a_machine_without_a_serial_port_says_so(guest: MakeGuest) -> None:
    with pytest.raises(ConfigError, match="no serial port"):
        _ = guest("F4  hlt", devices=[]).serial
