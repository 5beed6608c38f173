"""The ACPI tables, byte for byte, as read back from memory, and as Intel's own tools see them."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from clock.fake_host import Host
from tables.acpi_reader import Found, Memory, find

from pykvm.devices.hpet import Hpet
from pykvm.devices.line import Unconnected
from pykvm.tables import Hardware, acpi_tables, build
from pykvm.tables.fadt import FIELDS

PC = frozenset(
    ["acpi-pm", "com1", "com2", "hpet", "i8042", "pm-timer", "pvpanic", "pci-config", "rtc"]
)


def found(hardware: Hardware) -> Found:
    return find(Memory(build(hardware).pieces))


def fields(fadt: bytes) -> dict[str, bytes]:
    """The FADT's fields by name."""
    values, at = {}, 36
    for name, width in FIELDS:
        values[name], at = fadt[at : at + width], at + width
    return values


def number(value: bytes) -> int:
    return int.from_bytes(value, "little")


class TestWhatIsThere:
    def test_a_pc_has_fadt_madt_and_hpet(self) -> None:
        assert list(found(Hardware(devices=PC)).tables) == ["FACP", "APIC", "HPET"]

    def test_without_an_hpet(self) -> None:
        assert list(found(Hardware(devices=PC - {"hpet"})).tables) == ["FACP", "APIC"]

    def test_without_interrupt_controllers(self) -> None:
        assert list(found(Hardware(irqchip="none", devices=PC)).tables) == ["FACP", "HPET"]

    def test_without_acpi(self) -> None:
        assert acpi_tables(Hardware(devices=PC - {"acpi-pm"})) == ()
        assert build(Hardware(devices=PC - {"acpi-pm"})).rsdp == 0

    def test_headers(self) -> None:
        found_ = found(Hardware(devices=PC))
        for data in (*found_.tables.values(), found_.dsdt):
            assert data[10:36] == b"PYKVM PYKVM   \1\0\0\0PYKV\1\0\0\0"

    def test_the_facs(self) -> None:
        facs = found(Hardware(devices=PC)).facs
        assert facs == b"FACS" + struct.pack("<I", 64) + bytes(24) + b"\2" + bytes(31)


class TestFadt:
    def test_where_its_fields_stand(self) -> None:
        """Offsets from ACPI 6.5, table 5.9."""
        places, at = {}, 36
        for name, width in FIELDS:
            places[name], at = at, at + width
        assert at == 276
        for name, place in {
            "SCI_INT": 46,
            "PM1a_EVT_BLK": 56,
            "PM_TMR_BLK": 76,
            "PM1_EVT_LEN": 88,
            "P_LVL2_LAT": 96,
            "CENTURY": 108,
            "IAPC_BOOT_ARCH": 109,
            "Flags": 112,
            "RESET_REG": 116,
            "RESET_VALUE": 128,
            "X_DSDT": 140,
            "X_PM_TMR_BLK": 208,
            "SLEEP_CONTROL_REG": 244,
        }.items():
            assert places[name] == place, name

    def test_registers(self) -> None:
        values = fields(found(Hardware(devices=PC)).tables["FACP"])
        for name, value in {
            "SCI_INT": 9,
            "SMI_CMD": 0,
            "PM1a_EVT_BLK": 0x600,
            "PM1_EVT_LEN": 4,
            "PM1a_CNT_BLK": 0x604,
            "PM1_CNT_LEN": 2,
            "PM_TMR_BLK": 0x608,
            "PM_TMR_LEN": 4,
            "GPE0_BLK": 0,
            "CENTURY": 0x32,
            "IAPC_BOOT_ARCH": 0b111,
            # WBINVD, PROC_C1, no sleep button, no RTC wake-up, 32-bit timer, reset register.
            "Flags": 0b101_0110_0101,
            "RESET_VALUE": 6,
        }.items():
            assert number(values[name]) == value, name
        assert values["RESET_REG"].hex() == "01080001f90c000000000000"
        assert values["X_PM1a_EVT_BLK"].hex() == "012000020006000000000000"
        assert values["X_PM1a_CNT_BLK"].hex() == "011000020406000000000000"
        assert values["X_PM_TMR_BLK"].hex() == "012000030806000000000000"

    def test_what_is_not_on_the_bus_is_not_told_of(self) -> None:
        values = fields(found(Hardware(devices=frozenset(["acpi-pm"]))).tables["FACP"])
        for name in ("PM_TMR_BLK", "PM_TMR_LEN", "X_PM_TMR_BLK", "RESET_REG", "CENTURY"):
            assert number(values[name]) == 0, name
        assert number(values["Flags"]) == 0b000_0110_0101
        assert number(values["IAPC_BOOT_ARCH"]) == 0b100101, "no 8042, no RTC"


