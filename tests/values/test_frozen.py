"""Immutable values without dataclasses."""

from __future__ import annotations

import copy
import inspect
import pickle
import typing
from dataclasses import KW_ONLY
from typing import Any, ClassVar

import pytest

from pykvm.exits import IoIn
from pykvm.values.frozen import Frozen, NamedTuple


class Place(Frozen):
    kind: ClassVar[str] = "place"
    x: int
    y: int = 0


class Named(Place):
    name: str = "?"


def test_fields_come_by_position_by_name_and_by_default() -> None:
    assert Place(1, 2) == Place(x=1, y=2) == Place(1, y=2)
    assert Place(1).y == 0
    assert Place(1).kind == "place"
    assert (Named(1).x, Named(1, 2, "here").name) == (1, "here")


@pytest.mark.parametrize(
    ("args", "named", "message"),
    [
        ((), {}, "not given 'x'"),
        ((1, 2, 3), {}, "2 fields, not 3"),
        ((1,), {"x": 1}, "'x' twice"),
        ((1,), {"z": 1}, "'z' which it has not"),
    ],
)
def test_what_does_not_fit_is_refused(
    args: tuple[int, ...], named: dict[str, int], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        Place(*args, **named)


def test_it_is_equal_and_hashed_by_class_and_fields() -> None:
    assert hash(Place(1)) == hash(Place(1, 0))
    assert Place(1) != Named(1)
    assert Place(1) != (1, 0)


def test_nothing_can_be_set_or_deleted() -> None:
    place = Place(1)
    with pytest.raises(AttributeError, match="immutable: x cannot be set"):
        setattr(place, "x", 2)  # noqa: B010
    with pytest.raises(AttributeError, match="immutable: x cannot be deleted"):
        delattr(place, "x")
    assert place.x == 1
    assert not hasattr(place, "__dict__")


def test_it_can_be_matched_copied_pickled_and_looked_at() -> None:
    match Named(3, 4):
        case Named(x, y, name="?"):
            assert (x, y) == (3, 4)
        case _:
            pytest.fail("no match")
    read = IoIn(0x3F8, 1)
    assert copy.deepcopy(read) == pickle.loads(pickle.dumps(read)) == read
    assert str(inspect.signature(IoIn)) == "(port, size, count=1)"
    assert Place(1).__replace__(y=5) == Place(1, 5)


class Wide(Frozen):
    x: int
    kind: ClassVar[str] = "wide"
    _: KW_ONLY
    y: int = 0
    z: int = 0


def test_fields_after_kw_only_go_by_name() -> None:
    assert (Wide(1, z=2).x, Wide(1, z=2).z) == (1, 2)
    with pytest.raises(TypeError, match="1 fields by position, not 2"):
        Wide(1, 2)  # type: ignore[call-arg]
    assert str(inspect.signature(Wide)) == "(x, *, y=0, z=0)"
    assert Wide.__match_args__ == ("x",)
    assert copy.deepcopy(Wide(1, y=2)) == pickle.loads(pickle.dumps(Wide(1, y=2))) == Wide(1, y=2)
    assert Wide(1).__replace__(z=3) == Wide(1, z=3)


class Theirs(typing.NamedTuple):
    x: int
    y: int


class Point(NamedTuple):
    """A point."""

    x: int
    y: int = 0

    @property
    def sum(self) -> int:
        return self.x + self.y


def test_a_named_tuple_is_what_the_library_makes() -> None:
    theirs: Any = Theirs(1, 2)
    ours = Point(1, 2)
    assert ours == theirs == (1, 2)
    assert hash(ours) == hash(theirs)
    assert f"Theirs{repr(ours).removeprefix('Point')}" == repr(theirs)
    assert ours._asdict() == theirs._asdict()
    assert ours._fields == theirs._fields == ("x", "y")
    assert (ours.x, ours.y, ours.sum, Point(5).y) == (1, 2, 3, 0)
    assert isinstance(ours._replace(x=7), Point)
    assert ours._replace(x=7) == (7, 2)
    assert Point._make([3, 4]) == (3, 4)
    assert copy.deepcopy(ours) == pickle.loads(pickle.dumps(ours)) == ours
    assert str(inspect.signature(Point)) == "(x, y=0)"
    with pytest.raises(AttributeError):
        setattr(ours, "x", 1)  # noqa: B010
    match ours:
        case Point(x, y=2):
            assert x == 1
        case _:
            pytest.fail("no match")


@pytest.mark.parametrize(
    ("args", "named"), [((), {}), ((1, 2, 3), {}), ((1,), {"x": 1}), ((1,), {"z": 1})]
)
def test_a_named_tuple_refuses_what_does_not_fit(
    args: tuple[int, ...], named: dict[str, int]
) -> None:
    with pytest.raises(TypeError):
        Point(*args, **named)
