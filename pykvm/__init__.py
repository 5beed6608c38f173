"""pykvm: a hypervisor you can import.

>>> from pykvm import Machine

    with Machine("kernel.elf", memory="64M") as machine:
        result = machine.run(timeout=5)
        print(result, machine.serial.text)

Public names; `help(pykvm.Machine)` and so on explain each:

    Machine, MachineConfig      a virtual machine, and what it is made of; `run` runs it
    Snapshot                    a machine at one moment, to go back to and to fork
    Result, Outcome             how a run ended
    CPU, CpuState, Mode         a vCPU, its registers as one value, its mode
    GuestMemory                 RAM and ROM, built by hand
    Device, Placement, Space    a device, and where it is placed
    GuestEnd: GuestExit, GuestPanic, GuestPowerOff, GuestReset
                                what a device raises to end the run for the guest
    PykvmError                  every error of pykvm:
        ConfigError, BusConflict, LoadError, UnknownSymbol, StateError, ClosedError,
        MemoryRangeError, TranslationError, HostError, ResourceError, KVMError
        RunError: GuestError, GuestFailed, RunTimeout, RunStopped

Usable alone: `pykvm.kvm` is the kernel's API, `pykvm.x86` what the processor manuals define.
See also `pykvm.exits` (VM exits), `pykvm.devices` and `pykvm.clock`.  Names load on first use, so
that importing pykvm costs little.
"""

from __future__ import annotations

from importlib import import_module

# As pykvm.typed has it, which stays unloaded: importing pykvm loads no module of it.
TYPE_CHECKING = False


if TYPE_CHECKING:
    from typing import Any

    # ruff: isort: off
    from pykvm.bus import (
        Device as Device,
        GuestEnd as GuestEnd,
        GuestExit as GuestExit,
        GuestPanic as GuestPanic,
        GuestPowerOff as GuestPowerOff,
        GuestReset as GuestReset,
        Placement as Placement,
        Space as Space,
    )
    from pykvm.errors import (
        BusConflict as BusConflict,
        ClosedError as ClosedError,
        ConfigError as ConfigError,
        GuestError as GuestError,
        GuestFailed as GuestFailed,
        HostError as HostError,
        KVMError as KVMError,
        LoadError as LoadError,
        MemoryRangeError as MemoryRangeError,
        PykvmError as PykvmError,
        ResourceError as ResourceError,
        RunError as RunError,
        RunStopped as RunStopped,
        RunTimeout as RunTimeout,
        StateError as StateError,
        TranslationError as TranslationError,
        UnknownSymbol as UnknownSymbol,
    )
    from pykvm.machine import Machine as Machine, MachineConfig as MachineConfig
    from pykvm.machine.snapshot import Snapshot as Snapshot
    from pykvm.memory import GuestMemory as GuestMemory
    from pykvm.result import Outcome as Outcome, Result as Result
    from pykvm.vcpu import CPU as CPU
    from pykvm.x86.state import CpuState as CpuState, Mode as Mode

    # ruff: isort: on

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
    "pykvm.machine.snapshot": ("Snapshot",),
    "pykvm.memory": ("GuestMemory",),
    "pykvm.result": ("Outcome", "Result"),
    "pykvm.vcpu": ("CPU",),
    "pykvm.x86.state": ("CpuState", "Mode"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

# There is no __all__: with one, help(pykvm) would be three thousand lines, each class in full.


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'pykvm' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
