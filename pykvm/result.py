"""How a run ended: `Outcome` in a word, `Result` with everything that is known."""

from __future__ import annotations

from collections import Counter

from pykvm.errors import (
    ConfigError,
    GuestFailed,
    RunError,
    RunStopped,
    RunTimeout,
    with_console,
)
from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import show
from pykvm.values.enumeration import Enum
from pykvm.values.frozen import NamedTuple

if TYPE_CHECKING:
    import re
    from collections.abc import Iterable, Mapping

    from pykvm.errors import GuestError
    from pykvm.exits import Exit


__all__ = ["Ending", "Outcome", "Place", "Result", "Unclaimed"]


class Outcome(Enum):
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
    #: A breakpoint, a watchpoint or a single step of the host's; the machine can run on, past it.
    DEBUG = "debug"
    #: The condition given as `until` holds; the machine can run on.
    UNTIL = "until"
    #: The condition given as `fail` holds; the machine can run on.
    FAILED = "failed"
    #: The guest died; `Result.error` says of what.
    CRASHED = "crashed"


# What stands below the sentence of a run that is worth a look.
_WITH_CONSOLE = frozenset({Outcome.TIMEOUT, Outcome.FAILED, Outcome.CRASHED})

_ERRORS: dict[Outcome, type[RunError]] = {
    Outcome.TIMEOUT: RunTimeout,
    Outcome.STOPPED: RunStopped,
    Outcome.DEBUG: RunStopped,
}


class Place(NamedTuple):
    """Where a vCPU is between two runs: `address` is the linear address where it continues.

    `doing` is "running", "halted" (it waits in HLT) or "parked" (not started yet).

    >>> print(Place(0, "running", 0x100011, "main+0x11"))
    at 0x100011 (main+0x11)
    """

    vcpu: int
    doing: str
    address: int
    symbol: str = ""

    def __str__(self) -> str:
        if self.doing == "parked":
            return "parked"
        name = f" ({self.symbol})" if self.symbol else ""
        halted = "halted " if self.doing == "halted" else ""
        return f"{halted}at {self.address:#x}{name}"


class Unclaimed(NamedTuple):
    """Accesses that neither memory nor a device claimed, on an open bus: they went nowhere.

    `reads` and `writes` count them, `places` are the first few different ones in words, writes
    before reads.

    >>> print(Unclaimed(0, 1, ("write of 0x7f (1 byte) at address 0xd0000000",)))
    0 reads and 1 write went nowhere: write of 0x7f (1 byte) at address 0xd0000000
    """

    reads: int = 0
    writes: int = 0
    places: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = f"{_counted(self.reads, 'read')} and {_counted(self.writes, 'write')}"
        return f"{counts} went nowhere: {', '.join(self.places)}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


class Ending:
    """Why a run ends, without the figures of the run."""

    __slots__ = ("error", "exit", "exit_code", "match", "matched", "outcome", "sentence")

    def __init__(
        self,
        outcome: Outcome,
        sentence: str,
        *,
        exit_code: int | None = None,
        exit: Exit | None = None,
        error: GuestError | None = None,
        matched: object = None,
        match: re.Match[str] | re.Match[bytes] | None = None,
    ) -> None:
        self.outcome = outcome
        self.sentence = sentence
        self.exit_code = exit_code
        self.exit = exit
        self.error = error
        self.matched = matched
        self.match = match


