"""SMBIOS: what hardware this is, for people and for kernels that look for quirks of some.

Source: DMTF DSP0134, System Management BIOS Reference Specification 3.6, chapters 5.2 (entry
points), 6.1 (structures) and 7 (types; the sections of which are named below).
"""

from __future__ import annotations

import struct

from pykvm.tables.table import Checksum, Pointer, Table
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.tables.hardware import Hardware

__all__ = ["smbios_tables"]

MAJOR, MINOR = 3, 1

_KIB = 1 << 10
_MIB = 1 << 20
_GIB = 1 << 30

# The value of many fields below that have nothing to say: an enumeration's "Other" and
# "Unknown", a number that is not known, and no string.
_OTHER = 1
_UNKNOWN = 2
_NO_STRING = 0

_MEMORY_ARRAY = 0x1000
_MEMORY_DEVICE = 0x1100
_NO_ERROR_INFORMATION = 0xFFFE
# How many ranges of RAM are described here; kernels get all of them from the memory map.
_MAPPED = 16


def smbios_tables(hardware: Hardware) -> tuple[Table, ...]:
    """Entry points "SMBIOS 3" and "SMBIOS 2", and the structures "SMBIOS" that they lead to."""
    structures = _structures(hardware)
    data = b"".join(structures)
    return (
        _entry_64(len(data)),
        _entry_32(len(data), len(structures), max(map(len, structures))),
        Table("SMBIOS", data),
    )


def _entry_64(length: int) -> Table:
    """The 64-bit entry point (5.2.2)."""
    data = struct.pack("<5sBBBBBBxIQ", b"_SM3_", 0, 0x18, MAJOR, MINOR, 0, 1, length, 0)
    return Table("SMBIOS 3", data, (Pointer(16, 8, "SMBIOS"),), (Checksum(5, 0, 0x18),))


def _entry_32(length: int, count: int, largest: int) -> Table:
    """The 32-bit entry point (5.2.1), for those who know only SMBIOS 2."""
    data = struct.pack("<4sBBBBHB5x", b"_SM_", 0, 0x1F, MAJOR, MINOR, largest, 0)
    data += struct.pack("<5sBHIHB", b"_DMI_", 0, length, 0, count, MAJOR << 4 | MINOR)
    checksums = (Checksum(0x15, 0x10, 0x0F), Checksum(4, 0, 0x1F))
    return Table("SMBIOS 2", data, (Pointer(0x18, 4, "SMBIOS"),), checksums)


def _structures(hardware: Hardware) -> list[bytes]:
    size = sum(end - start for start, end in hardware.ram)
    return [
        _bios(hardware),
        _system(),
        _chassis(),
        _processor(hardware),
        _memory_array(size),
        _memory_device(size),
        *(
            _mapped(number, start, end)
            for number, (start, end) in enumerate(hardware.ram[:_MAPPED])
        ),
        # 7.33, "System Boot Information": no error was found.
        _structure(32, 0x2000, bytes(6) + b"\0"),
        # 7.45, "End-of-Table".
        _structure(127, 0x7F00, b""),
    ]


def _structure(kind: int, handle: int, body: bytes, *strings: str) -> bytes:
    """A structure (6.1.2) with its strings (6.1.3), which `body` numbers from 1 on.

    >>> _structure(127, 0x7F00, b"").hex(" ")
    '7f 04 00 7f 00 00'
    """
    header = struct.pack("<BBH", kind, 4 + len(body), handle)
    texts = b"".join(text.encode("ascii") + b"\0" for text in strings) or b"\0"
    return header + body + texts + b"\0"


