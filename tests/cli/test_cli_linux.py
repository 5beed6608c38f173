"""What the command line says around a Linux; the kernels here are those of guests/boot."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pykvm.cli import main
from pykvm.quirks import kernel_options
from pykvm.quirks.kernel_options import ring_0_is_emulated

pytestmark = pytest.mark.kvm

Pykvm = Callable[..., "subprocess.CompletedProcess[str]"]

SLOW = "pykvm: this host runs ring 0 in an emulator: Linux takes about a minute\n"


@pytest.mark.parametrize("emulated", [False, True])
def test_the_first_line_says_that_linux_is_slow_here(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    guests: Path,
    emulated: bool,
) -> None:
    quirks = frozenset({kernel_options.EMULATED} if emulated else ())
    monkeypatch.setattr(kernel_options, "found", lambda _: quirks)
    assert main([str(guests / "vmlinux")]) == 0
    said = capfd.readouterr().err
    assert said.startswith(SLOW) == emulated
    assert said.count("ring 0 in an emulator") == emulated


def test_it_is_found_by_trying(pykvm: Pykvm, guests: Path) -> None:
    assert pykvm(guests / "vmlinux").stderr.startswith(SLOW) == ring_0_is_emulated()
    assert pykvm(guests / "vmlinux", "-q").stderr == ""
    assert "ring 0" not in pykvm(guests / "hello.elf").stderr


def test_words_that_were_added_are_told_after_a_run_that_failed(
    pykvm: Pykvm, guests: Path, tmp_path: Path
) -> None:
    said = "the kernel's command line begins with panic=-1"
    assert said not in pykvm(guests / "vmlinux").stderr
    # Without memory enough for its own work it comes to no good end.
    failed = pykvm(guests / "vmlinux", "--timeout", "0.000001")
    assert failed.returncode == 124
    assert said in failed.stderr
    assert "--append-only leaves them out" in failed.stderr
