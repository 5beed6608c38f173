"""The facts that the tables describe."""

from __future__ import annotations

from pykvm.values.frozen import NamedTuple

__all__ = ["Hardware"]


class Hardware(NamedTuple):
    """A machine as its tables describe it.

    `vcpus` counts the processors, whose local APIC ids are 0 to vcpus - 1; `irqchip` is as for
    `Machine` ("none": no APIC is told of), `devices` has the names of what is on the bus, and `ram`
    where there is memory: (start, end) each.  `signature` and `features` are the processors' CPUID
    leaf 1, EAX and EDX.
    """

    vcpus: int = 1
    irqchip: str = "user"
    devices: frozenset[str] = frozenset()
    ram: tuple[tuple[int, int], ...] = ((0, 64 << 20),)
    signature: int = 0
    features: int = 0
