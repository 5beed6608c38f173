"""What a host's KVM gets wrong for the guest, and the workarounds.

A probe finds a quirk by doing it, in a tiny VM, at most once in a process and only if a machine
needs to know (or `pykvm info` asks).  No probe goes by the name of a module or a processor.  On a
host without quirks nothing here is active.  docs/quirks.md explains them to users.
"""

from __future__ import annotations

from contextlib import closing

from pykvm.errors import PykvmError
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from pykvm.quirks.catalogue import QUIRKS
    from pykvm.quirks.probe_vm import ProbeVM
    from pykvm.quirks.quirk import Quirk

__all__ = ["QUIRKS", "Quirk", "found"]

_known: dict[str, bool] = {}


def __getattr__(name: str) -> Any:
    # A run asks about a few: it does not load them all.
    if name == "QUIRKS":
        from pykvm.quirks.catalogue import QUIRKS

        return QUIRKS
    if name == "Quirk":
        from pykvm.quirks.quirk import Quirk

        return Quirk
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def found(quirks: Iterable[Quirk] | None = None) -> frozenset[str]:
    """Return the names of the quirks that this host has, of `quirks` or of all.

    Probes those that were not asked for before, all in one VM, in about 2 ms.  A probe that
    cannot run finds nothing.  Raises HostError and KVMError if no VM can be created.
    """
    asked = tuple(__getattr__("QUIRKS") if quirks is None else quirks)
    new = [quirk for quirk in asked if quirk.name not in _known]
    if new:
        from pykvm.quirks.probe_vm import ProbeVM

        with closing(ProbeVM()) as vm:
            for quirk in new:
                _known[quirk.name] = _probe(quirk, vm)
    return frozenset(quirk.name for quirk in asked if _known[quirk.name])


def _probe(quirk: Quirk, vm: ProbeVM) -> bool:
    try:
        return quirk.probe(vm)
    except (PykvmError, TimeoutError):
        return False
