"""Interrupt controllers and clocks of a machine, in software, in KVM, or half in each."""

from __future__ import annotations

from pykvm.irqchip.base import IRQCHIPS, Interrupts, IrqChip, check_irqchip
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pykvm.bus import Bus, Device
    from pykvm.clock import Clock
    from pykvm.kvm import VM

__all__ = ["IRQCHIPS", "Interrupts", "IrqChip", "check_irqchip", "make_irqchip"]


def make_irqchip(
    kind: str,
    vm: VM,
    bus: Bus,
    clock: Callable[[], Clock],
    *,
    on_made: Callable[[Mapping[str, Device]], None],
    waits_for_host: Callable[[], bool],
) -> IrqChip | None:
    """The irqchip of that name (`IRQCHIPS`), for a VM without vCPUs; None for "none".

    `clock` makes the machine's clock.  `on_made` is called if devices on the bus were placeholders
    and have been made now: with all of them, by name.  `waits_for_host` says whether a guest in HLT
    could be interrupted from outside the machine.
    """
    if kind == "user":
        from pykvm.irqchip.user import UserIrqChip

        return UserIrqChip(vm, bus, clock, on_made=on_made, waits_for_host=waits_for_host)
    if kind == "kernel":
        from pykvm.irqchip.kernel import KernelIrqChip

        return KernelIrqChip(vm, clock)
    if kind == "split":
        from pykvm.irqchip.split import SplitIrqChip

        return SplitIrqChip(vm, clock)
    return None
