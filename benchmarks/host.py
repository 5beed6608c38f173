"""What this host is, as far as the numbers depend on it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

MODULES = Path("/sys/module")


def backend(modules: Path = MODULES) -> str:
    """The kernel module that serves /dev/kvm here: ``kvm_intel``, ``kvm_amd``, ..."""
    names = sorted(path.name for path in modules.glob("kvm_*"))
    return "+".join(names) or "kvm (built in)"


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    for line in cpuinfo.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return "unknown CPU"


def conditions() -> dict[str, str]:
    return {
        "backend": backend(),
        "cpu": cpu_model(),
        "cpus": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
