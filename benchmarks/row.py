"""What one row of the table says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.measure import compare, spread

if TYPE_CHECKING:
    from benchmarks.measure import Method, Pair, Spread


@dataclass(frozen=True)
class Row:
    """What is measured, against what, and what is promised.

    `unit` names the unit of both sides; `limit` is in that unit for ``extra`` and ``own``, a factor
    for ``ratio``, and None where nothing is promised.  `ring` is the guest's, where it matters.
    """

    name: str
    title: str
    against: str
    method: Method
    limit: float | None
    unit: str
    ring: int | None = None


@dataclass(frozen=True)
class Result:
    """A row with its measurements; `yardstick` is one OUT exit in C at that moment, in µs.

    `notes` are sentences for below the table.
    """

    row: Row
    pairs: tuple[Pair, ...]
    yardstick: float
    notes: tuple[str, ...] = ()

    @property
    def ours(self) -> Spread:
        return spread(pair.ours for pair in self.pairs)

    @property
    def theirs(self) -> Spread | None:
        """None where nothing stands beside it."""
        known = [pair.theirs for pair in self.pairs]
        return None if any(map(math.isnan, known)) else spread(known)

    @property
    def compared(self) -> Spread:
        return compare(self.pairs, self.row.method)

    @property
    def met(self) -> bool | None:
        """Is the promise kept?  None where there is none."""
        if self.row.limit is None:
            return None
        return self.compared.median <= self.row.limit


@dataclass(frozen=True)
class Skipped:
    """A row that this host cannot measure, and why."""

    row: Row
    reason: str


Outcome = Result | Skipped
