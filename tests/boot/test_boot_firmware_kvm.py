"""Firmware on a real VM: the reset vector, the shadow, fw_cfg by ports and by DMA."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pykvm import Machine, Outcome
from pykvm.bus import Placement, Space
from pykvm.devices import standard_devices
from pykvm.devices.fw_cfg import Contents, FwCfg, Key
from pykvm.devices.pc import pc_devices
from pykvm.errors import ConfigError, LoadError
from support.guest import MakeGuest
from support.irqchips import IRQCHIPS

pytestmark = pytest.mark.kvm

GREETING = "opt/org.pykvm/greeting"


@pytest.mark.parametrize("vcpus", [1, 3])
def test_it_starts_and_reads_fw_cfg(guests: Path, vcpus: int) -> None:
    with Machine(
        guests / "firmware.bin", vcpus=vcpus, fw_cfg={GREETING: b"good morning"}
    ) as machine:
        result = machine.run(timeout=30)
        assert result.exit_code == 0, f"{result}, {machine.serial.text!r}"
        assert machine.serial.text == (
            f"Hello from the reset vector!\nfw_cfg: processors: {vcpus}\nfw_cfg: good morning\n"
        )
        # What it wrote went to the shadow; the image is as it was.
        image = (guests / "firmware.bin").read_bytes()
        assert machine.memory.read(0xFFFF_0000, 0x1_0000) == image
        shadow = machine.memory.read(0xF_0000, 0x1_0000)
        assert [was + 1 for was, now in zip(image, shadow, strict=True) if was != now] == [1]


def test_the_processor_does_not_write_to_the_image(guests: Path) -> None:
    """MOV [0xfffffff0], 0xf4f4f4f4 in protected mode is no memory: it comes to the bus."""
    store = bytes.fromhex("c7 05 f0 ff ff ff f4 f4 f4 f4  f4")
    with Machine(store, mode="protected", load_address=0x7000) as machine:
        machine.memory.add_rom(0xFFFF_0000, (guests / "firmware.bin").read_bytes())
        result = machine.run(timeout=30)
        assert result.outcome is Outcome.CRASHED
        assert "0xfffffff0" in str(result)
        assert machine.memory.read(0xFFFF_FFF0, 1) == b"\xe9"


STRING = """
    B8 11 00        mov ax, 0x11            ; FW_CFG_KERNEL_DATA
    BA 10 05        mov dx, 0x510
    EF              out dx, ax
    42              inc dx
    FC              cld
    B8 00 10        mov ax, 0x1000
    8E C0           mov es, ax
    31 FF           xor di, di
    B9 00 60        mov cx, 0x6000
    F3 6C           rep insb
    F4              hlt
"""


class Counting(FwCfg):
    """Counts how often Python is asked for bytes."""

    calls = 0

    def read(self, offset: int, size: int) -> int:
        self.calls += 1
        return super().read(offset, size)

    def read_string(self, offset: int, size: int, count: int) -> bytes:
        self.calls += 1
        return super().read_string(offset, size, count)


def test_a_string_of_input_does_not_cost_a_call_a_byte(guest: MakeGuest) -> None:
    kernel = bytes(range(251)) * 97
    fw_cfg = Counting(lambda: Contents({Key.KERNEL_DATA: kernel}, {}))
    machine = guest(STRING, devices=[Placement(fw_cfg, Space.PIO, 0x510, 2)])
    assert machine.run(timeout=30).outcome is Outcome.HALTED
    assert machine.memory.read(0x1_0000, 0x6000) == kernel[:0x6000].ljust(0x6000, b"\0")
    assert fw_cfg.calls <= 0x6000 // 16


class TestRefused:
    def test_a_kernel_that_is_none_costs_no_run(self, guests: Path) -> None:
        with pytest.raises(LoadError, match=r"kernel: is no bzImage"):
            Machine(guests / "firmware.bin", kernel=b"\x7fELF")

    def test_a_kernel_for_something_that_is_no_firmware(self, guests: Path) -> None:
        with pytest.raises(ConfigError, match="kernel= is for firmware"):
            Machine(guests / "hello.elf", kernel=guests / "linux16.bzimage")

    def test_a_kernel_without_an_image(self, guests: Path) -> None:
        with pytest.raises(ConfigError, match=r"kernel and \w+ go with an image"):
            Machine(kernel=guests / "linux16.bzimage")

    def test_files_for_a_machine_without_fw_cfg(self, guests: Path) -> None:
        with pytest.raises(ConfigError, match="no fw_cfg"):
            Machine(guests / "hello.elf", fw_cfg={GREETING: b"x"})

    def test_files_beside_contents_of_ones_own(self) -> None:
        mine = Placement(FwCfg(lambda: Contents({}, {})), Space.PIO, 0x510, 2)
        with pytest.raises(ConfigError, match="contents of its own"):
            Machine(devices=[mine], fw_cfg={GREETING: b"x"})

    def test_a_name_that_no_file_can_have(self, guests: Path) -> None:
        with pytest.raises(ConfigError, match="cannot name a file"):
            Machine(guests / "firmware.bin", fw_cfg={"x" * 56: b"x"})


def test_a_machine_of_ones_own_can_have_fw_cfg() -> None:
    devices = [*standard_devices(), *pc_devices()]
    with Machine(devices=devices, vcpus=2, fw_cfg={GREETING: b"x"}) as machine:
        fw_cfg = machine.devices["fw-cfg"]
        assert isinstance(fw_cfg, FwCfg)
        fw_cfg.write(0, 2, Key.NB_CPUS)
        assert fw_cfg.read(1, 2) == 2


def test_firmware_that_resets_the_machine_ends_the_run() -> None:
    image = bytearray(64 << 10)
    image[-16:-5] = bytes.fromhex("90 e9 00 00  ba f9 0c  b0 06 ee f4")
    with Machine(bytes(image)) as machine:
        result = machine.run(timeout=30)
        assert result.outcome is Outcome.RESET, result


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_a_transfer_without_end_does_not_keep_the_run(guest: MakeGuest, irqchip: str) -> None:
    """A GiB of zeros takes longer than the run has, which ends all the same, and can go on."""
    machine = guest(
        """
        66 BA 18 05 00 00        mov edx, 0x518
        66 B8 00 00 06 00        mov eax, 0x60000        ; the address 0x600, big-endian
        66 EF                    out dx, eax
        EB FE                    jmp $
        """,
        memory="1056M",
        irqchip=irqchip,
        devices=standard_devices() + pc_devices(),
    )
    control, length, target = 0x1F << 16 | 8 | 2, 1 << 30, 1 << 20
    access = struct.pack(">IIQ", control, length, target)
    machine.memory.write(0x600, access)
    result = machine.run(timeout=0.02)
    assert result.outcome is Outcome.TIMEOUT
    assert machine.memory.read(0x600, 16) == access, "it is under way"

    def done(machine: Machine) -> bool:
        return machine.memory.read(0x600, 4) == bytes(4)

    # One that fits into a run comes to its end.
    device = machine.devices["fw-cfg"]
    assert isinstance(device, FwCfg)
    device.reset()
    machine.memory.write(0x600, struct.pack(">IIQ", control, 32 << 20, target))
    machine.vcpus[0].regs.rip = 0x7C00
    assert machine.run(timeout=30, until=done).outcome is Outcome.UNTIL
