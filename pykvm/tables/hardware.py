"""What the tables have to tell."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Hardware"]


class Hardware(NamedTuple):
    """A machine as its tables describe it.

    `vcpus` counts the processors, whose local APIC ids are 0 to vcpus - 1; `irqchip` is as for
    `Machine` ("none": no APIC is told of), and `devices` has the names of what is on the bus.
    """

    vcpus: int = 1
    irqchip: str = "user"
    devices: frozenset[str] = frozenset()
