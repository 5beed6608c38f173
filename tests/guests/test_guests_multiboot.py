"""The multiboot guests: what a kernel finds at its entry, on a real vCPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from pykvm import Machine, Mode
from pykvm.memory import GuestMemory
from support.irqchips import IRQCHIPS

pytestmark = pytest.mark.kvm

MEMORY = "memory: 639 KiB and 64512 KiB, 65151 KiB in 5 ranges"
SYMBOLS = "symbols: main is where it says"


@pytest.mark.parametrize(
    ("name", "version", "told"),
    [
        ("multiboot.elf", 1, [MEMORY, SYMBOLS]),
        ("multiboot-64.elf", 1, [MEMORY, SYMBOLS]),
        ("multiboot.bin", 1, [MEMORY]),
        ("multiboot2.elf", 2, [MEMORY, SYMBOLS]),
    ],
)
def test_a_kernel_is_told_all_there_is(
    guests: Path, tmp_path: Path, name: str, version: int, told: list[str]
) -> None:
    (tmp_path / "initrd").write_bytes(bytes(range(256)) * 20)
    with Machine(
        guests / name,
        append="console=com1",
        args=["more"],
        initrd=tmp_path / "initrd",
        modules=[(b"\1\2\3", "the words")],
    ) as machine:
        result = machine.run(timeout=20)
        said = machine.serial.text.splitlines()
    assert said == [
        'module 0: "initrd", 5120 bytes, sum 652800',
        'module 1: "module 0 the words", 3 bytes, sum 6',
        *['RSDP: "RSD", revision 2'] * (version == 2),
        f"multiboot {version} by pykvm",
        f'command line: "{name} console=com1 more"',
        *told,
    ]
    assert result.exit_code == 0, result


def test_memory_above_the_hole_is_in_the_map_only(guests: Path) -> None:
    with GuestMemory(overcommit=True) as memory:
        memory.add_ram(0, 3 << 30)
        memory.add_ram(4 << 30, 1 << 30, name="high")
        with Machine(guests / "multiboot.elf", memory=memory) as machine:
            assert machine.run(timeout=20).exit_code == 0
            said = machine.serial.text
    assert f"memory: 639 KiB and {(3 << 20) - 1024} KiB, {(4 << 20) - 1024 + 639} KiB in 6" in said


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_the_environment_of_kvm_unit_tests(guests: Path, irqchip: str) -> None:
    with Machine(guests / "testdev.elf", irqchip=irqchip, vcpus=2) as machine:
        result = machine.run(timeout=20)
        said = machine.serial.text
    assert said == "testdev: ports, memory, an edge and a level; fw_cfg: 2 processor(s)\n", result
    assert result.exit_code == 0, result


def test_a_kernel_may_look_for_devices_that_are_not_there(guests: Path) -> None:
    with Machine(guests / "testdev.elf") as machine:
        assert {"pc-testdev", "pc-testdev-irq", "pc-testdev-memory"} <= machine.devices.keys()
        assert machine.run(timeout=20).exit_code == 0
    with Machine(guests / "testdev.elf") as machine:
        machine.remove("pc-testdev")
        assert machine.run(timeout=20).exit_code == 1  # what it reads there is all ones


def test_without_an_interrupt_controller_the_lines_lead_nowhere(guests: Path) -> None:
    with Machine(guests / "testdev.elf", irqchip="none") as machine:
        result = machine.run(timeout=20)
    assert result.exit_code not in (0, 1, 2), result


def test_a_boot_sector_finds_the_drive_in_dl() -> None:
    code = bytes.fromhex("88 d0  e6 f4  f4")  # mov al, dl; out 0xf4, al; hlt
    with Machine(code.ljust(510, b"\0") + b"\x55\xaa", memory="1M") as machine:
        assert machine.run(timeout=20).exit_code == 0x80


def test_a_flat_image_starts_where_it_is_told_to() -> None:
    code = bytes.fromhex(
        "f4"  # hlt
        "8c c8  3d c0 07  75 0d"  # mov ax, cs; cmp ax, 0x7c0; jne fail
        "8c d0  3d 00 90  75 06"  # mov ax, ss; cmp ax, 0x9000; jne fail
        "89 e0  e6 f4  f4"  # mov ax, sp; out 0xf4, al; hlt
        "b0 01"  # fail: mov al, 1
        "e6 f4  f4"  # out 0xf4, al; hlt
    )
    with Machine(
        code, mode=Mode.REAL, entry="07C0:0001", stack="9000:fffe", memory="1M"
    ) as machine:
        assert machine.run(timeout=20).exit_code == 0xFE
