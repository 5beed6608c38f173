"""A line for a person who waits for a kernel's first output."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pykvm.boot.linux import UNPACKS_ITSELF
from pykvm.cli.silence import Silence
from pykvm.devices.uart import Uart16550


def machine(*, printed: int = 0, notes: tuple[str, ...] = (), boot: str | None = None) -> Any:
    serial = Uart16550()
    serial.emit(b"x" * printed)
    config = SimpleNamespace(boot=boot)
    return SimpleNamespace(devices={"com1": serial}, notes=notes, config=config)


def said(capfd: pytest.CaptureFixture[str], of: Any, *, patience: float = 0.0) -> str:
    silence = Silence(of, patience=patience)
    with silence:
        if not patience:
            silence._thread.join()
    return capfd.readouterr().err


@pytest.mark.parametrize(
    ("of", "what"),
    [
        (machine(), "sets up its memory"),
        (machine(boot="linux64"), "unpacks itself"),
        (machine(notes=(f"k: {UNPACKS_ITSELF}: why",)), "unpacks itself"),
    ],
)
def test_says_what_a_silent_kernel_does(
    capfd: pytest.CaptureFixture[str], of: Any, what: str
) -> None:
    assert said(capfd, of) == f"pykvm: no output yet: the kernel {what} before it can print\n"


def test_is_silent_about_a_kernel_that_has_printed(capfd: pytest.CaptureFixture[str]) -> None:
    assert said(capfd, machine(printed=1)) == ""


def test_is_silent_about_a_run_that_is_over_before(capfd: pytest.CaptureFixture[str]) -> None:
    assert said(capfd, machine(), patience=3600.0) == ""


def test_a_machine_without_the_port(capfd: pytest.CaptureFixture[str]) -> None:
    bare = machine()
    bare.devices = {}
    assert said(capfd, bare) == ""
