"""Starting up: a plain run imports what it needs and no more."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

# Each of these costs a millisecond or more, or belongs to something that was not asked for.
NEEDLESS = {
    *("argparse", "gettext", "dataclasses", "inspect", "json", "socket", "subprocess", "logging"),
    *("construct", "elftools", "ctypes", "readline", "traceback", "textwrap", "difflib", "pathlib"),
    *("array", "re", "typing", "weakref"),
    *("pykvm.exits", "pykvm.machine.crash", "pykvm.x86.diagnose", "pykvm.clock.clock"),
    *(f"pykvm.boot.{name}" for name in ("flat", "large_file", "multiboot", "multiboot2")),
    *(f"pykvm.kvm.{name}" for name in ("abi", "capabilities", "device", "hints", "reasons")),
    *(f"pykvm.irqchip.{name}" for name in ("base", "tsc_offset", "wiring")),
    *(
        f"pykvm.cli.{name}"
        for name in (
            *("describe", "dump", "facts", "help", "info", "probes", "stats", "step", "stepper"),
            *("pump", "qemu", "terminal", "trace", "waiting"),
        )
    ),
}
# What only kernels need.
FOR_KERNELS = {
    *(
        f"pykvm.boot.{name}"
        for name in ("linux", "linux_header", "payload", "plan", "pvh", "real_start")
    ),
    *("pykvm.clock", "pykvm.devices.fw_cfg", "pykvm.devices.pc", "pykvm.kvm.msrs"),
    *("pykvm.machine.report", "pykvm.quirks", "pykvm.tables", "pykvm.vcpu.reset"),
}


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("guest", "said", "needless", "most"),
    [
        pytest.param("hello.elf", "Hello from long mode!", NEEDLESS | FOR_KERNELS, 125, id="bare"),
        pytest.param("pvh.elf", "command line: ", NEEDLESS, 160, id="pvh"),
    ],
)
def test_a_plain_run_imports_no_more_than_it_needs(
    guests: Path, root: Path, guest: str, said: str, needless: set[str], most: int
) -> None:
    """`most` is how many modules of pykvm it may load: each costs a quarter of a millisecond."""
    program = (
        "import sys; from pykvm.cli import main; main(sys.argv[1:]); "
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "-q", str(guests / guest)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
    )
    assert said in done.stdout.split("\n")
    loaded = set(done.stderr.split())
    assert "pykvm.machine" in loaded
    assert loaded & needless == set()
    assert len([name for name in loaded if name.split(".")[0] == "pykvm"]) <= most
