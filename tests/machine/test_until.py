"""Waiting for what a guest says: which match, where it ends, and what it may cost."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices.stream import OutputLog
from pykvm.errors import ConfigError
from pykvm.machine.until import BACKLOG, PATTERN_WINDOW, Conditions, Ear
from pykvm.result import Outcome


class Console:
    """A console that is listened to, as a machine does it."""

    def __init__(self, **options: int) -> None:
        self.log = OutputLog(**options)
        self.ear = Ear(self.log)

    def wait(self, *said: bytes, until: object, fail: object = None) -> Conditions[Any]:
        with Conditions(None, lambda: self.ear, until=until, fail=fail) as conditions:
            for data in said:
                if conditions.check() is None:
                    self.log.emit(data)
        return conditions


def bytewise(data: bytes) -> list[bytes]:
    return [bytes((byte,)) for byte in data]


@pytest.mark.parametrize(
    ("until", "said", "printed"),
    [
        ("cde", b"abcdefg", b"abcde"),
        (b"cde", b"abcdefg", b"abcde"),
        ("ü", "für".encode(), "fü".encode()),
        (re.compile(r"c.e"), b"abcdefg", b"abcde"),
        (re.compile(rb"c.e"), b"abcdefg", b"abcde"),
        (re.compile("f.r"), "für dich".encode(), "für".encode()),
        (re.compile(r"\d+ passed"), b"7 failed\n12 passed\n", b"7 failed\n12 passed"),
        (re.compile(r"login: $"), b"login: x\nlogin: ", b"login: "),
        (re.compile(r"a.*b.*c\n", re.DOTALL), b"a\nb\nc\nd\n", b"a\nb\nc\n"),
        (re.compile(r"^# ", re.MULTILINE), b"x# \n# y", b"x# \n# "),
        (re.compile(r"\Aok"), b"okay", b"ok"),
        (["never", re.compile("o k"), "ok"], b"look", b"look"),
    ],
)
def test_the_guest_stops_at_the_last_byte(until: object, said: bytes, printed: bytes) -> None:
    console = Console()
    ending = console.wait(*bytewise(said), until=until).check()

    assert ending is not None
    assert ending.outcome is Outcome.UNTIL
    assert console.log.output == printed
    assert console.ear.position == len(printed)


@pytest.mark.parametrize(
    ("until", "said"),
    [
        ("abc", b"abab"),
        (re.compile("a.c"), b"a\nc"),
        (re.compile("^ok"), b"not\nok"),
        # Only where the last match ended, however much was said since.
        (re.compile("^x+"), b"y" + b"x" * 3 * PATTERN_WINDOW),
        (re.compile(r"\Ax+"), b"y" + b"x" * 3 * PATTERN_WINDOW),
    ],
)
def test_text_that_was_not_said_does_not_match(until: object, said: bytes) -> None:
    assert Console().wait(*bytewise(said), until=until).check() is None
    assert Console().wait(said, until=until).check() is None


def test_how_long_a_match_may_be() -> None:
    said = bytewise(b"what came before: y" + b"x" * PATTERN_WINDOW)
    assert Console().wait(*said, until=re.compile(rf"y.{{{PATTERN_WINDOW - 1}}}")).ending
    assert not Console().wait(*said, until=re.compile(rf"y.{{{PATTERN_WINDOW}}}")).ending


def test_which_of_several_and_what_it_matched() -> None:
    pattern = re.compile(r"(?P<count>\d+) tests passed")
    ending = Console().wait(b"ok\n12 tests passed\n", until=("FAIL", pattern)).check()

    assert ending is not None
    assert ending.matched is pattern
    assert ending.match is not None
    assert ending.match["count"] == "12"
    assert ending.sentence == "the guest said '12 tests passed'"


def test_the_first_to_end_counts_whatever_the_order() -> None:
    ending = Console().wait(b"one two three", until=["three", "two", "o t"]).check()
    assert ending is not None
    assert ending.matched == "two"


def test_a_failure_counts_more_at_the_same_byte() -> None:
    ending = Console().wait(b"kernel PANIC", until="NIC", fail=["Oops", "PANIC"]).check()

    assert ending is not None
    assert ending.outcome is Outcome.FAILED
    assert ending.matched == "PANIC"
    assert ending.sentence == "the guest failed: it said 'PANIC'"


def test_it_goes_on_where_the_last_match_ended() -> None:
    console = Console()
    assert console.wait(b"one two ", until="one").ending is not None
    # Said before this wait, and after the match of the last.
    assert console.wait(until="two").ending is not None
    assert console.wait(until="two").ending is None
    assert console.wait(b"tw", until="nothing").ending is None
    assert console.wait(b"o", until="two").ending is not None
    assert console.log.printed == console.ear.position


def test_how_far_back_it_looks() -> None:
    console = Console()
    console.log.emit(b"early" + b"." * BACKLOG + b"late")
    assert console.wait(until="early").ending is None
    assert console.wait(until="late").ending is not None

    forgetful = Console(limit=4)
    forgetful.log.emit(b"early" + b"." * 16 + b"late")
    assert forgetful.wait(until="late").ending is not None


def test_functions_beside_texts() -> None:
    seen: list[object] = []

    def enough(machine: object) -> bool:
        seen.append(machine)
        return len(seen) == 3

    with Conditions(7, lambda: Ear(OutputLog()), until=["x", enough], fail=None) as conditions:
        assert conditions.check() is None
        assert conditions.check() is None
        ending = conditions.check()
    assert ending is not None
    assert (ending.sentence, ending.matched) == ("enough holds", enough)
    assert seen == [7, 7, 7]
    assert conditions.awaited == "'x' or enough"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (5, "until is text, bytes, a compiled regular expression, .*, not 5"),
        ([], "nothing in"),
        (["a", None], "not None"),
        ({"a"}, "not {'a'}"),
        ("", "an empty text is always there"),
        ([b"x", b""], "an empty text is always there"),
        (re.compile("x*"), "matches an empty text"),
        (re.compile(b"$"), "matches an empty text"),
    ],
)
def test_what_cannot_be_waited_for(wrong: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Conditions(None, lambda: Ear(OutputLog()), until=wrong, fail=None)
    with pytest.raises(ConfigError, match=message.replace("until is", "fail is")):
        Conditions(None, lambda: Ear(OutputLog()), until=None, fail=wrong)


TEXTS = st.text("ab\n", min_size=1, max_size=4)
OUTPUT = st.text("ab\n", max_size=40)


@given(until=st.lists(TEXTS, min_size=1, max_size=3), output=OUTPUT, cuts=st.data())
def test_the_same_match_however_the_output_comes(
    until: list[str], output: str, cuts: st.DataObject
) -> None:
    def ear_at(pieces: list[bytes], wanted: object) -> int:
        console = Console()
        ending = console.wait(*pieces, until=wanted).ending
        return -1 if ending is None else console.ear.position

    data = output.encode()
    at = cuts.draw(st.integers(0, len(data)))
    ends = [data.find(one.encode()) + len(one) for one in until if one in output]
    expected = min(ends, default=-1)
    assert ear_at([data], until) == expected
    assert ear_at([data[:at], data[at:]], until) == expected
    assert ear_at(bytewise(data), until) == expected
    assert ear_at(bytewise(data), [re.compile(re.escape(one)) for one in until]) == expected


@pytest.mark.parametrize("pattern", [r"\w+ passed", r"(?s)a.*b"])
def test_output_without_end_costs_the_same_for_every_byte(pattern: str) -> None:
    """A search looks at a bounded piece, however long the line has become."""
    conditions = Conditions(None, lambda: Ear(OutputLog()), until=re.compile(pattern), fail=None)
    looked: list[int] = []
    [(_, text)] = conditions._texts
    find = text.find

    def spy(window: bytes, new: int, first: int) -> object:
        looked.append(len(window))
        return None

    text.find = spy  # type: ignore[method-assign, assignment]
    with conditions:
        for _ in range(4 * PATTERN_WINDOW):
            conditions._output(b"a")
        conditions._output(b"a" * 4 * PATTERN_WINDOW)
    assert max(looked) <= 2 * PATTERN_WINDOW + 1
    began = time.monotonic()
    assert find(b"a" * (2 * PATTERN_WINDOW + 1), PATTERN_WINDOW, 1) is None
    assert time.monotonic() - began < 10


def test_lines_are_searched_alone_where_a_match_cannot_cross_them() -> None:
    crossing = {
        r"tests: \d+": False,
        r"(?P<n>\d+) (?:failed|passed)\.$": False,
        r"[a-z]+ \[ ok \]": False,
        r"a\nb": True,
        r"[^x]y": True,
        r"a\s+b": True,
        r"(?s:a.b)": True,
        "a\nb": True,
        r"\x0a": True,
    }
    for source, crosses in crossing.items():
        [(_, text)] = Conditions(
            None, lambda: Ear(OutputLog()), until=re.compile(source), fail=None
        )._texts
        assert text._one_line is not crosses, source  # type: ignore[union-attr]
    [(_, text)] = Conditions(
        None, lambda: Ear(OutputLog()), until=re.compile("a.b", re.DOTALL), fail=None
    )._texts
    assert not text._one_line  # type: ignore[union-attr]
