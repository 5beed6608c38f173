"""Kernels start on a real vCPU, with what their protocol promises them: each says what it found."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from boot.kernels import FIELDS, PACKERS, M, bzimage, versioned

from pykvm import Machine, Outcome
from pykvm.x86.cpuid import CpuidTable
from support.irqchips import IRQCHIPS

pytestmark = pytest.mark.kvm

INITRD = bytes(range(50))


def run(image: Path | bytes, **options: Any) -> str:
    options.setdefault("memory", "32M")
    options.setdefault("append_only", True)
    with Machine(image, append="console=ttyS0", args=["quiet"], **options) as machine:
        result = machine.run(timeout=20)
        assert result.exit_code == 0, result
        return machine.serial.text


def linux_text(bits: int, code: int, data: str = "setup data: type 9, 32 bytes\n") -> str:
    return (
        f"{bits}-bit entry, cs=10 ds=18 ss=18\n"
        f"loader ff, protocol 20f, code at {code:x}, sentinel 0\n"
        "command line: console=ttyS0 quiet\n"
        f"e820: 5 entries, {(32 * M - 0x100000 + 0x9FC00) >> 10} KiB of RAM\n"
        f"initrd: 50 bytes, sum {sum(INITRD)}\n"
        "RSDP: *\n" + data
    )


def without_rsdp(text: str) -> str:
    return re.sub(r"RSDP: [0-9a-f]+\n", "RSDP: *\n", text)


def changed(image: bytes, **fields: int) -> bytes:
    """A bzImage with fields of its setup header changed."""
    copy = bytearray(image)
    for name, value in fields.items():
        offset, size = FIELDS[name]
        copy[offset : offset + size] = value.to_bytes(size, "little")
    return bytes(copy)


def with_payload(image: bytes, kernel: bytes, pack: str) -> bytes:
    """The bzImage with `kernel` packed in it, after its own code."""
    payload = PACKERS[pack](kernel)
    code = image[1024:] + payload.ljust(-(-len(payload) // 16) * 16, b"\0")
    return changed(
        image[:1024] + code,
        syssize=len(code) // 16,
        payload_offset=len(image) - 1024,
        payload_length=len(payload),
        relocatable_kernel=1,
        kernel_alignment=2 * M,
        pref_address=16 * M,
        init_size=1 * M,
    )


@pytest.mark.parametrize(("boot", "bits"), [("linux64", 64), ("linux32", 32), (None, 64)])
def test_a_bzimage_at_its_own_entries(guests: Path, boot: str | None, bits: int) -> None:
    text = run(guests / "bzImage", boot=boot, initrd=INITRD)
    assert without_rsdp(text) == linux_text(bits, M)


def test_an_old_kernel_is_entered_at_32_bits(guests: Path) -> None:
    image = changed((guests / "bzImage").read_bytes(), version=0x208)
    text = run(image, initrd=INITRD)
    assert without_rsdp(text) == linux_text(32, M, data="").replace("20f", "208")


def test_a_bzimage_elsewhere(guests: Path) -> None:
    image = changed(
        (guests / "bzImage").read_bytes(),
        relocatable_kernel=1,
        kernel_alignment=2 * M,
        pref_address=512 * M,
    )
    assert without_rsdp(run(image, boot="linux64", initrd=INITRD)) == linux_text(64, 2 * M)


def test_a_vmlinux(guests: Path) -> None:
    assert without_rsdp(run(guests / "vmlinux", initrd=INITRD)) == linux_text(64, 16 * M)


@pytest.mark.parametrize("pack", PACKERS)
def test_a_packed_kernel(guests: Path, pack: str) -> None:
    kernel = (guests / "vmlinux").read_bytes() + bytes(100)
    image = with_payload((guests / "bzImage").read_bytes(), kernel, pack)
    assert without_rsdp(run(image, initrd=INITRD)) == linux_text(64, 16 * M)


def test_a_packed_kernel_elsewhere(guests: Path) -> None:
    kernel = (guests / "vmlinux").read_bytes()
    image = with_payload((guests / "bzImage").read_bytes(), kernel, "lz4")
    text = run(image, initrd=INITRD, memory="8M")
    assert "64-bit entry, cs=10" in text
    assert "code at 200000," in text


def test_pvh(guests: Path) -> None:
    text = run(guests / "pvh.elf", initrd=INITRD, modules=[(b"\1\2\3", "three bytes")])
    assert without_rsdp(text) == (
        "magic 336ec578, version 1, cr0=11, tr loaded\n"
        "command line: console=ttyS0 quiet\n"
        f"memory map: 5 entries, {(32 * M - 0x100000 + 0x9FC00) >> 10} KiB of RAM\n"
        f"module: 50 bytes, sum {sum(INITRD)}: -\n"
        "module: 3 bytes, sum 6: three bytes\n"
        "memory types: c06\n"
        "RSDP: *\n"
    )


class TestMemoryTypes:
    """MTRRs as firmware leaves them to a kernel: all processors' alike, and on (SDM 3A 12.11.8)."""

    DEF_TYPE, VGA, HOLE, HOLE_MASK = 0x2FF, 0x259, 0x200, 0x201

    def read(self, machine: Machine) -> list[dict[int, int]]:
        wanted = (self.DEF_TYPE, self.VGA, self.HOLE, self.HOLE_MASK)
        return [cpu.kvm.get_msrs(wanted) for cpu in machine.vcpus]

    @pytest.mark.parametrize("irqchip", IRQCHIPS)
    @pytest.mark.parametrize("kernel", ["bzImage", "pvh.elf", "multiboot.elf"])
    def test_kernels(self, guests: Path, kernel: str, irqchip: str) -> None:
        with Machine(guests / kernel, vcpus=2, irqchip=irqchip) as machine:
            first, second = self.read(machine)
        assert first == second
        assert (first[self.DEF_TYPE], first[self.VGA], first[self.HOLE]) == (0xC06, 0, 3 << 30)
        assert first[self.HOLE_MASK] & 0xFFFF_FFFF == 0xC0000800

    @pytest.mark.parametrize("guest", ["firmware.bin", "hello.elf"])
    def test_firmware_and_bare_guests_find_what_reset_leaves(
        self, guests: Path, guest: str
    ) -> None:
        with Machine(guests / guest) as machine:
            assert set(self.read(machine)[0].values()) == {0}

    def test_a_processor_that_shows_none(self, guests: Path) -> None:
        """Some KVMs show them all the same, and then they are set."""
        with Machine(guests / "pvh.elf", cpu="baseline,-mtrr") as machine:
            shown = "mtrr" in CpuidTable(machine.vcpus[0].kvm.get_cpuid2())
            assert (self.read(machine)[0][self.DEF_TYPE] != 0) == shown


