"""Outcomes as a table: text for a terminal, Markdown for the docs, JSON for programs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from benchmarks.row import Result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.measure import Spread
    from benchmarks.row import Outcome, Row

HEADINGS = (
    "row",
    "ring",
    "backend",
    "yardstick",
    "against",
    "theirs",
    "pykvm",
    "median of pairs",
    "quartiles",
    "target",
    "met",
)
VERDICTS = {True: "yes", False: "NO", None: "-"}


def _compared(value: float, row: Row) -> str:
    if row.method == "ratio":
        return f"{value:.3f} x"
    return f"{value:+.2f} {row.unit}" if row.method == "extra" else f"{value:.2f} {row.unit}"


def _target(row: Row) -> str:
    if row.limit is None:
        return "none"
    if row.method == "ratio":
        return f"<= {row.limit:g} x"
    return f"<= {'+' if row.method == 'extra' else ''}{row.limit:g} {row.unit}"


def _quartiles(compared: Spread, row: Row) -> str:
    return f"{_compared(compared.low, row)} .. {_compared(compared.high, row)}"


def cells(outcome: Outcome, backend: str) -> tuple[str, ...]:
    """The texts of one line, one for each heading."""
    row = outcome.row
    ring = "-" if row.ring is None else str(row.ring)
    if not isinstance(outcome, Result):
        return (row.title, ring, backend, "-", row.against, *(["-"] * 4), _target(row), "skipped")
    theirs = outcome.theirs
    return (
        row.title,
        ring,
        backend,
        f"{outcome.yardstick:.2f} µs",
        row.against,
        "-" if theirs is None else f"{theirs.median:.2f} {row.unit}",
        f"{outcome.ours.median:.2f} {row.unit}",
        _compared(outcome.compared.median, row),
        _quartiles(outcome.compared, row),
        _target(row),
        VERDICTS[outcome.met],
    )


def _notes(outcomes: Sequence[Outcome]) -> list[str]:
    """What there is to say below the table: why rows were skipped, and the notes of the others."""
    return [
        f"{outcome.row.title}: {note}"
        for outcome in outcomes
        for note in (
            outcome.notes if isinstance(outcome, Result) else (f"skipped, {outcome.reason}",)
        )
    ]


def as_text(outcomes: Sequence[Outcome], backend: str) -> str:
    """Columns padded to their widest cell; the notes below."""
    lines = [HEADINGS, *(cells(outcome, backend) for outcome in outcomes)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    padded = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([*padded, *_notes(outcomes)])


def as_markdown(outcomes: Sequence[Outcome], backend: str) -> str:
    """A GitHub table; the notes as a list below."""
    lines = [HEADINGS, ["---"] * len(HEADINGS), *(cells(each, backend) for each in outcomes)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "\n".join(f"- {note}" for note in _notes(outcomes))
    return f"{table}\n\n{notes}" if notes else table


def as_json(outcomes: Sequence[Outcome], conditions: dict[str, str]) -> str:
    """Everything measured, every pair included."""
    rows: list[dict[str, object]] = []
    for outcome in outcomes:
        entry: dict[str, object] = asdict(outcome.row)
        if isinstance(outcome, Result):
            theirs = outcome.theirs
            entry |= {
                "yardstick_us": outcome.yardstick,
                "ours": outcome.ours._asdict(),
                "theirs": None if theirs is None else theirs._asdict(),
                "compared": outcome.compared._asdict(),
                "met": outcome.met,
                "pairs": [
                    [pair.ours, None if math.isnan(pair.theirs) else pair.theirs]
                    for pair in outcome.pairs
                ],
                "notes": outcome.notes,
            }
        else:
            entry["skipped"] = outcome.reason
        rows.append(entry)
    return json.dumps({"conditions": conditions, "rows": rows}, indent=2, ensure_ascii=False)
