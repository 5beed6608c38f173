"""The checks themselves: what they take, and that a message fits on a line whatever the value."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import ConfigError
from pykvm.values import checks
from support.odd import ODD, Level, Seven

CHECKS: dict[str, Callable[[str, Any], object]] = {
    "integer": checks.integer,
    "from 1": lambda name, value: checks.integer(name, value, 1),
    "0 to 15": lambda name, value: checks.integer(name, value, 0, 15),
    "unsigned": lambda name, value: checks.unsigned(name, value, 16),
    "word": lambda name, value: checks.word(name, value, 16),
    "seconds": checks.seconds,
    "flag": checks.flag,
    "text": checks.text,
    "words": checks.words,
    "each": lambda name, value: checks.each(name, value, "a list of addresses", checks.integer),
    "iterable": checks.iterable,
    "choice": checks.choice("a", "b"),
    "optional": checks.optional(checks.text),
    "callback": checks.callback,
    "buffer": checks.buffer,
}


def refused(check: Callable[[str, Any], object], value: Any) -> bool:
    try:
        check("the_option", value)
    except ConfigError as error:
        assert error.message.startswith("the_option")
        assert len(error.message) < 400
        assert "\n" not in error.message
        return True
    return False


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_an_odd_value_is_taken_or_refused_by_name(check: Callable[[str, Any], object]) -> None:
    assert sum(refused(check, value) for value in ODD) > 0


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
    | st.decimals() | st.complex_numbers() | st.dates(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=5,
)  # fmt: skip


@given(st.sampled_from(list(CHECKS.values())), ANYTHING)
def test_any_value_is_taken_or_refused_by_name(
    check: Callable[[str, Any], object], value: Any
) -> None:
    refused(check, value)


def test_values_that_checks_take() -> None:
    assert checks.integer("n", Seven()) == 7
    assert checks.integer("n", Level.HIGH) == 1
    assert checks.seconds("t", 0) == 0.0
    assert checks.seconds("t", Decimal("0.5")) == 0.5
    assert checks.seconds("t", Fraction(1, 4)) == 0.25
    assert checks.seconds("t", checks.LONGEST_WAIT) == checks.LONGEST_WAIT
    assert checks.word("w", -1, 16) == 0xFFFF
    assert checks.words("args", ("a", "b")) == ["a", "b"]
    assert checks.optional(checks.flag)("f", None) is None
    assert checks.buffer("b", bytearray(b"ab")).tobytes() == b"ab"


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (CHECKS["from 1"], "2", "n is an integer from 1 on, not '2'"),
        (CHECKS["0 to 15"], 16, "n is an integer from 0 to 15, not 16"),
        (CHECKS["unsigned"], 1 << 16, "n is an integer from 0 to 0xffff, not 0x10000"),
        (CHECKS["word"], 1 << 16, "n is a number of 16 bits, not 0x10000"),
        (checks.integer, True, "n is an integer, not True"),
        (checks.seconds, math.inf, "n is a number of seconds from 0 to 1000000000, not inf"),
        (checks.seconds, "5", "n is a number of seconds from 0 to 1000000000, not '5'"),
        (checks.text, "a\0b", r"n is a str without NUL, not 'a\x00b'"),
        (checks.words, "one", "n is a list of str, not 'one'"),
        (checks.words, ["a", 1], "n[1] is a str, not 1"),
        (CHECKS["choice"], "c", "n is one of a, b, not 'c'"),
        (checks.flag, 1, "n is True or False, not 1"),
    ],
)
def test_messages_of_checks(check: Callable[[str, Any], object], value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check("n", value)
    assert raised.value.message == message
