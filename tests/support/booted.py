"""Linux at its shell, booted once for each kind of machine on a host, and kept in a file.

The file lies beside the kernel, whose directory is named by what it was built from.  One that this
pykvm does not read, or of another host, is made anew.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING

from pykvm import Machine, Outcome, PykvmError, Snapshot
from support.linux import DEADLINE, last_lines
from support.once import cpu_for
from support.slowness import longer

if TYPE_CHECKING:
    from support.linux import Linux

__all__ = ["PROMPT", "at_the_shell"]

PROMPT = "# "


def at_the_shell(linux: Linux, irqchip: str = "kernel", vcpus: int = 1) -> Path:
    """The file of a machine with 64 MiB whose shell waits for input.

    Its time stands still between two runs: two snapshots with no run between them are equal.
    """
    cpu = cpu_for(irqchip)
    name = f"shell-{irqchip}-{vcpus}-{cpu}-paused.pykvm"
    home = linux.vmlinux.parent
    path = (home if os.access(home, os.W_OK) else Path(gettempdir())) / name
    if not goes_on(path):
        boot(linux, irqchip, vcpus, cpu).save(path)
    return path


def goes_on(path: Path) -> bool:
    """Whether there is such a file, and it is of this host and this pykvm."""
    try:
        with Machine.from_snapshot(Snapshot.load(path)):
            return True
    except PykvmError:
        return False


def boot(linux: Linux, irqchip: str, vcpus: int, cpu: str) -> Snapshot:
    """Boot to the shell's prompt, and a little further: until it waits."""
    with Machine(
        linux.vmlinux,
        initrd=linux.initramfs,
        append="console=ttyS0 quiet",
        memory="64M",
        irqchip=irqchip,
        vcpus=vcpus,
        cpu=cpu,
        clock="paused",
    ) as machine:
        result = machine.run(timeout=2 * DEADLINE, until=PROMPT)
        assert result.outcome is Outcome.UNTIL, f"{result}\n{last_lines(machine)}"
        machine.run(timeout=longer(0.5))
        return machine.snapshot()
