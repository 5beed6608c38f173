"""States go to JSON and back; what a stranger wrote is refused by its place."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import LoadError
from pykvm.values.state import State, decode, encode, fits

if TYPE_CHECKING:
    from pykvm.values.state import S32, U4, U8, Plain


class CellState(State):
    mode: U4
    count: S32 | None = None


class CounterState(State):
    name: str
    channels: tuple[CellState, ...]
    pair: tuple[U8, bytes]
    own: Plain = None


class LaterState(CounterState):
    armed: bool = False


TIMER = CounterState("pit", (CellState(3), CellState(15, -1)), (255, b"\0\xff"), (1, b"x"))


class SpelledState(State):
    """Annotations as typing and quotation marks spell them, too."""

    cell: Optional[CellState]  # noqa: UP045
    number: Optional["U8"]  # noqa: UP037, UP045
    pairs: tuple["CellState", ...]  # noqa: UP037
    nothing: None


_leaves = st.none() | st.booleans() | st.integers() | st.text() | st.binary()
_plain = st.recursive(_leaves, lambda part: st.lists(part).map(tuple), max_leaves=8)


def through_json(state: object) -> object:
    return json.loads(json.dumps(encode(state)))


def test_a_record_comes_back_as_it_was() -> None:
    assert decode(through_json(TIMER), CounterState) == TIMER


def test_a_subclass_has_the_fields_of_its_base() -> None:
    later = LaterState("a", (), (0, b""), None, True)
    assert decode(through_json(later), LaterState) == later
    assert decode(through_json(later), CounterState) == later


@given(_plain)
def test_any_plain_value_comes_back_as_it_was(value: object) -> None:
    assert decode(through_json(value), object) == value


def test_what_is_alive_is_no_state() -> None:
    with pytest.raises(TypeError, match="list is no part of a state"):
        encode(([],))


def test_two_classes_of_one_name_are_refused() -> None:
    with pytest.raises(TypeError, match="two states are called CounterState"):
        exec("class CounterState(State): pass", {"State": State, "__name__": "elsewhere"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": 16}, r"CellState.mode: 16 is not a number of 4 bits"),
        ({"mode": -1}, r"mode: -1 is not a number of 4 bits"),
        ({"mode": True}, r"mode: True is not a number of 4 bits"),
        ({"mode": "3"}, r"mode: '3' is not a number of 4 bits"),
        ({"count": 1 << 31}, r"count: 2147483648 is not a number of 32 bits"),
        ({"other": 1}, r"CellState has the fields mode, count, not"),
    ],
)
def test_a_wrong_field_is_refused_by_its_name(change: dict[str, object], message: str) -> None:
    fields = {"mode": 1, "count": None, **change}
    with pytest.raises(LoadError, match=message):
        decode({"CellState/1": fields}, CellState)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"CellState/2": {}}, "CellState of version '2'; this pykvm knows version 1"),
        ({"Popen/1": {"args": "true"}}, "'Popen' is no CellState"),
        ({"CounterState/1": {}}, "'CounterState' is no CellState"),
        ([], r"\[\] is no CellState"),
        ({}, "{} is no CellState"),
        (None, "None is no CellState"),
    ],
)
def test_what_is_no_such_record_is_refused(value: object, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        decode(value, CellState)


def test_nesting_is_limited() -> None:
    value: object = None
    for _ in range(100):
        value = [value]
    with pytest.raises(LoadError, match="nested more than 32 deep"):
        decode(value, object)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda part: (
        st.lists(part)
        | st.dictionaries(
            st.sampled_from(
                ["CounterState/1", "CellState/1", "bytes", "name", "mode", "count", "pair"]
            )
            | st.text(),
            part,
        )
    ),
    max_leaves=20,
)


@given(_json)
def test_any_json_is_a_state_or_a_load_error(value: object) -> None:
    for kind in (CounterState, CellState, object):
        try:
            state = decode(value, kind)
        except LoadError:
            continue
        assert decode(through_json(state), kind) == state


def test_an_annotation_of_what_is_not_defined_is_refused() -> None:
    class OrphanState(State):
        inner: NowhereState | None  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(LoadError, match="OrphanState cannot be read here: .*NowhereState"):
        decode({"OrphanState/1": {"inner": None}}, object)


def test_fits_asks_the_annotations() -> None:
    assert fits(CellState(3), CellState)
    assert not fits(CellState(99), CellState)
    assert not fits(3, CellState)


def test_annotations_of_typing_are_understood() -> None:
    state = SpelledState(CellState(1), 255, (CellState(2),), None)
    assert decode(encode(state), SpelledState) == state
    assert fits(SpelledState(None, None, (), None), SpelledState)
    assert not fits(SpelledState(None, 256, (), None), SpelledState)
