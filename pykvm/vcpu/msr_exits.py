"""Which MSRs the guest cannot reach without an exit, for all who want to know of some.

KVM_X86_SET_MSR_FILTER is one for the whole VM, and setting it replaces what was set before.
"""

from __future__ import annotations

from pykvm.kvm.constants import (
    KVM_MSR_EXIT_REASON_FILTER,
    KVM_MSR_EXIT_REASON_INVAL,
    KVM_MSR_FILTER_READ,
    KVM_MSR_FILTER_WRITE,
)
from pykvm.kvm.uapi import KVM_CAP_X86_USER_SPACE_MSR
from pykvm.typed import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["MsrExits"]

# One MSR, and the bit that would allow it clear; KVM reads bitmaps in words of 64 bits.
_DENIED = 1, bytes(8)


class MsrFilter(Protocol):
    """The VM."""

    def enable_cap(self, cap: int, /, *args: int) -> int:
        """KVM_ENABLE_CAP."""

    def set_msr_filter(self, ranges: Iterable[tuple[int, int, int, bytes]], /) -> None:
        """KVM_X86_SET_MSR_FILTER."""


class MsrExits:
    """The MSR exits of one VM.

    >>> class Printing:
    ...     def enable_cap(self, cap, *args):
    ...         print("capability", cap, *args)
    ...
    ...     def set_msr_filter(self, ranges):
    ...         print(*((flags, hex(first)) for flags, first, *_ in ranges))
    >>> exits = MsrExits(Printing())
    capability 188 4
    >>> exits.ask("me", reads=[0x10], writes=[0x10, 0xC0000082])
    (3, '0x10') (2, '0xc0000082')
    """

    def __init__(self, target: MsrFilter, *, unknown: bool = False) -> None:
        """With `unknown`, those that KVM knows nothing of exit too, in place of #GP."""
        self._target = target
        self._asked: dict[str, dict[int, int]] = {}
        reasons = KVM_MSR_EXIT_REASON_FILTER | (KVM_MSR_EXIT_REASON_INVAL if unknown else 0)
        target.enable_cap(KVM_CAP_X86_USER_SPACE_MSR, reasons)

    def ask(self, owner: str, *, reads: Iterable[int] = (), writes: Iterable[int] = ()) -> None:
        """Have RDMSR of `reads` and WRMSR of `writes` exit, and nothing else for this `owner`."""
        wanted: dict[int, int] = {}
        for index in reads:
            wanted[index] = KVM_MSR_FILTER_READ
        for index in writes:
            wanted[index] = wanted.get(index, 0) | KVM_MSR_FILTER_WRITE
        self._asked[owner] = wanted
        flags: dict[int, int] = {}
        for asked in self._asked.values():
            for index, flag in asked.items():
                flags[index] = flags.get(index, 0) | flag
        self._target.set_msr_filter([(flag, index, *_DENIED) for index, flag in flags.items()])
