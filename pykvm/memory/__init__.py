"""Guest RAM and its slots: map, read, write, search, freeze and thaw.

`GuestMemory` is the face; a `Region` is one mapping of this process and one slot of the VM.
`MemoryImage` is in `pykvm.memory.image`, which only a program that freezes memory loads.
"""

from __future__ import annotations

from pykvm.memory.backing import HostMapping, host_address, host_memory
from pykvm.memory.guest import GuestMemory
from pykvm.memory.regions import Region, SlotHost

__all__ = [
    "GuestMemory",
    "HostMapping",
    "Region",
    "SlotHost",
    "host_address",
    "host_memory",
]
