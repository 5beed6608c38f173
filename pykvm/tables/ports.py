"""Where a PC has what its tables tell of and its devices answer at.

Sources: Intel 82371AB (PIIX4) data sheet, 7.1 and 7.2 "Power management registers", whose base
QEMU's firmware sets to 0x600; QEMU, docs/specs/pvpanic.rst and fw_cfg.rst; for
IRQs, Intel ICH9 data sheet
(316972), table 5-9.
"""

from __future__ import annotations

__all__ = [
    "FW_CFG",
    "HPET",
    "IOAPIC",
    "ISA_IRQS",
    "LAPIC",
    "PM1A_CNT",
    "PM1A_EVT",
    "PM_TMR",
    "PVPANIC",
    "RESET",
    "RESET_VALUE",
    "SCI",
    "SLP_TYP_S5",
]

PM1A_EVT = 0x600
PM1A_CNT = 0x604
PM_TMR = 0x608
PVPANIC = 0x505
FW_CFG = 0x510
RESET = 0xCF9
#: SYS_RST and RST_CPU: a hard reset.
RESET_VALUE = 0x06

IOAPIC = 0xFEC00000
HPET = 0xFED00000
LAPIC = 0xFEE00000

SCI = 9
#: The interrupt request of each device on the ISA bus that has one to connect, by its name.
ISA_IRQS = {"com1": 4, "com2": 3, "i8042": 1, "acpi-pm": SCI}

#: What SLP_TYP of PM1_CNT means S5, soft off.  It is the PIIX4's, so that guests which write 0x2000
#: to port 0x604 without asking the DSDT find what they expect.
SLP_TYP_S5 = 0
