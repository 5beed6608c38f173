"""What a benchmark is: a row of the table and the function that measures it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.measure import Pair
    from benchmarks.rig import Rig
    from benchmarks.row import Row


class CannotMeasureError(Exception):
    """This host cannot measure the row; the text says why."""


@dataclass(frozen=True)
class Measured:
    """A measurement of which there is more to say than its pairs.

    `notes` are sentences for below the table.  `row` is the row as it came out, where the host has
    a say in what is measured.
    """

    pairs: tuple[Pair, ...]
    notes: tuple[str, ...] = ()
    row: Row | None = None


@dataclass(frozen=True)
class Bench:
    """`measure` takes the rig and how many pairs to take; `pinned` keeps both sides on one CPU."""

    row: Row
    measure: Callable[[Rig, int], tuple[Pair, ...] | Measured]
    pairs: int = 40
    pinned: bool = True
