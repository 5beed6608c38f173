"""Two sides measured in turns, and what the pairs say."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")

Method = Literal["ratio", "extra", "own"]


class Pair(NamedTuple):
    """One measurement of each side, taken one right after the other, in the same unit."""

    ours: float
    theirs: float


def alone(value: float) -> Pair:
    """A measurement with nothing beside it: theirs is not a number, and the table shows none."""
    return Pair(value, math.nan)


class Spread(NamedTuple):
    """Median and quartiles."""

    low: float
    median: float
    high: float


def in_turns(ours: Callable[[], T], theirs: Callable[[], T], pairs: int) -> list[tuple[T, T]]:
    """Measure both sides `pairs` times in the order A B B A, after one round that is not counted.

    The order makes a slow drift of the clock favour neither side.  A single pair is so long a
    measurement that it needs no round before it.

    >>> log = []
    >>> def side(name, value):
    ...     return lambda: log.append(name) or value
    >>> in_turns(side("A", 3.0), side("B", 2.0), 2)
    [(3.0, 2.0), (3.0, 2.0)]
    >>> "".join(log)
    'ABABBA'
    """
    if pairs > 1:
        ours()
        theirs()
    taken = []
    for number in range(pairs):
        if number % 2 == 0:
            a = ours()
            b = theirs()
        else:
            b = theirs()
            a = ours()
        taken.append((a, b))
    return taken


def alternate(
    ours: Callable[[], float], theirs: Callable[[], float], pairs: int
) -> tuple[Pair, ...]:
    """Measure one number on each side, `in_turns`."""
    return tuple(Pair(*both) for both in in_turns(ours, theirs, pairs))


def spread(values: Iterable[float]) -> Spread:
    """Median and quartiles.

    >>> spread([5, 1, 2, 4, 3])
    Spread(low=2.0, median=3.0, high=4.0)
    >>> spread([7])
    Spread(low=7, median=7, high=7)
    """
    known = list(values)
    if len(known) == 1:
        return Spread(*known * 3)
    return Spread(*statistics.quantiles(known, n=4, method="inclusive"))


def compare(pairs: Iterable[Pair], method: Method) -> Spread:
    """Compare pair by pair, then take the median: ours / theirs, ours - theirs, or ours alone.

    >>> compare([Pair(3, 2), Pair(30, 20), Pair(8, 2)], "ratio").median
    1.5
    >>> compare([Pair(3, 2), Pair(30, 20), Pair(8, 2)], "extra").median
    6.0
    >>> compare([Pair(3, 2), Pair(30, 20), Pair(8, 2)], "own").median
    8.0
    """
    if method == "ratio":
        return spread(pair.ours / pair.theirs for pair in pairs)
    if method == "extra":
        return spread(pair.ours - pair.theirs for pair in pairs)
    return spread(pair.ours for pair in pairs)
