"""Enumerations of pykvm's own do what those of `enum` do."""

from __future__ import annotations

import copy
import enum
import pickle
from typing import Any

import pytest

from pykvm.values import enumeration


class Ours(enumeration.Enum):
    """A doc."""

    RED = "red"
    BLUE = "blue"

    @property
    def upper(self) -> str:
        return self.value.upper()


class Theirs(enum.Enum):
    """A doc."""

    RED = "red"
    BLUE = "blue"

    @property
    def upper(self) -> str:
        return self.value.upper()


class OurNumber(enumeration.IntEnum):
    ONE = 1
    TWO = 2


BOTH = pytest.mark.parametrize("colour", [Ours, Theirs])


@BOTH
def test_members(colour: Any) -> None:
    assert [one.name for one in colour] == ["RED", "BLUE"]
    assert colour("red") is colour["RED"] is colour(colour.RED) is colour.RED
    assert list(colour.__members__) == ["RED", "BLUE"]
    assert len(colour) == 2
    assert colour.RED in colour
    assert isinstance(colour.RED, colour)
    assert colour.RED != colour.BLUE
    assert colour.RED != "red"
    assert {colour.RED: 1}[colour("red")] == 1
    assert colour.BLUE.upper == "BLUE"
    assert colour.__doc__ == "A doc."


@BOTH
def test_texts(colour: Any) -> None:
    assert str(colour.RED) == f"{colour.RED}" == f"{colour.__name__}.RED"
    assert repr(colour.RED) == f"<{colour.__name__}.RED: 'red'>"


@BOTH
def test_a_member_is_one_thing(colour: Any) -> None:
    red = colour.RED
    assert copy.copy(red) is copy.deepcopy(red) is pickle.loads(pickle.dumps(red)) is red


@BOTH
@pytest.mark.parametrize("value", ["green", 3, None, ["red"]])
def test_no_such_value(colour: Any, value: object) -> None:
    with pytest.raises(ValueError, match="is not a valid"):
        colour(value)
    with pytest.raises(KeyError):
        colour["GREEN"]


@BOTH
def test_nothing_can_be_set(colour: Any) -> None:
    with pytest.raises(AttributeError):
        colour.RED = 1
    with pytest.raises(AttributeError):
        del colour.RED
    with pytest.raises(AttributeError):
        colour.RED.value = "green"
    with pytest.raises(AttributeError):
        del colour.RED.name


def test_numbers() -> None:
    two: int = OurNumber.TWO
    assert (two, two + 1) == (2, 3)
    assert OurNumber(1) is OurNumber.ONE
    assert (str(OurNumber.ONE), OurNumber.ONE.name) == ("1", "ONE")
    assert pickle.loads(pickle.dumps(OurNumber.ONE)) is OurNumber.ONE


def test_match() -> None:
    match Ours("blue"):
        case Ours.RED:
            raise AssertionError
        case Ours.BLUE:
            pass
