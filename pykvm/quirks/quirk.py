"""One thing that a host's KVM may get wrong."""

from __future__ import annotations

from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.quirks.probe_vm import ProbeVM

__all__ = ["Quirk"]


class Quirk(NamedTuple):
    """Something that a KVM may get wrong for the guest.

    `wrong` says in a sentence what a guest meets.  `probe` finds it, by doing it in a VM of its
    own.  `workaround` and its `cost` are sentences; both are empty if there is no workaround.
    """

    name: str
    wrong: str
    probe: Callable[[ProbeVM], bool]
    workaround: str = ""
    cost: str = ""
