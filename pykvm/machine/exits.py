"""A run that stops at every VM exit: `Machine.exits`."""

from __future__ import annotations

import time

from pykvm.errors import StateError
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pykvm.exits import Exit
    from pykvm.result import Result
    from pykvm.vcpu import CPU

__all__ = ["Exits"]


class Exits:
    """The exits of a machine's guest, one after the other; between two of them the machine stands.

    An iterator: `cpu` is the vCPU of the exit that came last, and `result` says how the guest, or
    the time, ended, once there is no further exit.
    """

    def __init__(
        self,
        cpus: Sequence[CPU],
        run: Callable[[float | None, bool], tuple[Result, bool]],
        timeout: float | None,
    ) -> None:
        """`run` runs the machine to the next exits, for so many seconds at most.

        It is told whether a part of this run came before, and also returns whether it stopped at
        an exit, which a vCPU's loop has as its `pending`.
        """
        self._cpus = cpus
        self._run = run
        self._left = timeout
        self._cpu: CPU | None = None
        self._before: Result | None = None
        #: How it ended; None as long as it goes on.
        self.result: Result | None = None

    @property
    def cpu(self) -> CPU:
        """The vCPU that the last exit is of.  Raises StateError before the first."""
        if self._cpu is None:
            raise StateError("no exit has been asked for yet")
        return self._cpu

    def __iter__(self) -> Exits:
        return self

    def __next__(self) -> Exit:
        while self.result is None:
            for cpu in self._cpus:
                pending = cpu.loop.pending
                if pending is not None and not pending.shown:
                    pending.shown = True
                    self._cpu = cpu
                    return pending.exit
            began = time.monotonic()
            result, stopped = self._run(self._left, self._before is not None)
            if self._before is not None:
                result.include(self._before)
            self._before = result
            if not stopped:
                self.result = result
            if self._left is not None:
                self._left = max(self._left - (time.monotonic() - began), 0.0)
        raise StopIteration

    def __repr__(self) -> str:
        if self.result is not None:
            return f"<Exits: {self.result.sentence}>"
        return "<Exits: at one>" if self._cpu is not None else "<Exits>"
