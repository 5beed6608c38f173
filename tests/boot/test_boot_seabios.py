"""SeaBIOS, as distributions package it, comes up and boots a kernel that fw_cfg hands it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pykvm import Machine, Outcome
from pykvm.devices import DebugConsole
from pykvm.devices.fw_cfg import Contents, FwCfg, Key
from pykvm.memory import GuestMemory

pytestmark = pytest.mark.kvm

PLACES = ("/usr/share/seabios", "/usr/share/qemu", "/usr/share/qemu-kvm")


def seabios(name: str) -> Path:
    """The path of an image; without one the test is skipped."""
    for place in PLACES:
        path = Path(place, name)
        if path.is_file():
            return path
    pytest.skip(f"SeaBIOS is missing: no {name} in {', '.join(PLACES)} (apt-get install seabios)")


def placed_tables(memory: GuestMemory) -> list[bytes]:
    """The signatures of the ACPI tables that a kernel would find by the XSDT; all add up to 0."""
    root = memory.find(b"RSD PTR ", 0xE0000, 0x100000)
    assert root is not None, "no RSDP below 1 MiB"
    assert root % 16 == 0
    assert sum(memory.read(root, 20)) % 256 == sum(memory.read(root, 36)) % 256 == 0
    xsdt = memory.read_u64(root + 24)
    addresses = [
        memory.read_u64(at) for at in range(xsdt + 36, xsdt + memory.read_u32(xsdt + 4), 8)
    ]
    for address in (xsdt, *addresses):
        assert sum(memory.read(address, memory.read_u32(address + 4))) % 256 == 0
    return [memory.read(address, 4) for address in addresses]


def placed_smbios(memory: GuestMemory) -> bytes:
    """The SMBIOS structures that a kernel would find."""
    entry = memory.find(b"_SM_", 0xF0000, 0x100000)
    assert entry is not None, "no SMBIOS entry point"
    assert sum(memory.read(entry, 0x1F)) % 256 == 0
    return memory.read(memory.read_u32(entry + 0x18), memory.read_u16(entry + 0x16))


def log_of(machine: Machine) -> str:
    log = machine.devices["firmware-log"]
    assert isinstance(log, DebugConsole)
    return log.text


def test_it_boots_a_kernel(guests: Path) -> None:
    with Machine(
        seabios("bios-256k.bin"),
        kernel=guests / "linux16.bzimage",
        append="console=ttyS0 quiet",
        initrd=b"this is the initrd\n",
        vcpus=2,
    ) as machine:
        result = machine.run(timeout=120)
        said, log = machine.serial.text, log_of(machine)
        tables, smbios = placed_tables(machine.memory), placed_smbios(machine.memory)
    assert result.exit_code == 0, f"{result}\n{said}\n{log}"
    assert said.endswith("command line: console=ttyS0 quiet\nthis is the initrd\n"), said
    assert "Found 2 cpu(s)" in log
    assert {b"FACP", b"APIC"} <= set(tables)
    assert b"pykvm\0" in smbios, "SeaBIOS made structures of its own"


def test_with_nothing_that_boots_the_machine_resets(guests: Path) -> None:
    """The ROM finds no room for the kernel, says so, and hands back to the BIOS."""
    with Machine(seabios("bios.bin"), kernel=guests / "linux16.bzimage") as machine:
        fw_cfg = machine.devices["fw-cfg"]
        assert isinstance(fw_cfg, FwCfg)
        contents = fw_cfg.contents
        assert contents is not None
        told = contents()
        nowhere = {**told.items, Key.KERNEL_ADDR: (0xFF00_0000).to_bytes(4, "little")}
        fw_cfg.contents = lambda: Contents(nowhere, told.files)
        result = machine.run(timeout=120)
        said = machine.serial.text
    assert result.outcome is Outcome.RESET, f"{result}\n{said}"
    assert "SeaBIOS (version" in said
    assert "The kernel does not fit in memory." in said
    assert "No bootable device." in said
