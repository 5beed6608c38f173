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
    *("array", "re", "typing", "weakref", "enum", "signal", "threading", "select"),
    *("pykvm.exits", "pykvm.machine.crash", "pykvm.x86.diagnose"),
    *("pykvm.clock.clock", "pykvm.vcpu.engine"),
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
        pytest.param("hello.elf", "Hello from long mode!", NEEDLESS | FOR_KERNELS, 118, id="bare"),
        pytest.param("pvh.elf", "command line: ", NEEDLESS, 144, id="pvh"),
    ],
)
def test_a_plain_run_imports_no_more_than_it_needs(
    guests: Path, root: Path, guest: str, said: str, needless: set[str], most: int
) -> None:
    """`most` is how many modules of pykvm it may load: each costs a quarter of a millisecond."""
    output, loaded = run(root, str(guests / guest))
    assert said in output.split("\n")
    assert "pykvm.machine" in loaded
    assert loaded & needless == set()
    assert len(of_pykvm(loaded)) <= most


@pytest.mark.kvm
def test_a_run_from_a_file_imports_no_more_than_it_needs(
    guests: Path, root: Path, tmp_path: Path
) -> None:
    """That of a PC, which has a clock and devices to put back."""
    saved = str(tmp_path / "saved.pykvm")
    run(root, str(guests / "pvh.elf"), "--until", "command line", "--save", saved)
    output, loaded = run(root, saved)
    assert "RSDP: " in output
    assert "pykvm.machine.snapshot_file" in loaded
    assert {name for name in loaded & NEEDLESS if not name.startswith("pykvm.")} == set()
    assert "pykvm.exits" not in loaded
    assert len(of_pykvm(loaded)) <= 145


def run(root: Path, *arguments: str) -> tuple[str, set[str]]:
    """What a run prints, and the modules that it has loaded."""
    program = (
        "import sys; from pykvm.cli import main; main(sys.argv[1:]); "
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "-q", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
    )
    return done.stdout, set(done.stderr.split())


def of_pykvm(loaded: set[str]) -> list[str]:
    return sorted(name for name in loaded if name.split(".")[0] == "pykvm")
