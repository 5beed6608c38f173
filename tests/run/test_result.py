"""What a Result says."""

from __future__ import annotations

import pytest

from pykvm.errors import GuestError
from pykvm.result import Ending, Outcome, Result


def result(ending: Ending, **exits: int) -> Result:
    return Result(ending, exits=exits, seconds=0.25, guest_seconds=0.2, outside_seconds=0.05)


def test_an_exit_code_of_its_own() -> None:
    ended = result(Ending(Outcome.EXITED, "the guest exited with code 0", exit_code=0), IoOut=3)

    assert ended.ok
    assert str(ended) == "the guest exited with code 0 (0.250 s, 3 VM exits)"
    assert repr(ended).startswith("<Result EXITED exit_code=0: the guest")
    assert ended.check() is ended


def test_an_ending_without_a_code_is_not_ok() -> None:
    assert not result(Ending(Outcome.HALTED, "halted")).ok
    assert not result(Ending(Outcome.EXITED, "exited", exit_code=1)).ok


def test_a_crash_can_be_raised() -> None:
    error = GuestError("triple fault", "no IDT")
    ended = result(Ending(Outcome.CRASHED, "crashed", error=error))
    with pytest.raises(GuestError, match="triple fault: no IDT"):
        ended.check()
