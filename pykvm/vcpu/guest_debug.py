"""KVM_SET_GUEST_DEBUG for all who want something of it at once.

There is one set of debug registers and one single step a vCPU, and setting them replaces what was
set before.  So each user of breakpoints asks for them here, by name, and those of others stay.

While any of this is on, the guest's own DR0 to DR7 are out of force (KVM_GUESTDBG_USE_HW_BP takes
their place): a debugger inside the guest finds its breakpoints silent.
"""

from __future__ import annotations

from pykvm.errors import ConfigError
from pykvm.kvm.constants import (
    KVM_GUESTDBG_ENABLE,
    KVM_GUESTDBG_SINGLESTEP,
    KVM_GUESTDBG_USE_HW_BP,
)
from pykvm.typed import TYPE_CHECKING, Protocol
from pykvm.values.checks import each, flag, text, unsigned

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["DR6_BS", "GuestDebug", "debug_event"]

BREAKPOINTS = 4

# DR7 (SDM 3B 18.2.4): bit 10 reads as one; Gn, two bits apart.  R/Wn and LENn of 0 are execution.
_DR7_ONES = 1 << 10
_DR7_G0 = 1 << 1

# DR6: a single step; B0 to B3, the breakpoint that holds.
DR6_BS = 1 << 14
_DR6_HIT = 0xF

_BP = 3  # the vector of INT3


def debug_event(exception: int, dr6: int, dr7: int) -> str:
    """What a KVM_EXIT_DEBUG reports, by its exception and debug registers (SDM 3B 18.2.3).

    >>> debug_event(1, 0x4000, 0x400), debug_event(1, 1, 0x402), debug_event(1, 2, 0x100400)
    ('a single step', 'a breakpoint', 'a watchpoint (DR1)')
    """
    if exception == _BP:
        return "an INT3"
    for number in range(BREAKPOINTS):
        if dr6 >> number & 1 and dr7 >> (16 + 4 * number) & 3:
            return f"a watchpoint (DR{number})"
    return "a single step" if dr6 & DR6_BS and not dr6 & _DR6_HIT else "a breakpoint"


def _address(name: str, value: int) -> int:
    return unsigned(name, value, 64)


class Debuggable(Protocol):
    """The vCPU."""

    def set_guest_debug(self, control: int, debugreg: Sequence[int] = ()) -> None:
        """KVM_SET_GUEST_DEBUG."""


class GuestDebug:
    """What is asked of a vCPU's debugging, by whom, and KVM told the whole of it.

    >>> class Printing:
    ...     def set_guest_debug(self, control, debugreg=()):
    ...         print(hex(control), [hex(value) for value in debugreg])
    >>> debug = GuestDebug(Printing())
    >>> debug.set_breakpoints("me", [0x1000])
    0x20001 ['0x1000', '0x0', '0x0', '0x0', '0x0', '0x0', '0x0', '0x402']
    >>> debug.single_step(True)
    0x20003 ['0x1000', '0x0', '0x0', '0x0', '0x0', '0x0', '0x0', '0x402']
    """

    def __init__(self, target: Debuggable) -> None:
        self._target = target
        self._breakpoints: dict[str, tuple[int, ...]] = {}
        self._hidden: frozenset[str] = frozenset()
        self._stepping = self._stepping_over = False
        #: Where a run was ended by a breakpoint, or a step came to one: the next goes on past it.
        self.hit: int | None = None
        self._set: tuple[int, list[int]] = (0, [])

    def __repr__(self) -> str:
        addresses = ", ".join(f"{address:#x}" for address in self.addresses)
        return f"<GuestDebug: breakpoints [{addresses}]{', stepping' * self._stepping}>"

    @property
    def addresses(self) -> tuple[int, ...]:
        """Where breakpoints stand, each once: linear addresses."""
        wanted = (
            address
            for owner, addresses in self._breakpoints.items()
            if owner not in self._hidden
            for address in addresses
        )
        return tuple(dict.fromkeys(wanted))

    def set_breakpoints(self, owner: str, addresses: Iterable[int]) -> None:
        """Have `owner`'s execution breakpoints at these linear addresses and nowhere else.

        Raises ConfigError, and changes nothing, if all owners together want more than four.
        """
        text("owner", owner)
        wanted_here = each("addresses", addresses, "a list of addresses", _address)
        before = self._breakpoints.get(owner, ())
        self._breakpoints[owner] = tuple(wanted_here)
        if len(self.addresses) > BREAKPOINTS:
            wanted = len(self.addresses)
            self._breakpoints[owner] = before
            raise ConfigError(f"{wanted} breakpoints: a processor has {BREAKPOINTS}")
        self._apply()

    def hide(self, *owners: str) -> None:
        """Leave these owners' breakpoints out until the next call."""
        self._hidden = frozenset(owners)
        self._apply()

    @property
    def stepping(self) -> bool:
        """Whether the vCPU stops after the next instruction."""
        return self._stepping or self._stepping_over

    def single_step(self, on: bool) -> None:
        """Stop after each instruction, or no longer."""
        self._stepping = flag("on", on)
        self._apply()

    def step_over(self) -> None:
        """Execute the instruction that a breakpoint stands on: no breakpoint holds until `stepped`.

        KVM does not look at RFLAGS.RF, so that the breakpoint would hit again.
        """
        self._stepping_over = True
        self._apply()

    def stepped(self) -> bool:
        """A single step has ended: whether it was for `step_over` alone."""
        over, self._stepping_over = self._stepping_over, False
        self._apply()
        return over and not self._stepping

    def ended(self, pc: int) -> None:
        """A debug exit at `pc` ends the run."""
        self.hit = pc if pc in self.addresses else None

    def begin(self, pc: int) -> None:
        """A run begins at `pc`: past the breakpoint there, if that has ended the last one."""
        hit, self.hit = self.hit, None
        if hit == pc and hit in self.addresses:
            self.step_over()
        elif self.stepping:
            # Registers may have been set since: the step is from here.
            self._set = (0, [])
            self._apply()

    def _apply(self) -> None:
        addresses = () if self._stepping_over else self.addresses[:BREAKPOINTS]
        control = KVM_GUESTDBG_SINGLESTEP if self._stepping or self._stepping_over else 0
        registers: list[int] = []
        if addresses:
            control |= KVM_GUESTDBG_USE_HW_BP
            enabled = sum(_DR7_G0 << 2 * number for number in range(len(addresses)))
            registers = [*addresses, *[0] * (7 - len(addresses)), _DR7_ONES | enabled]
        wanted = (control | KVM_GUESTDBG_ENABLE if control else 0, registers)
        if wanted != self._set:
            self._target.set_guest_debug(*wanted)
            self._set = wanted
