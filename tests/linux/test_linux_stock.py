"""Debian's own kernel boots too: `make test-linux`, which takes long where ring 0 is slow."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from pykvm import Machine, Outcome
from support.linux import BUILD, Linux, last_lines

#: Seconds.
PATIENCE = float(os.environ.get("PYKVM_STOCK_PATIENCE", "3600"))

pytestmark = [pytest.mark.stock, pytest.mark.timeout(PATIENCE + 60)]


class Told:
    """Prints what a guest says, a line at a time, each with the seconds since the beginning."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._begun = b""
        self._start = time.monotonic()

    def hear(self, data: bytes) -> None:
        *lines, self._begun = (self._begun + data).split(b"\n")
        for line in lines:
            self.say(line.decode(errors="replace").rstrip())

    def say(self, text: str) -> None:
        with self._capsys.disabled():
            print(f"{time.monotonic() - self._start:8.1f} s  {text}", flush=True)


def test_the_stock_kernel(linux: Linux, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-B", str(BUILD.with_name("stock.py"))]
    image = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    told = Told(capsys)
    with Machine(
        image,
        initrd=linux.initramfs,
        append="console=ttyS0 earlyprintk=ttyS0 checks",
        memory="128M",
    ) as machine:
        machine.serial.on_output(told.hear)
        result = machine.run(timeout=PATIENCE)
        told.say(f"{result}; exits: {dict(result.exits)}")
        assert (result.outcome, result.exit_code) == (Outcome.EXITED, 0), last_lines(machine)