class Result:
    """How one call of `Machine.run` ended; `str` has all of it in a few lines.

    How it ended:

    - `outcome`: the kind of end.  `exit_code`: the guest's own, None unless the outcome is EXITED.
    - `sentence`: the end in words.  `ok`: whether the run ended as asked.
    - `exit`: the last VM exit, where it matters.  `error`: the GuestError of a crash.
    - `awaited`: what `until` waited for, in words; empty without one.  `matched`: the alternative
    of
      `until` or `fail` that ended the run.  `match`: the match, if that is a regular expression.
    - `places`: where each vCPU is, unless the guest has ended.
    - `console`: the last lines that the guest printed, unless the run ended as asked.
    - `unclaimed`: accesses that no device claimed, on an open bus (``unclaimed="open-bus"``).
    - `notes`: what pykvm did differently from what was asked, in sentences.

    What it took:

    - `exits`: VM exits by kind.  Writes that the kernel coalesced cause none.
    - `seconds`: the time of the run.
    - `guest_seconds`, `outside_seconds`: summed over the vCPUs, the time in the guest, in KVM and
    in
      the loop in C, and the time in Python (pykvm and the devices).
    - `emulated`: the instructions that KVM refused and pykvm executed, by name, and
      `emulated_seconds`, the part of `outside_seconds` that this took.
    - `workarounds`: by name, how often each workaround for a quirk of this host was needed.
    """

    __slots__ = (
        "awaited",
        "console",
        "emulated",
        "emulated_seconds",
        "error",
        "exit",
        "exit_code",
        "exits",
        "guest_seconds",
        "match",
        "matched",
        "notes",
        "outcome",
        "outside_seconds",
        "places",
        "seconds",
        "sentence",
        "unclaimed",
        "workarounds",
    )

    def __init__(
        self,
        ending: Ending,
        *,
        exits: Mapping[str, int],
        seconds: float,
        guest_seconds: float,
        outside_seconds: float,
        awaited: str = "",
    ) -> None:
        self.end(ending)
        self.exits = exits
        self.seconds = seconds
        self.guest_seconds = guest_seconds
        self.outside_seconds = outside_seconds
        self.awaited = awaited
        self.places: tuple[Place, ...] = ()
        self.console = "" if self.error is None else self.error.console
        self.unclaimed = Unclaimed()
        self.emulated: Mapping[str, int] = {}
        self.emulated_seconds = 0.0
        self.notes: tuple[str, ...] = ()
        self.workarounds: Mapping[str, int] = {}

    def end(self, ending: Ending) -> None:
        """Set how the run ended."""
        self.outcome = ending.outcome
        self.sentence = ending.sentence
        self.exit_code = ending.exit_code
        self.exit = ending.exit
        self.error = ending.error
        self.matched = ending.matched
        self.match = ending.match

    def include(self, before: Result) -> None:
        """Add the figures of an earlier part of the same run."""
        self.exits = Counter(before.exits) + Counter(self.exits)
        self.seconds += before.seconds
        self.guest_seconds += before.guest_seconds
        self.outside_seconds += before.outside_seconds
        self.emulated = Counter(before.emulated) + Counter(self.emulated)
        self.emulated_seconds += before.emulated_seconds
        self.workarounds = Counter(before.workarounds) + Counter(self.workarounds)

    @property
    def ok(self) -> bool:
        """Whether the run ended as asked: by `until` if there was one, else with exit code 0."""
        return self._is(Outcome.UNTIL) if self.awaited else self._is(0)

    def check(self, expect: int | Outcome | Iterable[int | Outcome] | None = None) -> Result:
        """Return this result if the run ended as asked, else raise.

        With `until` the expected end is UNTIL, without it exit code 0.  `expect` sets another: an
        exit code, an Outcome, or several of both.

        ::

            machine.run(timeout=5, until="login: ").check()
            machine.run(timeout=5).check(expect=(0, 3))
            machine.run(timeout=5).check(expect=Outcome.HALTED)

        Raises GuestError if the guest crashed, GuestFailed if it ended in another way, RunTimeout
        at the time limit and RunStopped if the host stopped it; all of them are RunError.  Raises
        ConfigError for an invalid `expect`.
        """
        wanted = None if expect is None else _expectations(expect)
        if self.ok if wanted is None else any(map(self._is, wanted)):
            return self
        raise self._failure(wanted)

    def failure(self, awaited: str) -> RunError:
        """What to raise where this end disappoints a wait for `awaited`, a text."""
        if self.error is not None:
            return self.error
        lines = [self.sentence + self.where, f"awaited: {awaited}"]
        kind = _ERRORS.get(self.outcome, GuestFailed)
        return kind("\n".join(lines), console=self.console, result=self)

    def _is(self, expected: int | Outcome) -> bool:
        if isinstance(expected, Outcome):
            return self.outcome is expected
        return self.outcome is Outcome.EXITED and self.exit_code == expected

    def _failure(self, wanted: tuple[int | Outcome, ...] | None) -> RunError:
        if self.error is not None:
            self.error.result = self
            return self.error
        lines = [self.sentence + self.where, *self._lines()]
        if wanted is not None:
            lines.append(f"expected: {_either(wanted)}")
        elif not self.awaited:
            lines.append("expected: exit code 0")
        kind = _ERRORS.get(self.outcome, GuestFailed)
        return kind("\n".join(lines), console=self.console, result=self)

    @property
    def where(self) -> str:
        """Where the guest is, to append to the sentence, if it has one vCPU: " at 0x1000"."""
        if len(self.places) != 1:
            return ""
        place = self.places[0]
        if self.outcome is Outcome.HALTED:
            place = place._replace(doing="running")  # it has been said already
        return f", {place}" if place.doing == "halted" else f" {place}"

    @property
    def details(self) -> list[str]:
        """More about the end, below the sentence: a line each."""
        several = self.places if len(self.places) > 1 else ()
        lines = [f"vCPU {place.vcpu} is {place}" for place in several]
        if self.awaited and self.outcome is not Outcome.UNTIL:
            lines.append(f"awaited: {self.awaited}")
        return lines

    def _lines(self) -> list[str]:
        lines = self.details
        if (self.unclaimed.reads or self.unclaimed.writes) and not self.ok:
            lines.append(str(self.unclaimed))
        return lines

    def __str__(self) -> str:
        figures = f"({self.seconds:.3f} s, {_counted(sum(self.exits.values()), 'VM exit')})"
        told = "\n".join([f"{self.sentence}{self.where} {figures}", *self._lines()])
        return with_console(told, self.console if self.outcome in _WITH_CONSOLE else "")

    def __repr__(self) -> str:
        code = "" if self.exit_code is None else f" exit_code={self.exit_code}"
        return f"<Result {self.outcome.name}{code}: {self.sentence}>"


def _expectations(expect: int | Outcome | Iterable[int | Outcome]) -> tuple[int | Outcome, ...]:
    """What `expect` lists.  Raises ConfigError."""
    given: object = expect
    wanted = given if isinstance(given, (list, tuple, set, frozenset, range)) else (given,)
    if not wanted or any(type(one) is not int and not isinstance(one, Outcome) for one in wanted):
        raise ConfigError(
            f"expect is an exit code, an Outcome or several of these, not {show(expect)}",
            hint="as check(expect=(0, 3)) or check(expect=Outcome.HALTED)",
        )
    return tuple(wanted)


def _either(wanted: tuple[int | Outcome, ...]) -> str:
    return " or ".join(
        one.name if isinstance(one, Outcome) else f"exit code {show(one)}" for one in wanted
    )
