"""What fw_cfg has of the machine and of a kernel for firmware, and the ROM that boots that."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.boot.boot_rom import CODE_AT, FILE_NAME, LISTING, PARTS_AT, PRODUCT_AT, boot_rom
from pykvm.boot.fw_cfg_items import contents_of
from pykvm.boot.fw_cfg_kernel import kernel_items
from pykvm.boot.source import Source
from pykvm.devices.fw_cfg import Key
from pykvm.errors import ConfigError, LoadError
from pykvm.tables import Hardware

K, M = 1 << 10, 1 << 20
SETUP = 0x400


def bzimage(code: bytes = b"\xf4" * 100, **fields: Any) -> bytes:
    """A kernel of protocol 2.15 with one sector of set-up code after the first."""
    header: dict[str, tuple[int, str, Any]] = {
        "setup_sects": (0x1F1, "B", 1),
        "boot_flag": (0x1FE, "H", 0xAA55),
        "header": (0x202, "4s", b"HdrS"),
        "version": (0x206, "H", 0x20F),
        "loadflags": (0x211, "B", 1),
        "initrd_addr_max": (0x22C, "I", 0x7FFF_FFFF),
        "cmdline_size": (0x238, "I", 2047),
        "pref_address": (0x258, "Q", M),
        "init_size": (0x260, "I", 64 * K),
    }
    setup = bytearray(SETUP)
    for name, (offset, form, value) in header.items():
        struct.pack_into(f"<{form}", setup, offset, fields.pop(name, value))
    assert not fields
    return bytes(setup) + code


def items(
    kernel: bytes, line: str = "", initrd: bytes | None = None, ram: int = 64 * M
) -> dict[int, bytes]:
    disk = None if initrd is None else Source("disk", initrd)
    found = kernel_items(Source("bzImage", kernel), line, disk, ram)
    return {key: bytes(data) for key, data in found.items()}


def part(found: dict[int, bytes], address: int, size: int, data: int) -> tuple[int, bytes]:
    """Where a part of the kernel belongs, and its bytes."""
    assert int.from_bytes(found[size], "little") == len(found[data])
    return int.from_bytes(found[address], "little"), found[data]


def setup_of(found: dict[int, bytes]) -> bytes:
    address, setup = part(found, Key.SETUP_ADDR, Key.SETUP_SIZE, Key.SETUP_DATA)
    assert address == 0x10000
    return setup


def initrd_of(found: dict[int, bytes]) -> tuple[int, bytes]:
    return part(found, Key.INITRD_ADDR, Key.INITRD_SIZE, Key.INITRD_DATA)


class TestKernel:
    def test_is_cut_in_two(self) -> None:
        found = items(bzimage(b"kernel"))
        assert len(setup_of(found)) == SETUP
        kernel = part(found, Key.KERNEL_ADDR, Key.KERNEL_SIZE, Key.KERNEL_DATA)
        assert kernel == (M, b"kernel")

    def test_0_sectors_mean_4(self) -> None:
        found = items(bzimage(bytes(5 * 512), setup_sects=0))
        assert len(setup_of(found)) == 5 * 512

    def test_the_loader_fills_in_its_fields(self) -> None:
        before = bzimage()
        setup = setup_of(items(before, initrd=b"x" * 5000))
        start, size = struct.unpack_from("<II", setup, 0x218)
        assert (setup[0x210], setup[0x211]) == (0xFF, 0x81)
        assert (start, size) == (63 * M - 8192, 5000)
        # Up to its heap and stack the set-up code may use 64 KiB less the stack.
        assert struct.unpack_from("<H", setup, 0x224) == (0xFE00,)
        assert struct.unpack_from("<I", setup, 0x228) == (0x20000,)
        changed = {at for at in range(SETUP) if setup[at] != before[at]}
        assert changed <= {*range(0x210, 0x212), *range(0x218, 0x22C)}

    def test_the_command_line_ends_in_a_nul(self) -> None:
        found = items(bzimage(), "console=ttyS0")
        line = part(found, Key.CMDLINE_ADDR, Key.CMDLINE_SIZE, Key.CMDLINE_DATA)
        assert line == (0x20000, b"console=ttyS0\0")

    def test_without_an_initrd(self) -> None:
        found = items(bzimage())
        assert initrd_of(found) == (0, b"")
        assert setup_of(found)[0x218:0x220] == bytes(8)

    def test_the_initrd_lies_below_its_limit_and_what_firmware_keeps(self) -> None:
        assert initrd_of(items(bzimage(), initrd=b"x"))[0] == 63 * M - 4096
        assert initrd_of(items(bzimage(initrd_addr_max=16 * M - 1), initrd=b"x")) == (
            16 * M - 4096,
            b"x",
        )
        # Before 2.03 the header does not say.
        old = bzimage(version=0x202, initrd_addr_max=0)
        assert initrd_of(items(old, initrd=b"x", ram=2048 * M))[0] == 0x3800_0000 - 4096

    @pytest.mark.parametrize(
        ("kernel", "options", "message"),
        [
            (b"", {}, "is no bzImage"),
            (bytes(4096), {}, r"is no bzImage \(no boot flag 0xaa55 at 0x1fe\)"),
            (bzimage(header=b"text"), {}, r"is no bzImage \(no 'HdrS' at 0x202\)"),
            (bzimage()[:0x230], {}, "header is truncated"),
            (bzimage()[:0x260], {}, "0x400 bytes of set-up code"),
            (bzimage(version=0x201), {}, "version 2.01 of the Linux boot .* pykvm speaks 2.02"),
            (bzimage(loadflags=0), {}, "is a zImage"),
            (bzimage(setup_sects=64), {}, r"0x8200 bytes of set-up code \(setup_sects 64\)"),
            (bzimage(b"", setup_sects=1), {}, "0x400 bytes of set-up code"),
            (bzimage(bytes(200 * K), setup_sects=200), {}, "0x19200 bytes of set-up code"),
            (bzimage(), {"line": "x" * 2048}, "2048 bytes, and the kernel takes 2047"),
            (bzimage(version=0x205), {"line": "x" * 256}, "256 bytes, and the kernel takes 255"),
            (
                bzimage(cmdline_size=0xFFFF_FFFF),
                {"line": "x" * 65536},
                "the kernel takes 65535",
            ),
            (bzimage(bytes(2 * M)), {"ram": 2 * M}, r"kernel \(0x100000-0x300000\) lies outside"),
            (
                bzimage(init_size=4 * M),
                {"ram": 4 * M},
                r"kernel \(0x100000-0x500000\) lies outside",
            ),
            (bzimage(pref_address=1 << 63), {}, "lies outside guest memory"),
            (bzimage(), {"initrd": bytes(4 * M), "ram": 4 * M}, "disk: no room for an initrd"),
            (bzimage(initrd_addr_max=0), {"initrd": b"x"}, "disk: no room for an initrd"),
        ],
    )
    def test_refused(self, kernel: bytes, options: dict[str, Any], message: str) -> None:
        with pytest.raises(LoadError, match=message) as caught:
            items(kernel, **options)
        assert str(caught.value).startswith(("bzImage: ", "disk: "))

    def test_a_command_line_that_is_no_c_string(self) -> None:
        with pytest.raises(ConfigError, match="contains a NUL"):
            items(bzimage(), line="a\0b")

    @given(
        st.lists(st.tuples(st.integers(0x1F0, 0x270), st.integers(0, 255)), max_size=8),
        st.none() | st.integers(0, SETUP + 8),
        st.integers(1 * M, 8 * M),
    )
    def test_hostile_headers(
        self, changes: list[tuple[int, int]], end: int | None, ram: int
    ) -> None:
        data = bytearray(bzimage())
        for at, value in changes:
            data[at] = value
        try:
            found = items(bytes(data[:end]), "line", b"initrd", ram)
        except LoadError:
            return
        # Nothing overlaps, and nothing is where there is no RAM.
        start, disk = initrd_of(found)
        assert M + len(found[Key.KERNEL_DATA]) <= start
        assert start + len(disk) <= ram
        assert len(setup_of(found)) < 0x10000


class TestContents:
    HARDWARE = Hardware(vcpus=3, ram=((0, 64 * M), (1 << 32, (1 << 32) + M)))

    def test_of_the_machine(self) -> None:
        told = contents_of(self.HARDWARE, {}, {})
        assert told.items[Key.RAM_SIZE] == (65 * M).to_bytes(8, "little")
        assert told.items[Key.NB_CPUS] == told.items[Key.MAX_CPUS] == b"\3\0"
        assert Key.KERNEL_DATA not in told.items
        assert FILE_NAME not in told.files
        assert "bootorder" not in told.files

    def test_memory_as_it_is_and_what_is_kvms(self) -> None:
        told = contents_of(self.HARDWARE, {}, {})
        assert list(struct.iter_unpack("<QQI", told.files["etc/e820"])) == [
            (0, 64 * M, 1),
            (0xFEFF_C000, 0x4000, 2),
            (1 << 32, M, 1),
        ]

    def test_smbios_for_the_firmware_to_place(self) -> None:
        told = contents_of(self.HARDWARE, {}, {})
        anchor = bytes(told.files["etc/smbios/smbios-anchor"])
        structures = bytes(told.files["etc/smbios/smbios-tables"])
        # SeaBIOS takes no anchor of another size, nor structures of another than it names.
        assert len(anchor) == 0x1F
        assert struct.unpack_from("<H", anchor, 0x16) == (len(structures),)

    def test_a_kernel_comes_with_the_rom_that_boots_it(self) -> None:
        told = contents_of(self.HARDWARE, kernel_items(Source("k", bzimage()), "", None, M * 8), {})
        assert told.files[FILE_NAME] == boot_rom()
        assert bytes(told.files["bootorder"]).startswith(f"/rom@{FILE_NAME}\n".encode())
        assert Key.KERNEL_DATA in told.items

    def test_acpi_tables_for_the_firmware_to_place(self) -> None:
        assert "etc/table-loader" not in contents_of(self.HARDWARE, {}, {}).files
        told = contents_of(self.HARDWARE._replace(devices=frozenset({"acpi-pm"})), {}, {})
        assert bytes(told.files["etc/acpi/rsdp"]).startswith(b"RSD PTR ")
        assert b"FACP" in bytes(told.files["etc/acpi/tables"])

    def test_the_users_files_come_before_ours(self) -> None:
        files = {"opt/org.x/a": b"a", "etc/boot-fail-wait": b"\1"}
        told = contents_of(self.HARDWARE, {}, files)
        assert files.items() <= told.files.items()


class TestRom:
    def test_it_is_a_rom_that_boots(self) -> None:
        rom = boot_rom()
        assert rom[:2] == b"\x55\xaa"
        assert rom[2] * 512 == len(rom)
        assert sum(rom) % 256 == 0
        (header_at,) = struct.unpack_from("<H", rom, 0x1A)
        header = rom[header_at : header_at + 32]
        assert header[:6] == b"$PnP\1\2"
        assert sum(header) % 256 == 0
        product, boot_connection, boot_entry = (
            struct.unpack_from("<H", header, at)[0] for at in (0x10, 0x16, 0x1A)
        )
        assert (product, boot_connection, boot_entry) == (PRODUCT_AT, 0, CODE_AT)

    def test_it_asks_for_every_part(self) -> None:
        assert boot_rom()[PARTS_AT : PARTS_AT + 13].hex(" ") == (
            "16 17 18 13 14 15 07 08 11 0a 0b 12 00"
        )

    def test_the_assembler_makes_the_bytes_of_its_listing(self, tmp_path: Path) -> None:
        missing = [tool for tool in ("as", "objcopy") if shutil.which(tool) is None]
        if missing:
            pytest.skip(f"{' and '.join(missing)} is missing: install binutils")
        source = "\n".join(line[24:] for line in LISTING.splitlines()) + "\n"
        for command in (
            ["as", "--32", "-o", "rom.o", "-"],
            ["objcopy", "-O", "binary", "-j", ".text", "rom.o", "rom.bin"],
        ):
            subprocess.run(command, input=source, cwd=tmp_path, check=True, text=True)
        code = (tmp_path / "rom.bin").read_bytes()
        assert boot_rom()[CODE_AT : CODE_AT + len(code)] == code
        assert len(code) <= PARTS_AT - CODE_AT
