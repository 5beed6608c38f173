"""How a run ended: `Outcome` in a word, `Result` with everything that is known."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pykvm.errors import GuestError
    from pykvm.exits import Exit

__all__ = ["Ending", "Outcome", "Result"]


class Outcome(enum.Enum):
    """Why a run ended.  Exactly one of these holds for every run that returns."""

    #: The guest ended itself and gave an exit code.
    EXITED = "exited"
    #: The guest halted and nothing can wake it.
    HALTED = "halted"
    #: The guest asked for a reset.
    RESET = "reset"
    #: The time given to `run` is up; the machine can run on.
    TIMEOUT = "timeout"
    #: Somebody called `Machine.stop`; the machine can run on.
    STOPPED = "stopped"
    #: The condition given as `until` holds; the machine can run on.
    UNTIL = "until"
    #: The guest died; `Result.error` says of what.
    CRASHED = "crashed"


class Ending:
    """Why a run ends, before the figures of the run are known."""

    __slots__ = ("error", "exit", "exit_code", "outcome", "sentence")

    def __init__(
        self,
        outcome: Outcome,
        sentence: str,
        *,
        exit_code: int | None = None,
        exit: Exit | None = None,
        error: GuestError | None = None,
    ) -> None:
        self.outcome = outcome
        self.sentence = sentence
        self.exit_code = exit_code
        self.exit = exit
        self.error = error


class Result:
    """How one call of `Machine.run` ended.  Printing it tells the story.

    `outcome` is the kind of end and `exit_code` the guest's own code (None unless the outcome is
    EXITED).  `exit` is the last VM exit, where it matters to the outcome, and `error` the
    GuestError of a crash.  `exits` counts the VM exits of this run by kind; writes that the kernel
    coalesced caused none.  `seconds` is the time the run took.  Summed over the vCPUs that ran,
    `guest_seconds` of it were spent in the guest, in KVM and in the loop in C, `outside_seconds` in
    Python: pykvm and the devices.

    `emulated` counts the instructions that KVM refused and pykvm completed, by name, and
    `emulated_seconds`, a part of `outside_seconds`, is the time that took.  `made_good` counts what
    the host got wrong otherwise and pykvm has put right: what, and how often.

    `notes` says what this host did not do as asked: a sentence each.
    """

    __slots__ = (
        "emulated",
        "emulated_seconds",
        "error",
        "exit",
        "exit_code",
        "exits",
        "guest_seconds",
        "made_good",
        "notes",
        "outcome",
        "outside_seconds",
        "seconds",
        "sentence",
    )

    def __init__(
        self,
        ending: Ending,
        *,
        exits: Mapping[str, int],
        seconds: float,
        guest_seconds: float,
        outside_seconds: float,
    ) -> None:
        self.end(ending)
        self.exits = exits
        self.seconds = seconds
        self.guest_seconds = guest_seconds
        self.outside_seconds = outside_seconds
        self.emulated: Mapping[str, int] = {}
        self.emulated_seconds = 0.0
        self.notes: tuple[str, ...] = ()
        self.made_good: Mapping[str, int] = {}

    def end(self, ending: Ending) -> None:
        """Let this be how it ended."""
        self.outcome = ending.outcome
        self.sentence = ending.sentence
        self.exit_code = ending.exit_code
        self.exit = ending.exit
        self.error = ending.error

    @property
    def ok(self) -> bool:
        """Whether the guest ended itself with exit code 0."""
        return self.outcome is Outcome.EXITED and self.exit_code == 0

    def check(self) -> Result:
        """Return this result, or raise the GuestError if the guest crashed."""
        if self.error is not None:
            raise self.error
        return self

    def __str__(self) -> str:
        told = f"{self.sentence} ({self.seconds:.3f} s, {sum(self.exits.values())} VM exits)"
        console = "" if self.error is None else self.error.console
        return f"{told}\nThe last lines of its console:\n{console}" if console else told

    def __repr__(self) -> str:
        code = "" if self.exit_code is None else f" exit_code={self.exit_code}"
        return f"<Result {self.outcome.name}{code}: {self}>"
