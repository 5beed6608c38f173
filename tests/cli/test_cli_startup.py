"""Starting up: a plain run imports what it needs and no more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Each of these costs a millisecond or more, or belongs to something that was not asked for.
NEEDLESS = {
    *("argparse", "gettext", "dataclasses", "inspect", "json", "socket", "subprocess", "logging"),
    *("construct", "elftools", "ctypes", "readline", "traceback", "textwrap", "difflib", "pathlib"),
    *(
        f"pykvm.boot.{name}"
        for name in ("flat", "large_file", "linux", "linux_header", "payload", "plan", "pvh")
    ),
    *("pykvm.exits", "pykvm.machine.crash", "pykvm.kvm.abi", "pykvm.x86.diagnose"),
    *(
        f"pykvm.cli.{name}"
        for name in (
            *("describe", "dump", "facts", "help", "info", "probes", "stats", "step", "stepper"),
            *("qemu", "terminal", "trace", "waiting"),
        )
    ),
}


@pytest.mark.kvm
def test_a_plain_run_imports_no_more_than_it_needs(guests: Path, root: Path) -> None:
    program = (
        "import sys; from pykvm.cli import main; main(sys.argv[1:]); "
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "-q", str(guests / "hello.elf")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
    )
    assert done.stdout == "Hello from long mode!\n"
    loaded = set(done.stderr.split())
    assert "pykvm.machine" in loaded
    assert loaded & NEEDLESS == set()