def _bios(hardware: Hardware) -> bytes:
    """Type 0, "BIOS Information" (7.1)."""
    acpi = "acpi-pm" in hardware.devices
    body = struct.pack(
        "<BBHBBQHBBBBH",
        1,
        2,
        0xE000,  # where it starts, as a segment
        3,
        (0x20000 // 0x10000) - 1,  # of 64 KiB, less one
        1 << 3,  # "BIOS characteristics are not supported"
        acpi << 0 | 1 << 12,  # extension bytes: ACPI is supported; a virtual machine
        *(0, 0),  # release
        *(0xFF, 0xFF),  # there is no embedded controller
        0,
    )
    return _structure(0, 0, body, "pykvm", "1", "01/01/2024")


def _system() -> bytes:
    """Type 1, "System Information" (7.2).  A UUID of zeros is none."""
    wake_up = 6  # "Power Switch"
    body = struct.pack(
        "<BBBB16sBBB", 1, 2, 3, _NO_STRING, bytes(16), wake_up, _NO_STRING, _NO_STRING
    )
    return _structure(1, 0x100, body, "pykvm", "PC", "1")


def _chassis() -> bytes:
    """Type 3, "System Enclosure or Chassis" (7.4)."""
    safe = 3
    body = struct.pack(
        "<BBBBBBBBBIBBBBB",
        1,
        _OTHER,
        *3 * [_NO_STRING],
        *(safe, safe, safe),
        _UNKNOWN,
        0,
        *(0, 0, 0, 0),
        _NO_STRING,
    )
    return _structure(3, 0x300, body, "pykvm")


def _processor(hardware: Hardware) -> bytes:
    """Type 4, "Processor Information" (7.5): one socket that has every vCPU for a core."""
    central, populated_and_enabled = 3, 0x41
    few, capable_of_64_bits = min(hardware.vcpus, 0xFF), 1 << 2
    body = struct.pack(
        "<BBBBIIBBHHHBBHHHBBBBBBHHHHH",
        1,
        central,
        _UNKNOWN,
        2,
        hardware.signature,
        hardware.features,
        _NO_STRING,
        *(0, 0, 0, 0),  # voltage and clocks
        populated_and_enabled,
        _OTHER,
        *3 * [0xFFFF],  # caches: none is told of
        *3 * [_NO_STRING],
        *3 * [few],
        capable_of_64_bits,
        _UNKNOWN,
        *3 * [hardware.vcpus],
    )
    return _structure(4, 0x400, body, "CPU 0", "pykvm")


def _memory_array(size: int) -> bytes:
    """Type 16, "Physical Memory Array" (7.17)."""
    other, system_memory, no_correction, in_extended = 1, 3, 3, 0x80000000
    kib = size // _KIB
    fits = kib < in_extended
    body = struct.pack(
        "<BBBIHHQ",
        other,
        system_memory,
        no_correction,
        kib if fits else in_extended,
        _NO_ERROR_INFORMATION,
        1,
        0 if fits else size,
    )
    return _structure(16, _MEMORY_ARRAY, body)


def _memory_device(size: int) -> bytes:
    """Type 17, "Memory Device" (7.18): all of it in one."""
    unknown_width, in_extended = 0xFFFF, 0x7FFF
    mib = min(max(size // _MIB, 1), 0x7FFFFFFF)
    form_dimm, type_ram = 9, 7
    body = struct.pack(
        "<HHHHHBBBBBHHBBBBBIHHHH",
        _MEMORY_ARRAY,
        _NO_ERROR_INFORMATION,
        *(unknown_width, unknown_width),
        min(mib, in_extended),
        form_dimm,
        0,
        1,
        _NO_STRING,
        type_ram,
        1 << 1,  # detail: other
        0,
        2,
        *3 * [_NO_STRING],
        0,
        mib if mib >= in_extended else 0,
        *(0, 0, 0, 0),
    )
    return _structure(17, _MEMORY_DEVICE, body, "DIMM 0", "pykvm")


def _mapped(number: int, start: int, end: int) -> bytes:
    """Type 19, "Memory Array Mapped Address" (7.20): in KiB, beyond 32 bits of them in bytes."""
    first, last = start // _KIB, end // _KIB - 1
    in_extended = 0xFFFFFFFF
    if last < in_extended:
        body = struct.pack("<IIHBQQ", first, last, _MEMORY_ARRAY, 1, 0, 0)
    else:
        body = struct.pack("<IIHBQQ", in_extended, in_extended, _MEMORY_ARRAY, 1, start, end - 1)
    return _structure(19, 0x1300 + number, body)
