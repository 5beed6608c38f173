"""The map of the PC: each port, address and interrupt of it, once.

The model is Firecracker's `arch/x86_64/layout.rs`.  Devices know offsets only; what places them,
what describes them to a kernel and what firmware is told of them take their numbers from here.

Sources: Intel 82371AB (PIIX4) data sheet, 4 and 7.1 (power management registers, whose base QEMU's
firmware sets to 0x600); Intel ICH9 data sheet (316972), tables 5-9 and 9-2 (IRQs, ports); ACPI
Specification 6.5, 5.2.12.5 (interrupt source overrides); QEMU, docs/specs/pvpanic.rst and
fw_cfg.rst, hw/misc/pc-testdev.c.
"""

from __future__ import annotations

#: The interrupt requests of the ISA bus: 0 to 15, the inputs of the two 8259s.
ISA_IRQS = 16
#: The second 8259 is on this input of the first: no device has it.
CASCADE_IRQ = 2
#: What the I/O APIC has.  GSIs are numbered as its pins.
IOAPIC_PINS = 24

PIT_IRQ = 0
KEYBOARD_IRQ = 1
COM2_IRQ = 3
COM1_IRQ = 4
RTC_IRQ = 8
#: ACPI's system control interrupt.
SCI_IRQ = 9


def gsi_of(irq: int) -> int:
    """The I/O APIC's pin for an ISA interrupt: the 8254 is on the pin that the cascade leaves free.

    >>> gsi_of(0), gsi_of(1), gsi_of(9)
    (2, 1, 9)
    """
    return CASCADE_IRQ if irq == PIT_IRQ else irq


# What devices may have, and what there is to connect them to.
DEVICE_IRQS = tuple(irq for irq in range(ISA_IRQS) if irq != CASCADE_IRQ)

PIC_MASTER = 0x20
PIT = 0x40
KEYBOARD_DATA = 0x60
PORT_61 = 0x61
KEYBOARD_COMMAND = 0x64
RTC = 0x70
POST = 0x80
PORT_92 = 0x92
PIC_SLAVE = 0xA0
PC_TESTDEV = 0xE0
DEBUGCON = 0xE9
PC_TESTDEV_AGAIN = 0xEA
DEBUG_EXIT = 0xF4
COM2 = 0x2F8
COM1 = 0x3F8
#: Where SeaBIOS and OVMF write their log.
FIRMWARE_LOG = 0x402
PIC_ELCR = 0x4D0
PVPANIC = 0x505
FW_CFG = 0x510
PM1A_EVT = 0x600
PM1A_CNT = 0x604
PM_TIMER = 0x608
PCI_CONFIG = 0xCF8
RESET_CONTROL = 0xCF9
PC_TESTDEV_IRQS = 0x2000

#: What makes a hard reset of the reset control register: SYS_RST and RST_CPU.
RESET_VALUE = 0x06
#: What SLP_TYP of PM1_CNT means S5, soft off.  It is the PIIX4's, so that guests which write 0x2000
#: to port 0x604 without asking the DSDT find what they expect.
SLP_TYP_S5 = 0

BIOS_DATA = 0x400
# The part of the first MiB that is not a kernel's: the extended BIOS data area, video memory and
# option ROMs, and the BIOS area, which has the tables of `pykvm.tables`.
EBDA_START = 0x9FC00
VIDEO_START = 0xA0000
BIOS_START = 0xE0000
BIOS_END = 0x100000

#: Where a PC keeps its devices: RAM beyond the first 3 GiB goes on above 4 GiB.
HOLE_START = 3 << 30
FOUR_GIB = HOLE_END = 4 << 30

IOAPIC = 0xFEC00000
HPET = 0xFED00000
LOCAL_APIC = 0xFEE00000
#: Pages that KVM keeps for itself on some processors (see `pykvm.host`).
KVM_PAGES = 0xFEFFC000
KVM_PAGES_SIZE = 0x4000
PC_TESTDEV_MEMORY = 0xFF000000
