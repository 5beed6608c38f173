"""Interrupt controllers and clocks of a machine, in software, in KVM, or half in each."""

from __future__ import annotations

from pykvm.errors import ConfigError
from pykvm.typed import TYPE_CHECKING
from pykvm.values.spelling import option

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pykvm.bus import Bus, Device
    from pykvm.clock import Clock
    from pykvm.irqchip.base import IrqChip
    from pykvm.kvm import VM
    from pykvm.vcpu.msr_exits import MsrExits

__all__ = ["IRQCHIPS", "check_irqchip", "make_irqchip"]

IRQCHIPS = ("user", "kernel", "split", "none")
POLICIES = ("realtime", "paused", "warp")  # of pykvm.clock, which few runs need


def check_irqchip(irqchip: str, clock: str) -> None:
    """Raise ConfigError unless there is such an irqchip, and such a policy of time with it."""
    if irqchip not in IRQCHIPS:
        raise ConfigError(f"irqchip is one of {', '.join(IRQCHIPS)}, not {irqchip!r}")
    if clock not in POLICIES:
        raise ConfigError(f"clock is one of {', '.join(POLICIES)}, not {clock!r}")
    if clock == "warp" and irqchip in ("kernel", "split"):
        raise ConfigError(
            f"{option('clock', 'warp')} does not go with {option('irqchip', irqchip)}: "
            "the kernel's timers skip no time",
            hint=f"{option('irqchip', 'user')} has all of them in software",
        )


def make_irqchip(
    kind: str,
    vm: VM,
    bus: Bus,
    clock: Callable[[], Clock],
    *,
    on_made: Callable[[Mapping[str, Device]], None],
    on_put_away: Callable[[Mapping[str, Device]], None],
    waits_for_host: Callable[[], bool],
    msr_exits: MsrExits | None = None,
) -> IrqChip | None:
    """The irqchip of that name (`IRQCHIPS`), for a VM without vCPUs; None for "none".

    `clock` makes the machine's clock.  `on_made` is called if devices on the bus were placeholders
    and have been made now: with all of them, by name; `on_put_away` if there are placeholders
    again, with those.  `waits_for_host` says whether a guest in HLT
    could be interrupted from outside the machine.  `msr_exits` are those of the VM, if it has some.
    """
    if kind == "user":
        from pykvm.irqchip.user import UserIrqChip

        return UserIrqChip(
            vm,
            bus,
            clock,
            on_made=on_made,
            on_put_away=on_put_away,
            waits_for_host=waits_for_host,
            msr_exits=msr_exits,
        )
    if kind == "kernel":
        from pykvm.irqchip.kernel import KernelIrqChip

        return KernelIrqChip(vm, clock, msr_exits)
    if kind == "split":
        from pykvm.irqchip.split import SplitIrqChip

        return SplitIrqChip(vm, clock, msr_exits)
    return None
