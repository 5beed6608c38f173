"""What this process holds of the host."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["descriptors", "mappings", "resident"]


def descriptors() -> int:
    """Open file descriptors."""
    return len(os.listdir("/proc/self/fd"))


def mappings() -> int:
    """Memory mappings."""
    return len(Path("/proc/self/maps").read_text().splitlines())


def resident() -> int:
    """Resident memory in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")
