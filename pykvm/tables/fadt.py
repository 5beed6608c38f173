"""The fixed ACPI description table: where the registers are that every ACPI machine has.

Source: ACPI Specification 6.5, 5.2.9 "Fixed ACPI Description Table (FADT)", tables 5.9 to 5.11.
"""

from __future__ import annotations

from itertools import accumulate

from pykvm import layout
from pykvm.tables.sdt import HEADER, description_table, generic_address
from pykvm.tables.table import Pointer
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.tables.hardware import Hardware
    from pykvm.tables.table import Table

__all__ = ["FIELDS", "fadt"]

REVISION, MINOR_REVISION = 6, 5

# What follows the header: (name, bytes).
FIELDS = (
    ("FIRMWARE_CTRL", 4),
    ("DSDT", 4),
    ("Reserved", 1),
    ("Preferred_PM_Profile", 1),
    ("SCI_INT", 2),
    ("SMI_CMD", 4),
    ("ACPI_ENABLE", 1),
    ("ACPI_DISABLE", 1),
    ("S4BIOS_REQ", 1),
    ("PSTATE_CNT", 1),
    ("PM1a_EVT_BLK", 4),
    ("PM1b_EVT_BLK", 4),
    ("PM1a_CNT_BLK", 4),
    ("PM1b_CNT_BLK", 4),
    ("PM2_CNT_BLK", 4),
    ("PM_TMR_BLK", 4),
    ("GPE0_BLK", 4),
    ("GPE1_BLK", 4),
    ("PM1_EVT_LEN", 1),
    ("PM1_CNT_LEN", 1),
    ("PM2_CNT_LEN", 1),
    ("PM_TMR_LEN", 1),
    ("GPE0_BLK_LEN", 1),
    ("GPE1_BLK_LEN", 1),
    ("GPE1_BASE", 1),
    ("CST_CNT", 1),
    ("P_LVL2_LAT", 2),
    ("P_LVL3_LAT", 2),
    ("FLUSH_SIZE", 2),
    ("FLUSH_STRIDE", 2),
    ("DUTY_OFFSET", 1),
    ("DUTY_WIDTH", 1),
    ("DAY_ALRM", 1),
    ("MON_ALRM", 1),
    ("CENTURY", 1),
    ("IAPC_BOOT_ARCH", 2),
    ("Reserved2", 1),
    ("Flags", 4),
    ("RESET_REG", 12),
    ("RESET_VALUE", 1),
    ("ARM_BOOT_ARCH", 2),
    ("FADT_Minor_Version", 1),
    ("X_FIRMWARE_CTRL", 8),
    ("X_DSDT", 8),
    ("X_PM1a_EVT_BLK", 12),
    ("X_PM1b_EVT_BLK", 12),
    ("X_PM1a_CNT_BLK", 12),
    ("X_PM1b_CNT_BLK", 12),
    ("X_PM2_CNT_BLK", 12),
    ("X_PM_TMR_BLK", 12),
    ("X_GPE0_BLK", 12),
    ("X_GPE1_BLK", 12),
    ("SLEEP_CONTROL_REG", 12),
    ("SLEEP_STATUS_REG", 12),
    ("Hypervisor_Vendor_Identity", 8),
)
_OFFSETS = dict(
    zip(
        (name for name, _ in FIELDS),
        accumulate((width for _, width in FIELDS), initial=HEADER.size),
        strict=False,
    )
)

# IAPC_BOOT_ARCH
LEGACY_DEVICES = 1 << 0
CONTROLLER_8042 = 1 << 1
VGA_NOT_PRESENT = 1 << 2
CMOS_RTC_NOT_PRESENT = 1 << 5

# Flags
WBINVD = 1 << 0
PROC_C1 = 1 << 2
SLP_BUTTON = 1 << 5  # no fixed sleep button
FIX_RTC = 1 << 6  # the RTC does not wake the system through the fixed registers
TMR_VAL_EXT = 1 << 8
RESET_REG_SUP = 1 << 10

# More than these say that there are no such processor power states.
_NO_C2 = 0xFFFF
_NO_C3 = 0xFFFF

_CENTURY_BYTE = 0x32


def fadt(hardware: Hardware) -> Table:
    """The FADT.  There is no SMI_CMD: the machine is in ACPI mode from the start."""
    devices = hardware.devices
    values: dict[str, int | bytes] = {
        "SCI_INT": layout.SCI_IRQ,
        "PM1a_EVT_BLK": layout.PM1A_EVT,
        "X_PM1a_EVT_BLK": generic_address(layout.PM1A_EVT, 32, access=16),
        "PM1_EVT_LEN": 4,
        "PM1a_CNT_BLK": layout.PM1A_CNT,
        "X_PM1a_CNT_BLK": generic_address(layout.PM1A_CNT, 16),
        "PM1_CNT_LEN": 2,
        "P_LVL2_LAT": _NO_C2,
        "P_LVL3_LAT": _NO_C3,
        "IAPC_BOOT_ARCH": _boot_architecture(devices),
        "FADT_Minor_Version": MINOR_REVISION,
        "Hypervisor_Vendor_Identity": b"pykvm",
    }
    flags = WBINVD | PROC_C1 | SLP_BUTTON | FIX_RTC
    if "pm-timer" in devices:
        values["PM_TMR_BLK"] = layout.PM_TIMER
        values["X_PM_TMR_BLK"] = generic_address(layout.PM_TIMER, 32)
        values["PM_TMR_LEN"] = 4
        flags |= TMR_VAL_EXT
    if "pci-config" in devices:
        values["RESET_REG"] = generic_address(layout.RESET_CONTROL, 8)
        values["RESET_VALUE"] = layout.RESET_VALUE
        flags |= RESET_REG_SUP
    if "rtc" in devices:
        values["CENTURY"] = _CENTURY_BYTE
    values["Flags"] = flags
    body = b"".join(_bytes(values.get(name, 0), width) for name, width in FIELDS)
    # X_FIRMWARE_CTRL stays 0: it is only for a FACS above 4 GiB.
    pointers = [
        Pointer(_OFFSETS[name], width, target)
        for name, width, target in (
            ("FIRMWARE_CTRL", 4, "FACS"),
            ("DSDT", 4, "DSDT"),
            ("X_DSDT", 8, "DSDT"),
        )
    ]
    return description_table("FADT", body, signature="FACP", revision=REVISION, pointers=pointers)


def _boot_architecture(devices: frozenset[str]) -> int:
    flags = LEGACY_DEVICES | VGA_NOT_PRESENT
    if "i8042" in devices:
        flags |= CONTROLLER_8042
    if "rtc" not in devices:
        flags |= CMOS_RTC_NOT_PRESENT
    return flags


def _bytes(value: int | bytes, width: int) -> bytes:
    return value.to_bytes(width, "little") if isinstance(value, int) else value.ljust(width, b"\0")
