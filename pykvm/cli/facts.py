"""What can be read about KVM on this host: its device, modules, processor and capabilities."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from pykvm.errors import PykvmError
from pykvm.kvm import Cap, System
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

__all__ = ["collect", "device", "modules", "processor"]

DEVICE = "/dev/kvm"

# Processor flags of /proc/cpuinfo that belong to SVM; those of VT-x have a line of their own.
_SVM = (
    *("npt", "lbrv", "svm_lock", "nrip_save", "tsc_scale", "vmcb_clean", "flushbyasid"),
    *("decodeassists", "pausefilter", "pfthreshold", "avic", "x2avic", "v_vmsave_vmload"),
    *("vgif", "vnmi", "v_spec_ctrl", "sev", "sev_es", "sev_snp"),
)


def collect() -> dict[str, Any]:
    """Every fact, as JSON can hold it.  Raises nothing: what cannot be known is left out."""
    facts: dict[str, Any] = {
        "kernel": f"{os.uname().sysname} {os.uname().release} {os.uname().machine}",
        "device": device(Path(DEVICE)),
        "processor": processor(Path("/proc/cpuinfo")),
        "modules": modules(Path("/sys/module")),
    }
    try:
        with System() as system:
            facts["api_version"] = system.api_version()
            facts["vcpu_mmap_size"] = system.vcpu_mmap_size()
            facts["capabilities"] = {cap.name: system.check_extension(cap) for cap in Cap}
    except PykvmError as error:
        facts["error"] = error.message
        facts["hint"] = error.hint
    return facts


def device(path: Path) -> dict[str, Any]:
    """Who owns the device, and whether this user may open it."""
    found: dict[str, Any] = {"path": str(path), "exists": False, "usable": False}
    try:
        status = path.stat()
    except OSError as error:
        return {**found, "error": error.strerror}
    found["exists"] = True
    found["mode"] = stat.filemode(status.st_mode)
    found["owner"] = _name("pwd", "getpwuid", status.st_uid)
    found["group"] = _name("grp", "getgrgid", status.st_gid)
    found["usable"] = os.access(path, os.R_OK | os.W_OK)
    return found


def _name(module: str, function: str, number: int) -> str:
    """The name of a user or a group, or its number where it has none."""
    from importlib import import_module

    try:
        entry = getattr(import_module(module), function)(number)
    except KeyError:
        return str(number)
    return str(entry[0])


def processor(path: Path) -> dict[str, Any]:
    """The processor's name, and its virtualization features where it shows them."""
    lines: dict[str, str] = {}
    with suppress(OSError):
        for line in path.read_text(errors="replace").splitlines():
            name, colon, value = line.partition(":")
            if not name.strip() and lines:
                break
            if colon:
                lines[name.strip()] = value.strip()
    flags = lines.get("flags", "").split()
    extension = {"vmx": "VT-x", "svm": "SVM"}
    return {
        "model": lines.get("model name", "unknown"),
        "vendor": lines.get("vendor_id", "unknown"),
        "virtualization": [name for flag, name in extension.items() if flag in flags],
        "features": lines.get("vmx flags", "").split() + [flag for flag in _SVM if flag in flags],
        "in_a_vm": "hypervisor" in flags,
    }


def modules(path: Path) -> dict[str, dict[str, str]]:
    """The kernel's KVM modules, loaded or built in, and their parameters."""
    found: dict[str, dict[str, str]] = {}
    for module in sorted(path.glob("kvm*")):
        parameters = {}
        for parameter in sorted(module.glob("parameters/*")):
            # Some can be written only.
            with suppress(OSError):
                parameters[parameter.name] = parameter.read_text(errors="replace").strip()
        found[module.name] = parameters
    return found
