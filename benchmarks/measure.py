"""Two sides measured in turns, and what the pairs say."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Method = Literal["ratio", "extra"]


class Pair(NamedTuple):
    """One measurement of each side, taken one right after the other, in the same unit."""

    ours: float
    theirs: float


class Spread(NamedTuple):
    """Median and quartiles."""

    low: float
    median: float
    high: float


def alternate(
    ours: Callable[[], float], theirs: Callable[[], float], pairs: int
) -> tuple[Pair, ...]:
    """Measure both sides `pairs` times in the order A B B A, after one round that is not counted.

    The order makes a slow drift of the clock favour neither side.

    >>> log = []
    >>> def side(name, value):
    ...     return lambda: log.append(name) or value
    >>> alternate(side("A", 3.0), side("B", 2.0), 2)
    (Pair(ours=3.0, theirs=2.0), Pair(ours=3.0, theirs=2.0))
    >>> "".join(log)
    'ABABBA'
    """
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
        taken.append(Pair(a, b))
    return tuple(taken)


def spread(values: Iterable[float]) -> Spread:
    """Median and quartiles of at least two values.

    >>> spread([5, 1, 2, 4, 3])
    Spread(low=2.0, median=3.0, high=4.0)
    """
    return Spread(*statistics.quantiles(values, n=4, method="inclusive"))


def compare(pairs: Iterable[Pair], method: Method) -> Spread:
    """Compare pair by pair, then take the median: ours / theirs, or ours - theirs.

    >>> compare([Pair(3, 2), Pair(30, 20), Pair(8, 2)], "ratio").median
    1.5
    >>> compare([Pair(3, 2), Pair(30, 20), Pair(8, 2)], "extra").median
    6.0
    """
    if method == "ratio":
        return spread(pair.ours / pair.theirs for pair in pairs)
    return spread(pair.ours - pair.theirs for pair in pairs)
