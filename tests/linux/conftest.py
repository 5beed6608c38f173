"""Machines that boot the Linux of guests/linux."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pykvm import Machine
from support.linux import Boot, Linux
from support.once import cpu_for


@pytest.fixture
def boot(linux: Linux) -> Iterator[Boot]:
    """Make a machine that is about to boot Linux; it is closed after the test."""
    with ExitStack() as stack:

        def make(image: Path | None = None, *, append: str = "checks", **options: Any) -> Machine:
            options.setdefault("cpu", cpu_for(options.get("irqchip", "kernel")))
            machine = Machine(
                image or linux.vmlinux,
                initrd=linux.initramfs,
                append=f"console=ttyS0 {append}",
                memory="64M",
                **options,
            )
            return stack.enter_context(machine)

        yield make
