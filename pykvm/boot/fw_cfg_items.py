"""What fw_cfg has of a machine: processors, memory, tables, a kernel for firmware to boot.

Sources: QEMU, docs/specs/fw_cfg.rst, and hw/i386/fw_cfg.c for the items of a PC; SeaBIOS,
docs/Runtime_config.md, for the files that it reads.
"""

from __future__ import annotations

from functools import partial

from pykvm.devices.fw_cfg import Contents, Key, check_files
from pykvm.errors import ConfigError
from pykvm.layout import COM1
from pykvm.tables import acpi_tables
from pykvm.tables.e820 import KVM_PAGES, E820Entry, E820Type
from pykvm.tables.loader import loader_files
from pykvm.tables.smbios import smbios_tables
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pykvm.boot.image import Setup
    from pykvm.devices.fw_cfg import FwCfg
    from pykvm.memory import GuestMemory
    from pykvm.tables import Hardware

    Bytes = bytes | bytearray | memoryview

__all__ = ["connect", "contents_of"]


def connect(device: FwCfg, memory: GuestMemory, setup: Setup, files: Mapping[str, bytes]) -> None:
    """Give `device` what it needs of this machine, unless it has contents of its own already.

    `setup` describes the hardware.  Raises LoadError for a kernel that cannot be booted so,
    ConfigError for what can be no file, and for what would have to go into contents not ours.
    """
    if device.contents is not None:
        if files or setup.kernel is not None:
            raise ConfigError(
                f"{device.name} has contents of its own, and fw_cfg= or kernel= is given beside",
                hint="put them there, or make the device without contents",
            )
        return
    check_files(files)
    hardware = setup.hardware
    assert hardware is not None
    kernel: dict[int, Bytes] = {}
    if setup.kernel is not None:
        from pykvm.boot.fw_cfg_kernel import kernel_items

        kernel = kernel_items(setup.kernel, setup.append, setup.initrd, hardware.ram[0][1])
    device.contents = partial(contents_of, hardware, kernel, files)


def contents_of(
    hardware: Hardware,
    kernel: Mapping[int, Bytes],
    files: Mapping[str, bytes],
) -> Contents:
    """All of it.

    `kernel` has the items of `kernel_items`, or none; `files` are the user's own, and come before
    ours of the same name.
    """
    size = sum(end - start for start, end in hardware.ram)
    cpus = hardware.vcpus.to_bytes(2, "little")
    items: dict[int, Bytes] = {
        Key.UUID: bytes(16),
        Key.RAM_SIZE: size.to_bytes(8, "little"),
        Key.NOGRAPHIC: _number(1, 2),
        Key.NB_CPUS: cpus,
        Key.MAX_CPUS: cpus,
        Key.BOOT_MENU: _number(0, 2),
        # The PIT's interrupt is on pin 2 of the I/O APIC.
        Key.IRQ0_OVERRIDE: _number(1, 4),
        **kernel,
    }
    ours: dict[str, Bytes] = {
        **loader_files(acpi_tables(hardware)),
        **_smbios(hardware),
        "etc/e820": _memory_map(hardware.ram),
        # The text screen goes to the serial port; without anything to boot, the machine resets.
        "etc/sercon-port": _number(COM1, 8),
        "etc/boot-fail-wait": _number(0, 8),
    }
    if kernel:
        from pykvm.boot.boot_rom import FILE_NAME, boot_rom

        ours[FILE_NAME] = boot_rom()
        ours["bootorder"] = f"/rom@{FILE_NAME}\nHALT\0".encode()
    return Contents(items, {**ours, **files})


def _number(value: int, size: int) -> bytes:
    return value.to_bytes(size, "little")


def _smbios(hardware: Hardware) -> dict[str, bytes]:
    """The 32-bit entry point, whose address and checksums the firmware fills in, and the rest."""
    tables = {table.name: table.data for table in smbios_tables(hardware)}
    return {
        "etc/smbios/smbios-anchor": tables["SMBIOS 2"],
        "etc/smbios/smbios-tables": tables["SMBIOS"],
    }


def _memory_map(ram: Sequence[tuple[int, int]]) -> bytes:
    """RAM as it is, and what is not to be touched: firmware cuts out the rest itself."""
    entries = [E820Entry(start, end - start, E820Type.RAM) for start, end in ram]
    return b"".join(entry.pack() for entry in sorted([*entries, KVM_PAGES]))
