"""What a PC's firmware leaves in memory to tell a kernel about the machine."""

from __future__ import annotations

from typing import NamedTuple

from pykvm.tables.e820 import E820Entry, E820Type, memory_map
from pykvm.tables.hardware import Hardware

__all__ = ["E820Entry", "E820Type", "Hardware", "Piece", "Tables", "build", "memory_map"]


class Piece(NamedTuple):
    """Bytes that belong at a guest-physical address."""

    name: str
    address: int
    data: bytes


class Tables(NamedTuple):
    """All of them, where they go: in the BIOS area and the EBDA, which no kernel uses as RAM.

    `rsdp` is the address of the ACPI root pointer, 0 where there is none.
    """

    pieces: tuple[Piece, ...]
    rsdp: int


def build(hardware: Hardware) -> Tables:
    """The tables that describe `hardware`."""
    del hardware
    return Tables((), 0)
