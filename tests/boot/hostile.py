"""Files that lie: numbers that break arithmetic, and how far a file gets."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from pykvm import boot
from pykvm.boot import Image, Setup
from pykvm.errors import LoadError
from pykvm.memory import GuestMemory
from support.boot import load

__all__ = ["EXAMPLES", "attempt", "hostile", "placed"]

EXAMPLES = settings(max_examples=300)

# What breaks arithmetic: the edges of each width, small counts, and sizes near the file's own.
EDGES = [
    edge
    for width in (8, 16, 31, 32, 52, 63, 64)
    for edge in (1 << (width - 1), (1 << width) - 1, (1 << width) - 0x80)
]
hostile = st.one_of(st.sampled_from(EDGES), st.integers(0, 0x400), st.integers(0, (1 << 64) - 1))


def attempt(memory: GuestMemory, data: bytes, *, setup: Setup | None = None, **request: Any) -> str:
    """Load, place and ask for symbols; returns how far it got, for the tests of this function."""
    try:
        image = load(data, name="fuzz", **request)
    except LoadError as error:
        assert str(error).startswith("fuzz: ")
        return "refused"
    assert sum(len(segment.data) for segment in image.segments) <= len(data) * len(image.segments)
    assert all(len(segment.data) <= segment.size for segment in image.segments)
    for name in list(image.symbols)[:8]:
        assert image.symbols[name] >= 0
    image.symbols.describe(image.entry)
    return "placed" if placed(memory, image, setup) else "does not fit"


def placed(memory: GuestMemory, image: Image, setup: Setup | None) -> bool:
    """Whether an image goes into memory; if so, its parts lie side by side."""
    try:
        entry = boot.place(image, memory, setup)
    except LoadError as error:
        assert str(error).startswith("fuzz: ")
        return False
    used = [place for place in entry.layout if place.start < place.end]
    assert all(low.end <= high.start for low, high in pairwise(used)), used
    assert entry.state.mode is image.mode
    return True
