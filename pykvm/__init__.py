"""pykvm: a hypervisor you can import.

>>> from pykvm import Machine

Everything public is here; `pykvm.kvm` is the kernel's API alone, `pykvm.x86` what the architecture
manuals define.  Names load on first use, so that importing pykvm costs little.
"""

from __future__ import annotations

from importlib import import_module

# As pykvm.typed has it, which stays unloaded: importing pykvm loads no module of it.
TYPE_CHECKING = False


if TYPE_CHECKING:
    from typing import Any

    from pykvm.bus import (
        Device,
        GuestEnd,
        GuestExit,
        GuestPanic,
        GuestPowerOff,
        GuestReset,
        Placement,
        Space,
    )
    from pykvm.errors import (
        BusConflict,
        ClosedError,
        ConfigError,
        GuestError,
        GuestFailed,
        HostError,
        KVMError,
        LoadError,
        MemoryRangeError,
        PykvmError,
        ResourceError,
        RunError,
        RunStopped,
        RunTimeout,
        StateError,
        TranslationError,
        UnknownSymbol,
    )
    from pykvm.machine import Machine, MachineConfig
    from pykvm.memory import GuestMemory
    from pykvm.result import Outcome, Result
    from pykvm.vcpu import CPU
    from pykvm.x86.state import CpuState, Mode

__version__ = "0.1.0"

_HOMES = {
    "pykvm.bus": (
        *("Device", "GuestEnd", "GuestExit", "GuestPanic", "GuestPowerOff", "GuestReset"),
        *("Placement", "Space"),
    ),
    "pykvm.errors": (
        *("BusConflict", "ClosedError", "ConfigError", "GuestError", "HostError", "KVMError"),
        *("GuestFailed", "LoadError", "MemoryRangeError", "PykvmError", "RunError", "RunStopped"),
        *("RunTimeout", "StateError", "TranslationError", "UnknownSymbol"),
        *("ResourceError",),
    ),
    "pykvm.machine": ("Machine", "MachineConfig"),
    "pykvm.memory": ("GuestMemory",),
    "pykvm.result": ("Outcome", "Result"),
    "pykvm.vcpu": ("CPU",),
    "pykvm.x86.state": ("CpuState", "Mode"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "CPU",
    "BusConflict",
    "ClosedError",
    "ConfigError",
    "CpuState",
    "Device",
    "GuestEnd",
    "GuestError",
    "GuestExit",
    "GuestFailed",
    "GuestMemory",
    "GuestPanic",
    "GuestPowerOff",
    "GuestReset",
    "HostError",
    "KVMError",
    "LoadError",
    "Machine",
    "MachineConfig",
    "MemoryRangeError",
    "Mode",
    "Outcome",
    "Placement",
    "PykvmError",
    "ResourceError",
    "Result",
    "RunError",
    "RunStopped",
    "RunTimeout",
    "Space",
    "StateError",
    "TranslationError",
    "UnknownSymbol",
    "__version__",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'pykvm' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
