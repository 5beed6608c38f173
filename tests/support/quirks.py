"""Tests that need a host without a certain quirk.

pykvm's own probe of the quirk decides (docs/quirks.md)::

    @without("triple-fault")
    def test_the_registers_after_a_triple_fault(): ...
"""

from __future__ import annotations

from functools import partial

import pytest

from pykvm.quirks import QUIRKS, Quirk, found
from support.host import host_probe

__all__ = ["without"]


def _has(quirk: Quirk) -> str | None:
    return quirk.wrong if found([quirk]) else None


for _quirk in QUIRKS:
    host_probe(f"without-{_quirk.name}")(partial(_has, _quirk))


def without(name: str) -> pytest.MarkDecorator:
    """Mark a test that needs a host without the quirk `name`."""
    assert name in {quirk.name for quirk in QUIRKS}, name
    return pytest.mark.needs_host(f"without-{name}")
