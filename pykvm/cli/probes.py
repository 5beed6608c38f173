"""What this host's KVM really does, found out by running tiny guests."""

from __future__ import annotations

from pykvm.errors import PykvmError
from pykvm.machine import Machine
from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.result import Result

__all__ = ["PROBES", "Probe", "Verdict"]

_TIMEOUT = 2.0
_CODE = 42

# mov al, 42; out 0xf4, al: the same bytes in every mode.
_EXIT = bytes.fromhex("B02A E6F4")


class Verdict(NamedTuple):
    """What a probe found; `detail` says what happens instead."""

    works: bool
    detail: str = ""


class Probe(NamedTuple):
    """A question, and how it is put to the host."""

    name: str
    ask: Callable[[], Verdict]

    def __call__(self) -> Verdict:
        """Ask; what fails for whatever reason does not work."""
        try:
            return self.ask()
        except PykvmError as error:
            return Verdict(False, error.message)


def _runs_in(mode: str) -> Callable[[], Verdict]:
    def ask() -> Verdict:
        with Machine(_EXIT, memory="8M", mode=mode, load_address=0x7C00) as machine:
            return _judge(machine.run(timeout=_TIMEOUT), _CODE)

    return ask


def _tsc_offset() -> Verdict:
    with Machine(memory="1M", irqchip="none") as machine:
        movable = machine.clock.tsc_movable
    detail = "" if movable else "it is accepted and forgotten: guests read the host's TSC"
    return Verdict(movable, detail)


def _judge(result: Result, expected: int) -> Verdict:
    works = result.exit_code == expected
    return Verdict(works, "" if works else result.sentence)


PROBES = (
    Probe("a guest runs in real mode", _runs_in("real")),
    Probe("a guest runs in protected mode", _runs_in("protected")),
    Probe("a guest runs in long mode", _runs_in("long")),
    Probe("a TSC offset is kept", _tsc_offset),
)
