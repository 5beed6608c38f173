"""Subscribing to an event, and ending that."""

from __future__ import annotations

import pytest

from pykvm import ConfigError
from pykvm.values.subscribers import Subscribers


def test_each_is_called_in_order_until_it_ends() -> None:
    heard: list[object] = []
    event = Subscribers()
    assert not event
    first = event.add(lambda data: heard.append(("first", data)))
    second = event.add(lambda data: heard.append(("second", data)))
    event(1)
    assert heard == [("first", 1), ("second", 1)]
    first()
    first()
    event(2)
    assert heard[2:] == [("second", 2)]
    second()
    event(3)
    assert len(heard) == 3
    assert not event


def test_one_function_may_subscribe_twice() -> None:
    heard: list[int] = []
    event = Subscribers()
    first = event.add(heard.append)
    event.add(heard.append)
    event(1)
    first()
    event(2)
    assert heard == [1, 1, 2]


def test_a_callback_may_end_itself_and_others() -> None:
    heard: list[str] = []
    event = Subscribers()

    def once() -> None:
        heard.append("once")
        end()
        event.add(lambda: heard.append("late"))

    end = event.add(once)
    event()
    assert heard == ["once"]
    event()
    assert heard == ["once", "late"]


def test_an_exception_comes_out() -> None:
    heard: list[str] = []
    event = Subscribers()

    def refuse() -> None:
        raise ValueError("refused")

    event.add(refuse)
    event.add(lambda: heard.append("after"))
    with pytest.raises(ValueError, match="refused"):
        event()
    assert heard == []


@pytest.mark.parametrize("wrong", [None, "print", 1])
def test_what_cannot_be_called(wrong: object) -> None:
    event = Subscribers()
    with pytest.raises(ConfigError, match="callback is a function"):
        event.add(wrong)  # type: ignore[arg-type]
    assert not event
