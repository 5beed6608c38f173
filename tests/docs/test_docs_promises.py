"""Promises of docs/promises.md that have no better home."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pykvm import HostError, Machine
from pykvm.host import Host
from pykvm.kvm import Cap, System
from support.slowness import longer

# What costs milliseconds to import, and a run can do without.
HEAVY = {
    *("argparse", "asyncio", "ctypes", "dataclasses", "inspect", "logging", "subprocess"),
    *("construct", "elftools", "cffi"),
}
RUN = """
import sys
before = {name.partition(".")[0] for name in sys.modules}
from pykvm import Machine
with Machine(sys.argv[1]) as machine:
    assert machine.run(timeout=50).ok
    assert machine.symbols["main"]
print(*{name.partition(".")[0] for name in sys.modules} - before)
"""


def python(*arguments: str) -> list[str]:
    """What a fresh interpreter prints, in words."""
    ran = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=longer(50), check=True
    )
    return ran.stdout.split()


def test_importing_pykvm_loads_no_module_of_it() -> None:
    modules = python("-c", "import sys, pykvm; print(*sys.modules)")
    assert [name for name in modules if name.startswith("pykvm")] == ["pykvm"]


@pytest.mark.kvm
def test_a_run_loads_little_of_others(guests: Path) -> None:
    loaded = set(python("-c", RUN, str(guests / "hello.elf")))
    assert loaded - sys.stdlib_module_names == {"pykvm", "_cffi_backend"}
    assert loaded & HEAVY == set()


@pytest.mark.kvm
def test_a_kvm_that_is_too_old_is_told_by_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    has = System.check_extension

    def old(system: System, cap: int) -> int:
        return 0 if cap == Cap.KVM_CAP_SYNC_REGS else has(system, cap)

    monkeypatch.setattr(Host, "_checked", False)
    monkeypatch.setattr(System, "check_extension", old)
    with pytest.raises(HostError, match=r"lacks KVM_CAP_SYNC_REGS\n.*Linux 4\.17"):
        Machine()
