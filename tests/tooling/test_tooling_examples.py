"""What conftest.py sets for every run: new examples, how to try one again, and the backstop."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SHOW = """
import conftest
from hypothesis import settings
used = settings()
print(used.derandomize, used.print_blob, used.deadline)
"""


@pytest.mark.parametrize("ci", ["", "true"])
def test_examples_are_new_in_every_run(root: Path, ci: str) -> None:
    """Hypothesis has a profile of its own for CI, which repeats the same examples for ever."""
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    if ci:
        environment["CI"] = ci
    found = subprocess.run(
        [sys.executable, "-c", SHOW],
        cwd=root / "tests",
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == ["False", "True", "None"]


FAILS = "def test_fails(): assert False"
SLOW = "import time\ndef test_slow(): time.sleep(0.5)"


def run_with_conftest(
    root: Path, folder: Path, test: str, *options: str
) -> subprocess.CompletedProcess[str]:
    """Run a test outside the tree by the conftest.py of ours."""
    file = folder / "test_outside.py"
    file.write_text(test)
    plugins = ("no:cacheprovider", "_hypothesis_pytestplugin", "pytest_timeout", "conftest")
    command = [sys.executable, "-m", "pytest", "-q", *(f"-p{name}" for name in plugins)]
    return subprocess.run(
        [*command, *options, f"--confcutdir={root}", str(file)],
        cwd=root / "tests",
        env={
            **os.environ,
            "PYTHONPATH": str(root / "tests"),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_run_that_fails_prints_its_seed(root: Path, tmp_path: Path) -> None:
    """And takes one that it is given."""

    def told(*options: str) -> str:
        lines = run_with_conftest(root, tmp_path, FAILS, *options).stdout.splitlines()
        (line,) = (line for line in lines if "--hypothesis-seed" in line)
        return line

    assert re.match(r"--hypothesis-seed=\d+ ", told())
    assert told("--hypothesis-seed=7").startswith("--hypothesis-seed=7 ")


def test_the_backstop_ends_no_test_before_its_deadline(root: Path, tmp_path: Path) -> None:
    """faulthandler would end the whole session at a fixed time, whatever a test may take."""
    backstop = ("-ofaulthandler_timeout=0.1", "-ofaulthandler_exit_on_timeout=true")
    ran = run_with_conftest(root, tmp_path, SLOW, *backstop, "-otimeout=50")
    assert ran.returncode == 0, ran.stdout + ran.stderr
