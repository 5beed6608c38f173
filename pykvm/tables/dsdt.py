r"""The differentiated system description table: the devices that a kernel cannot discover.

Source: ACPI Specification 6.5, 5.2.11.1 "Differentiated System Description Table (DSDT)", 6.1 and
6.2 (device objects), 7.4.2 (`\_Sx`), 8.4 (processors, ACPI0007); for the ids, "Plug and Play ID and
ACPI ID Registry"; for QEMU0001, QEMU's docs/specs/pvpanic.rst.

What kernels know of anyhow is left out (interrupt controllers, the 8254, the HPET with its table):
they run each device through an interpreter, which takes long where KVM emulates their code.
"""

from __future__ import annotations

from pykvm import layout
from pykvm.tables import aml
from pykvm.tables.sdt import description_table
from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple

if TYPE_CHECKING:
    from pykvm.tables.hardware import Hardware
    from pykvm.tables.table import Table

__all__ = ["dsdt"]

# From revision 2 on integers have 64 bits.
REVISION = 2


class _Device(NamedTuple):
    """A device of the DSDT: there if `on` is among the devices on the bus."""

    on: str
    path: str
    id: bytes
    resources: tuple[bytes, ...]
    uid: int | None = None

    def encode(self) -> bytes:
        terms = [aml.name("_HID", self.id)]
        if self.uid is not None:
            terms.append(aml.name("_UID", aml.integer(self.uid)))
        terms.append(aml.name("_CRS", aml.resource_template(*self.resources)))
        return aml.device(self.path, *terms)


def _uart(name: str, path: str, port: int, irq: int, uid: int) -> _Device:
    resources = (aml.io_ports(port, 8), aml.irq(irq))
    return _Device(name, path, aml.eisa_id("PNP0501"), resources, uid)


_DEVICES = (
    _uart("com1", "COM1", layout.COM1, layout.COM1_IRQ, 1),
    _uart("com2", "COM2", layout.COM2, layout.COM2_IRQ, 2),
    _Device(
        "i8042",
        "KBD",
        aml.eisa_id("PNP0303"),
        (
            aml.io_ports(layout.KEYBOARD_DATA, 1),
            aml.io_ports(layout.KEYBOARD_COMMAND, 1),
            aml.irq(layout.KEYBOARD_IRQ),
        ),
    ),
    _Device(
        "rtc", "RTC", aml.eisa_id("PNP0B00"), (aml.io_ports(layout.RTC, 2), aml.irq(layout.RTC_IRQ))
    ),
    _Device("pvpanic", "PEVT", aml.string("QEMU0001"), (aml.io_ports(layout.PVPANIC, 1),)),
)


def dsdt(hardware: Hardware) -> Table:
    """The DSDT."""
    sleep_type = aml.integer(layout.SLP_TYP_S5)
    body = aml.name("_S5", aml.package(sleep_type, sleep_type, *2 * [aml.integer(0)]))
    body += aml.scope(
        "\\_SB",
        *(_processor(number) for number in range(hardware.vcpus)),
        *(device.encode() for device in _DEVICES if device.on in hardware.devices),
    )
    return description_table("DSDT", body, revision=REVISION)


def _processor(number: int) -> bytes:
    """A processor, which `_UID` ties to its entry in the MADT."""
    return aml.device(
        f"P{number:03X}",
        aml.name("_HID", aml.string("ACPI0007")),
        aml.name("_UID", aml.integer(number)),
    )
