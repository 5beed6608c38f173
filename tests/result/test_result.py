"""What a Result says, and what it raises."""

from __future__ import annotations

import pytest

from pykvm.errors import (
    ConfigError,
    GuestError,
    GuestFailed,
    PykvmError,
    RunError,
    RunStopped,
    RunTimeout,
)
from pykvm.result import Ending, Outcome, Place, Result, Unclaimed


def result(ending: Ending, awaited: str = "", **exits: int) -> Result:
    return Result(
        ending,
        exits=exits,
        seconds=0.25,
        guest_seconds=0.2,
        outside_seconds=0.05,
        awaited=awaited,
    )


def ended(outcome: Outcome, code: int | None = None, awaited: str = "") -> Result:
    error = GuestError("triple fault", "no IDT") if outcome is Outcome.CRASHED else None
    ending = Ending(outcome, f"it {outcome.value}", exit_code=code, error=error)
    return result(ending, awaited)


def test_an_exit_code_of_its_own() -> None:
    good = result(Ending(Outcome.EXITED, "the guest exited with code 0", exit_code=0), IoOut=3)

    assert good.ok
    assert str(good) == "the guest exited with code 0 (0.250 s, 3 VM exits)"
    assert repr(good) == "<Result EXITED exit_code=0: the guest exited with code 0>"
    assert good.check() is good


# For each outcome what check() raises, without `until` and with it; None: nothing.
RAISES: list[tuple[Outcome, int | None, type[RunError] | None, type[RunError] | None]] = [
    (Outcome.EXITED, 0, None, GuestFailed),
    (Outcome.EXITED, 3, GuestFailed, GuestFailed),
    (Outcome.HALTED, None, GuestFailed, GuestFailed),
    (Outcome.RESET, None, GuestFailed, GuestFailed),
    (Outcome.TIMEOUT, None, RunTimeout, RunTimeout),
    (Outcome.STOPPED, None, RunStopped, RunStopped),
    (Outcome.DEBUG, None, RunStopped, RunStopped),
    (Outcome.UNTIL, None, GuestFailed, None),
    (Outcome.FAILED, None, GuestFailed, GuestFailed),
    (Outcome.CRASHED, None, GuestError, GuestError),
]


def test_every_outcome_is_in_the_table() -> None:
    assert {outcome for outcome, *_ in RAISES} == set(Outcome)


@pytest.mark.parametrize(("outcome", "code", "alone", "awaiting"), RAISES)
def test_check_raises_unless_it_ended_as_asked(
    outcome: Outcome,
    code: int | None,
    alone: type[RunError] | None,
    awaiting: type[RunError] | None,
) -> None:
    for awaited, error in (("", alone), ("'ready'", awaiting)):
        mine = ended(outcome, code, awaited)
        assert mine.ok is (error is None)
        if error is None:
            assert mine.check() is mine
            continue
        with pytest.raises(error) as raised:
            mine.check()
        assert type(raised.value) is error
        assert raised.value.result is mine
    # What counts as success can be said.
    expected = outcome if code is None else code
    for expect in (expected, [expected], (77, expected, Outcome.RESET), outcome):
        ended(outcome, code, "'ready'").check(expect=expect)


@pytest.mark.parametrize("awaited", ["", "'ready'"])
def test_expect_replaces_what_was_asked(awaited: str) -> None:
    for good in (ended(Outcome.EXITED, 0, awaited), ended(Outcome.UNTIL, None, awaited)):
        with pytest.raises(GuestFailed, match="expected: exit code 3 or HALTED"):
            good.check(expect=(3, Outcome.HALTED))


@pytest.mark.parametrize("expect", ["0", (), [], ("0",), True, [None], 1.0, b"\0", {"a": 1}])
def test_what_is_no_expectation(expect: object) -> None:
    with pytest.raises(ConfigError, match="expect is an exit code, an Outcome or several"):
        ended(Outcome.EXITED, 0).check(expect=expect)  # type: ignore[arg-type]


def test_a_crash_can_be_raised() -> None:
    error = GuestError("triple fault", "no IDT", console="last words")
    crashed = result(Ending(Outcome.CRASHED, "crashed", error=error))
    with pytest.raises(GuestError, match="triple fault: no IDT") as raised:
        crashed.check()
    assert str(raised.value).endswith("The last lines of its console:\nlast words")


def test_a_timeout_says_all_that_is_known() -> None:
    late = result(
        Ending(Outcome.TIMEOUT, "the guest was still running after 5 s"), "'ready'", Hlt=1
    )
    late.places = (Place(0, "halted", 0x1000, "idle+0x2"), Place(1, "parked", 0))
    late.console = "starting\nmore"
    late.unclaimed = Unclaimed(2, 0, ("read of 1 byte at port 0x99",))

    lines = [
        "the guest was still running after 5 s (0.250 s, 1 VM exit)",
        "vCPU 0 is halted at 0x1000 (idle+0x2)",
        "vCPU 1 is parked",
        "awaited: 'ready'",
        "2 reads and 0 writes went nowhere: read of 1 byte at port 0x99",
        "The last lines of its console:",
        "starting",
        "more",
    ]
    assert str(late).splitlines() == lines
    with pytest.raises(TimeoutError) as raised:
        late.check()
    assert isinstance(raised.value, PykvmError)
    lines[0] = "the guest was still running after 5 s"
    assert str(raised.value).splitlines() == lines
    assert "\n" not in repr(late)


def test_the_place_of_the_only_vcpu_stands_in_the_sentence() -> None:
    late = ended(Outcome.TIMEOUT)
    late.places = (Place(0, "running", 0x100011, "main+0x11"),)
    assert str(late).startswith("it timeout at 0x100011 (main+0x11) (0.250 s")
    late.places = (Place(0, "halted", 0x100011),)
    assert str(late).startswith("it timeout, halted at 0x100011 (0.250 s")
    halted = ended(Outcome.HALTED)
    halted.places = late.places
    assert str(halted).startswith("it halted at 0x100011 (0.250 s")
