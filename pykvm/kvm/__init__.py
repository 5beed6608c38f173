"""/dev/kvm as Python, and nothing more.

`System`, `VM`, `VCPU` and `Device` have one method an ioctl, named after it.  Structs and constants
keep their kernel names: getters return records with the kernel's fields, setters take such a record
or any mapping.  No policy and no guest: that is for the rooms above.

>>> from pykvm.kvm import System
>>> with System() as system, system.create_vm() as vm:  # needs /dev/kvm
...     vcpu = vm.create_vcpu(0)
...     hex(vcpu.get_regs().rip)
'0xfff0'

The modules: `abi` (every struct as a construct definition, every ioctl number), `uapi` (the same
as data, derived from abi), `constants` (flags), `stats`.  The sections quoted in docstrings are
those of Documentation/virt/kvm/api.rst in the Linux sources.
"""

from __future__ import annotations

from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.kvm.capabilities import Cap
    from pykvm.kvm.device import Device
    from pykvm.kvm.reasons import ExitReason
    from pykvm.kvm.records import Record
    from pykvm.kvm.system import System
    from pykvm.kvm.vcpu import VCPU
    from pykvm.kvm.vm import VM

__all__ = ["VCPU", "VM", "Cap", "Device", "ExitReason", "Record", "System"]

_HOMES = {
    "Cap": "capabilities",
    "Device": "device",
    "ExitReason": "reasons",
    "Record": "records",
    "System": "system",
    "VCPU": "vcpu",
    "VM": "vm",
}


def __getattr__(name: str) -> object:
    # Start-up counts: what is not used is not imported.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
