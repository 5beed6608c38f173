"""Every example runs from a checkout and prints what it is meant to show."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from doctest import ELLIPSIS, OutputChecker
from pathlib import Path

import pytest

from support.slowness import longer

# What the guest of the first two examples does.
RAW = (
    "".join(f"out  port 0x3f8: {bytes([byte])!r}\n" for byte in b"Hello from a guest\n")
    + """\
in   port 0x10: we answer b'7'
mmio address 0x100000: write b'8'
hlt  the guest is done
"""
)

# "..." stands for anything, as in doctests: addresses that the compiler chose, times.
OUTPUT = {
    "01_raw_ioctls": RAW,
    "02_exits_by_hand": RAW
    + """\
Hello from long mode!
The guest ended with code 0.
VM exits: 22 IoIn, 23 IoOut
""",
    "03_a_device": """\
ID  = 0x4d564b50
SUM = 42
mmio.elf: the guest exited with code 0, exits: {'IoIn': 26, 'MmioRead': 2, 'IoOut': 27, 'MmioWrite': 2}
two dice: the guest exited with code 8
""",  # noqa: E501
    "04_memory_and_registers": """\
rip is at _start; argc is in rdi: 3
argv: ['args.elf', 'one', 'two']
cs is 0010 code64 base=0 limit=ffffffff dpl=0 readable accessed
argc = 2
argv[0] = args.elf
argv[1] = ONE

the guest said 'through the old: 43\\n'
0x400000000000 by 4-level paging
  PML4E[128] at 0x... = 0x... -> 0x... table writable supervisor accessed
  PDPTE[0] at 0x... = 0x... -> 0x... table writable supervisor accessed
  PDE[0] at 0x... = 0x... -> 0x... table writable supervisor accessed
  PTE[0] at 0x... = 0x... -> 0x... page writable supervisor accessed dirty
  = 0x...
43 43 43
0x400000001000 by 4-level paging
  PML4E[128] at 0x... = 0x... -> 0x... table writable supervisor accessed
  PDPTE[0] at 0x... = 0x... -> 0x... table writable supervisor accessed
  PDE[0] at 0x... = 0x... -> 0x... table writable supervisor accessed
  PTE[1] at 0x... = 0x0 not present
  #PF(0x2 [W]): 0x400000001000 is not mapped: PTE[1] at 0x... (0x0) is not present
""",
    "05_two_machines": """\
talker:   the guest exited with code 2
listener: the guest exited with code 0
Type, and end with a line that is just q.
argc = 3
argv[0] = args.elf
argv[1] = knock
argv[2] = knock
q
Bye.
""",
    "06_asyncio": """\
guest: Type, and end with a line that is just q.
guest: one
guest: two
done by itself: False
stopped by the host
""",
    "07_pytest": """\
........                                                                 [100%]
8 passed in ...s
""",
}


RIG = "examples/07_pytest.py"
DEADLINE = longer(50.0)


def run(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, path], capture_output=True, text=True, timeout=DEADLINE, check=False
    )


def test_every_example_is_checked(root: Path) -> None:
    assert {path.stem for path in (root / "examples").glob("*.py")} == OUTPUT.keys()


@pytest.mark.kvm
@pytest.mark.parametrize("name", OUTPUT)
def test_output(name: str, root: Path, guests: Path) -> None:
    ran = run(root / "examples" / f"{name}.py")
    assert (ran.stderr, ran.returncode) == ("", 0)
    if not OutputChecker().check_output(OUTPUT[name], ran.stdout, ELLIPSIS):
        assert ran.stdout == OUTPUT[name]


@pytest.mark.parametrize("name", [name for name in OUTPUT if name != "01_raw_ioctls"])
def test_without_guests_it_says_how_to_build_them(name: str, root: Path, tmp_path: Path) -> None:
    example = tmp_path / "examples" / f"{name}.py"
    example.parent.mkdir()
    shutil.copy(root / "examples" / example.name, example)
    ran = run(example)
    assert ran.stderr == "Build the guests first: make guests\n"
    assert ran.returncode == 1


def test_without_pytest_the_rig_says_so(root: Path) -> None:
    # None in sys.modules is a module that cannot be found.
    program = (
        "import sys, runpy; sys.modules['pytest'] = None; "
        f"runpy.run_path({RIG!r}, None, '__main__')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert ran.stderr == "This example needs pytest: pip install pytest\n"
    assert ran.returncode == 1


@pytest.mark.kvm
@pytest.mark.parametrize("by_pytest", [False, True], ids=["as a program", "by pytest"])
def test_the_rig_bears_plugins_that_warn(
    root: Path, guests: Path, tmp_path: Path, by_pytest: bool
) -> None:
    """pytest-asyncio warns so, and the tests of pykvm make every warning an error."""
    (tmp_path / "warns.py").write_text(
        "import warnings, pytest\n"
        "def pytest_configure(config):\n"
        "    warnings.warn(pytest.PytestDeprecationWarning('The configuration option "
        '"asyncio_default_fixture_loop_scope" is unset.\\\\nSet it.\'))\n'
    )
    command = [sys.executable, *(["-m", "pytest", "-q"] if by_pytest else []), RIG]
    ran = subprocess.run(
        command,
        cwd=root,
        env={**os.environ, "PYTEST_PLUGINS": "warns", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert "8 passed" in ran.stdout, ran.stdout + ran.stderr
    assert ran.returncode == 0
