"""Workarounds for a host with quirks on a Linux kernel's command line."""

from __future__ import annotations

import pytest

from pykvm.quirks import QUIRKS, kernel_options
from pykvm.quirks.kernel_options import OPTIONS, add_workarounds, options_for


def test_each_names_a_quirk_that_there_is() -> None:
    assert {option.quirk for option in OPTIONS} <= {quirk.name for quirk in QUIRKS}


def test_a_good_host_needs_none() -> None:
    assert options_for((), 1) == ("panic=-1",)


def test_what_is_for_one_processor_only() -> None:
    every = {quirk.name for quirk in QUIRKS}
    assert set(options_for(every, 1)) - set(options_for(every, 2)) == {"noreplace-smp"}


def test_the_callers_words_come_last_and_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_options, "found", lambda _: {"syscall", "cpuid"})
    line, said = add_workarounds("console=ttyS0 mitigations=auto panic=5", 1)
    assert line == "clearcpuid=151 console=ttyS0 mitigations=auto panic=5"
    assert said.startswith("the kernel's command line begins with clearcpuid=151, workarounds ")


def test_nothing_is_said_where_nothing_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_options, "found", lambda _: frozenset())
    assert add_workarounds("panic=1 quiet", 1) == ("panic=1 quiet", "")
