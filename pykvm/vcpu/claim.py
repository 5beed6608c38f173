"""Who runs a machine: one run at a time, in the process that made it.

That a machine runs is not a flag for a `finally` to clear: an exception in the wrong place (Ctrl-C,
a signal handler that raises) would leave it set.  It is a claim that is taken and given up in C,
with the run in between: see pykvm/_core/hold.c.
"""

from __future__ import annotations

import os

# From here and not from `weakref`, half a millisecond of whose code goes unused.
from _weakref import ref
from errno import ENOMEM, errorcode

from pykvm._core import ffi, hold_claim, lib, owned
from pykvm.errors import (
    ClosedError,
    KVMError,
    PykvmError,
    ResourceError,
    StateError,
    resource_error,
)
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn, TypeVar

    T = TypeVar("T")

__all__ = ["Claim", "LateError", "refusal"]

FORKED = "this machine belongs to the process that made it, and this process is a fork of that one"
FORKED_HINT = "make machines after the fork, or start processes by multiprocessing's 'spawn'"


class LateError(StateError):
    """A vCPU was to be entered for a run that is over already."""


def refusal(code: int, what: str, errno: int) -> PykvmError:
    """The error for an `enum pykvm_refusal`: `what` is "this machine" or "vCPU 1"."""
    if code == lib.PYKVM_BUSY:
        return StateError(f"{what} is running already")
    if code == lib.PYKVM_FORKED:
        return ClosedError(FORKED, hint=FORKED_HINT)
    if code == lib.PYKVM_SUCCEEDED:
        return StateError("another loop has taken this vCPU over")
    if code == lib.PYKVM_LATE:
        return LateError(f"{what} was to be entered for a run that is over")
    if code == lib.PYKVM_NO_SIGNAL:
        return ResourceError(
            "no real-time signal is free: pykvm takes one to stop vCPUs, and each has a handler",
            hint="leave one of SIGRTMIN+1 to SIGRTMAX as it is (signal.SIG_DFL)",
        )
    if code == lib.PYKVM_NO_TIMER:
        return ResourceError(
            f"{what}: this host gives no more timers: timer_create: {os.strerror(errno)} "
            f"({errorcode.get(errno, errno)})",
            hint="each running vCPU has one, and it counts as a pending signal: raise `ulimit -i`",
        )
    if code == lib.PYKVM_NO_MASK:
        return KVMError("KVM_SET_SIGNAL_MASK", errno)
    return ClosedError("this machine is closed")


class Claim:
    """The right to run a machine.  Raises ResourceError if there is no memory for it."""

    def __init__(self) -> None:
        core = owned(lib.pykvm_claim_new, lib.pykvm_claim_free)
        if core == ffi.NULL:
            raise resource_error("no room for another machine", ENOMEM)
        self.core: Any = core
        #: Whether this process is a fork of the one that made the machine.
        self.forked = False
        #: Whether the machine is closed, or about to be.
        self.closed = False
        # Called in the child of a fork, of an owner held weakly: no cycle holds a machine that is
        # forgotten.
        self._on_fork: Callable[[Any], None] | None = None
        self._owner: ref[object] | None = None
        self._address = int(ffi.cast("uintptr_t", core))
        # Not a WeakSet, which is in Python: an exception of a signal inside of it would be lost.
        _claims[ref(self, _claims.pop)] = None

    def hold(self, run: Callable[[], T]) -> T:
        """Call `run` as the one run of the machine.

        Whatever comes out of it, no vCPU is in the guest, and none enters it, once this returns or
        raises.  Raises StateError, ClosedError.
        """
        return hold_claim(self._address, run, self._refused)

    def _refused(self, code: int) -> NoReturn:
        raise refusal(code, "this machine", 0)

    def check_open(self) -> None:
        """Raise ClosedError if the machine is closed, or belongs to another process."""
        if self.closed or self.forked:
            raise refusal(lib.PYKVM_FORKED if self.forked else lib.PYKVM_SHUT, "this machine", 0)

    @property
    def turn(self) -> int:
        """The number of the run that began last."""
        return int(self.core.turn)

    @property
    def running(self) -> int:
        """The number of the run in progress; 0 if there is none."""
        return int(self.core.running)

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread runs the machine, or one of its vCPUs."""
        return bool(lib.pykvm_claim_is_mine(self.core))

    def finish(self) -> None:
        """Take all vCPUs out of the guest, and wait until their threads have left them.

        The run is over for them, but the machine remains claimed.
        """
        while lib.pykvm_finish(self.core):
            pass

    def shut(self, *, wait: bool = False) -> bool:
        """Let no run begin any more.  Returns whether one is in progress.

        With `wait` this takes until it has ended, or a while.
        """
        return bool(lib.pykvm_claim_shut(self.core, wait))

    def on_fork(self, owner: T, forget: Callable[[T], None]) -> None:
        """In the child of a fork, call `forget` with `owner` if that still lives."""
        self._on_fork = forget
        self._owner = ref(owner)

    def forget(self) -> None:
        """In the child of a fork: give up what is the parent's."""
        self.forked = True
        lib.pykvm_claim_forget(self.core)
        owner = self._owner() if self._owner is not None else None
        if owner is not None and self._on_fork is not None:
            self._on_fork(owner)


_claims: dict[ref[Claim], None] = {}


def _forget_all() -> None:
    for reference in list(_claims):
        claim = reference()
        if claim is not None:
            claim.forget()


os.register_at_fork(after_in_child=_forget_all)
