"""What is known of one thing that a host's KVM may get wrong."""

from __future__ import annotations

from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.quirks.probe_vm import ProbeVM

__all__ = ["Quirk"]


class Quirk(NamedTuple):
    """Something that a KVM may get wrong in the guest's sight.

    `wrong` says in a sentence what a guest meets.  `probe` finds it, by doing it in a VM of its
    own.  `remedy` says how it is made good and `cost` what that costs; both are empty for what
    cannot be.
    """

    name: str
    wrong: str
    probe: Callable[[ProbeVM], bool]
    remedy: str = ""
    cost: str = ""