def test_the_bare_guests_by_their_pvh_entry(guests: Path) -> None:
    assert run(guests / "hello.elf", boot="pvh") == "Hello from long mode!\n"


def test_what_linux_gets_unless_told_otherwise(guests: Path) -> None:
    """Words before the caller's, which the result lists, and the kernel's interrupt controllers."""
    with Machine(guests / "vmlinux", memory="32M", append="quiet") as machine:
        assert machine._board.hardware().irqchip == "kernel"
        result = machine.run(timeout=20)
        assert result.exit_code == 0, result
        assert re.search(r"command line: panic=-1 (.* )?quiet\n", machine.serial.text)
        assert "the kernel's command line begins with panic=-1" in result.notes[0]


def test_another_kernel_that_starts_as_linux_does_is_let_alone() -> None:
    """No words, no interrupt controllers of KVM's, and its console is not listened to."""
    panic = b"Kernel panic - not syncing: none\n---[ end Kernel panic ]---\n"
    entry = bytes.fromhex(
        f"48 8d 35 13 00 00 00  b9 {len(panic):02x} 00 00 00"  # lea rsi, [text]; mov ecx, length
        "66 ba f8 03  6e e2 fd"  # mov dx, 0x3f8; next: outsb, which takes as many turns; loop next
        "b0 2a e6 f4 eb fe"  # mov al, 0x2a; out 0xf4, al
    )
    code = bytes(0x200) + entry.ljust(26, b"\x90") + panic
    with Machine(versioned(bzimage(code), b"Memtest86+ v6.10"), boot="linux64") as machine:
        assert machine._board.hardware().irqchip == "user"
        result = machine.run(timeout=20)
        assert result.exit_code == 0x2A, result
        assert result.notes == ()
        assert machine.serial.text == panic.decode()


def test_what_it_may_miss_is_said_if_it_crashes() -> None:
    kernel = versioned(bzimage(b"\x0f\x0b" + bytes(0x200)), b"1.0.0+git")
    with Machine(kernel, boot="linux32") as machine:
        result = machine.run(timeout=20)
        assert result.outcome is Outcome.CRASHED
        assert result.notes[-1] == (
            "guest: was started at its 32-bit entry, which not every bzImage has that is not "
            "Linux; its 16-bit set-up code is started by firmware (kernel=)"
        )


@pytest.mark.parametrize(
    ("options", "irqchip"), [({"clock": "warp"}, "user"), ({"irqchip": "split"}, "split")]
)
def test_where_its_interrupt_controllers_are(
    guests: Path, options: dict[str, Any], irqchip: str
) -> None:
    with Machine(guests / "vmlinux", memory="32M", append_only=True, **options) as machine:
        assert machine._board.hardware().irqchip == irqchip
        result = machine.run(timeout=20)
        assert result.exit_code == 0, result
        assert "panic=-1" not in machine.serial.text
