"""VMCALL in ring 0 that is never answered: KVM begins it again and again.

Source: Documentation/virt/kvm/x86/hypercalls.rst.
"""

from __future__ import annotations

from pykvm.exits import Hlt
from pykvm.quirks.quirk import Quirk
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.quirks.probe_vm import ProbeVM

__all__ = ["QUIRK"]

VMCALL = bytes.fromhex("0F01C1")
# It asks for nothing that a VM without an in-kernel irqchip has.
KVM_HC_VAPIC_POLL_IRQ = 1
# It is answered in microseconds, or for ever begun again.
PATIENCE = 0.1


def _unanswered(vm: ProbeVM) -> bool:
    try:
        stop = vm.run(VMCALL, 0, {"rax": KVM_HC_VAPIC_POLL_IRQ}, patience=PATIENCE)
    except TimeoutError:
        return True
    return not (isinstance(stop.exit, Hlt) and stop.vector is None and stop.state.rax == 0)


QUIRK = Quirk("hypercall", "VMCALL in ring 0 is never answered", _unanswered)
