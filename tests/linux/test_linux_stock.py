"""Debian's own kernel boots too: `make test-linux`, which takes long where ring 0 is emulated.

Where it runs on the processor (`make test-amd`) the kernel boots in every shape of machine.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pykvm import Machine, Outcome
from support.linux import BUILD, PLACE, Linux, last_lines
from support.once import NATIVE, cpu_for, may_bring_one_twice

#: Seconds.
PATIENCE = float(os.environ.get("PYKVM_STOCK_PATIENCE", "3600"))

pytestmark = [pytest.mark.stock, pytest.mark.timeout(3 * PATIENCE + 60)]


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


@pytest.fixture(scope="session")
def stock(linux: Linux) -> str:
    """The kernel, fetched if it is not there."""
    if directory := os.environ.get(PLACE):
        return str(Path(directory, "vmlinuz"))
    command = [sys.executable, "-B", str(BUILD.with_name("stock.py"))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def boot(image: str, linux: Linux, told: Told, **options: Any) -> str:
    """Boot it to its power-off, and return what it said.

    Where an interrupt may come twice a kernel may die of it, which is no fault of ours: it gets
    three tries.
    """
    cpu = cpu_for(options.get("irqchip", "kernel"), options.pop("cpu", "baseline"))
    for _ in range(2 if may_bring_one_twice() else 0):
        with suppress(AssertionError):
            return boot_once(image, linux, told, cpu=cpu, **options)
        told.say("once more, since this host brings an interrupt twice now and then")
    return boot_once(image, linux, told, cpu=cpu, **options)


def boot_once(image: str, linux: Linux, told: Told, **options: Any) -> str:
    told.say(str(options))
    with Machine(image, initrd=linux.initramfs, memory="128M", **options) as machine:
        machine.serial.on_output(told.hear)
        result = machine.run(timeout=PATIENCE)
        told.say(f"{result}; exits: {dict(result.exits)}")
        assert (result.outcome, result.exit_code) == (Outcome.EXITED, 0), last_lines(machine)
        return machine.serial.text


def test_the_stock_kernel(stock: str, linux: Linux, capsys: pytest.CaptureFixture[str]) -> None:
    boot(stock, linux, Told(capsys), append="console=ttyS0 earlyprintk=ttyS0 checks")


@pytest.mark.needs_host(NATIVE)
@pytest.mark.parametrize("cpu", ["baseline", "host"])
@pytest.mark.parametrize("irqchip", ["user", "kernel"])
@pytest.mark.parametrize("vcpus", [1, 2])
def test_in_each_shape(
    stock: str,
    linux: Linux,
    capsys: pytest.CaptureFixture[str],
    vcpus: int,
    irqchip: str,
    cpu: str,
) -> None:
    options = {"vcpus": vcpus, "irqchip": irqchip, "cpu": cpu}
    said = boot(stock, linux, Told(capsys), append="console=ttyS0 quiet checks", **options)
    assert f"check: processors: {vcpus}\r\n" in said
    assert "check: done, 0 failed\r\n" in said
    assert not re.search("Oops|BUG:", said)
