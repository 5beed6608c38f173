"""The hot part of pykvm in C: see core.h for what each function does.

`lib` has the functions, `ffi` the types.  `drive` is the loop of a run around KVM_RUN, with the
devices called from C; `by_hand` makes the steps of a loop by hand.  `hold_claim` and `hold_vcpu`
replace `with`: a signal handler may raise between any two Python instructions, also between
acquiring a resource and the `try` that would release it.  These acquire, call and release in C
(hold.c).  `owned` is for what the garbage collector releases.
"""

from __future__ import annotations

from itertools import starmap

from pykvm._core._native import ffi, lib
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, TypeVar

    T = TypeVar("T")

    def hold_claim(claim: int, run: Callable[[], T], refused: Callable[[int], T], /) -> T:
        """Call ``run()`` as the run of a claim, given by its address, and return its result.

        If it cannot begin, return ``refused(code)`` with one of enum pykvm_refusal.
        """

    def hold_vcpu(
        vcpu: int,
        deadline: int,
        turn: int,
        run: Callable[[], T],
        refused: Callable[[int], T],
        /,
    ) -> T:
        """Call ``run()`` between pykvm_enter and pykvm_leave; see `hold_claim`."""

    def by_hand(
        vcpu: int,
        deadline: int,
        loop: int,
        keep: object,
        page: Any,
        kinds: tuple[Any, ...],
        other: Callable[[int], T | None],
        /,
    ) -> Callable[[], T]:
        """Return a function that runs a vCPU, given by its address, to the next exit: its value.

        `loop` is what pykvm_by_hand returned, `kinds` is `pykvm.exits.KINDS`.  ``other(code)`` is
        called for what is no single access, and returns an exit, or None to go on.  A reference to
        `keep` is held.
        """

    def drive(
        vcpu: int,
        reads: Mapping[int, Callable[[int, int], int]],
        writes: Mapping[int, Callable[[int, int, int], None]],
        odd: Callable[[object, int], int],
        once: bool,
        /,
    ) -> int:
        """Run a vCPU, given by its address, and call the devices that the guest accesses.

        Returns any of enum pykvm_code but reads and writes; with `once` PYKVM_CALLED after one of
        these.  ``odd(answer, slot)`` is the number for an answer that is no int of 64 bits.
        """

else:
    lib.pykvm_add_functions()  # makes them all

__all__ = ["by_hand", "drive", "ffi", "hold_claim", "hold_vcpu", "lib", "owned"]


def owned(new: Callable[..., Any], free: Callable[[Any], None], *arguments: Any) -> Any:
    """What ``new(*arguments)`` returns, a pointer or NULL, freed with the last reference to it.

    Both are functions of `lib`.  Two calls would be too many: a signal handler that raises after
    the first would leak what it has made.  This is one, of functions in C.
    """
    return next(map(ffi.gc, starmap(new, (arguments,)), (free,)))