class TestMadt:
    def test_two_processors(self) -> None:
        madt = found(Hardware(vcpus=2, devices=PC)).tables["APIC"]
        assert madt[36:] == bytes.fromhex("""
            00 00 e0 fe  01 00 00 00
            00 08 00 00  01 00 00 00
            00 08 01 01  01 00 00 00
            01 0c 00 00  00 00 c0 fe  00 00 00 00
            02 0a 00 00  02 00 00 00  00 00
            02 0a 00 09  09 00 00 00  0d 00
            04 06 ff 00  00 01
        """)

    @pytest.mark.parametrize("vcpus", [254, 255, 256, 300])
    def test_ids_beyond_a_byte_are_those_of_x2apics(self, vcpus: int) -> None:
        madt = found(Hardware(vcpus=vcpus, devices=PC)).tables["APIC"]
        at, entries = 44, []
        while at < len(madt):
            entries.append(madt[at : at + madt[at + 1]])
            at += madt[at + 1]
        narrow = [entry for entry in entries if entry[0] == 0]
        wide = [entry for entry in entries if entry[0] == 9]
        assert [entry[3] for entry in narrow] == list(range(min(vcpus, 255)))
        assert [struct.unpack("<BBxxIII", entry) for entry in wide] == [
            (9, 16, apic_id, 1, apic_id) for apic_id in range(255, vcpus)
        ]
        nmi = [entry.hex() for entry in entries if entry[0] == 10]
        assert nmi == ["0a0c" + "0000" + "ffffffff" + "01" + "000000"] * (vcpus > 255)


def test_the_hpet_is_told_of_as_it_is() -> None:
    table = found(Hardware(devices=PC)).tables["HPET"]
    hpet = Hpet(Host().clock(), {irq: Unconnected() for irq in range(16)})
    assert number(table[36:40]) == hpet.read(0, 4)
    assert table[40:].hex() == "004000040000d0fe00000000" + "00" + "0000" + "00"


iasl = pytest.mark.skipif(shutil.which("iasl") is None, reason="Debian's acpica-tools has iasl")


def run_iasl(*arguments: str | Path) -> str:
    result = subprocess.run(["iasl", *arguments], capture_output=True, text=True, check=True)
    return result.stdout + result.stderr


@iasl
@pytest.mark.parametrize("vcpus", [1, 3, 300])
def test_acpica_reads_the_dsdt_and_makes_the_same_of_its_source(tmp_path: Path, vcpus: int) -> None:
    dsdt = found(Hardware(vcpus=vcpus, devices=PC)).dsdt
    (tmp_path / "dsdt.aml").write_bytes(dsdt)
    run_iasl("-d", tmp_path / "dsdt.aml")
    # No optimisation: that it finds nothing better to write is not the point.
    report = run_iasl("-oa", "-p", tmp_path / "again", tmp_path / "dsdt.dsl")
    assert "0 Errors, 0 Warnings, 0 Remarks" in report
    again = (tmp_path / "again.aml").read_bytes()
    # But for the length, the checksum and the compiler's name.
    assert again[36:] == dsdt[36:]
    source = (tmp_path / "dsdt.dsl").read_text()
    assert source.count("ACPI0007") == vcpus
    for text in ("PNP0501", "PNP0303", "PNP0B00", "QEMU0001", "_S5"):
        assert text in source


@iasl
@pytest.mark.parametrize("name", ["FACP", "APIC", "HPET"])
def test_acpica_knows_every_field(tmp_path: Path, name: str) -> None:
    table = found(Hardware(vcpus=300, devices=PC)).tables[name]
    (tmp_path / "table.aml").write_bytes(table)
    report = run_iasl("-d", tmp_path / "table.aml")
    source = (tmp_path / "table.dsl").read_text()
    for text in (report, source):
        for trouble in ("Error", "Warning", "Unknown", "Invalid", "Incorrect"):
            assert trouble not in text.replace("Hardware Error", "")


def test_the_s5_package_is_found_as_small_kernels_look_for_it() -> None:
    dsdt = found(Hardware(devices=PC)).dsdt
    at = dsdt.index(b"_S5_")
    assert dsdt[at - 1] == 0x08, "NameOp"
    assert dsdt[at + 4] == 0x12, "PackageOp"
    assert dsdt[at + 4 :][:7] == bytes.fromhex("12 06 04 00 00 00 00")


@pytest.mark.parametrize(
    ("device", "id"),
    [
        ("com1", "0c 41 d0 05 01 08"),
        ("i8042", "0c 41 d0 03 03"),
        ("rtc", "0c 41 d0 0b 00"),
        ("pvpanic", b"QEMU0001".hex()),
    ],
)
def test_what_is_not_on_the_bus_is_not_in_the_dsdt(device: str, id: str) -> None:
    others = PC - {"com2"}
    assert bytes.fromhex(id) in found(Hardware(devices=others)).dsdt
    assert bytes.fromhex(id) not in found(Hardware(devices=others - {device})).dsdt
