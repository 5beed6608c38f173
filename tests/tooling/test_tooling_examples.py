"""Hypothesis tries new examples in each run, and says how to try a failing one again."""

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


def test_a_run_that_fails_tells_its_seed(root: Path, tmp_path: Path) -> None:
    """And takes one that it is given."""
    test = tmp_path / "test_fails.py"
    test.write_text(FAILS)

    def run(*options: str) -> str:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
        conftest = f"--confcutdir={root}"
        found = subprocess.run(
            [*command, conftest, "-p", "conftest", str(test)],
            cwd=root / "tests",
            env={**os.environ, "PYTHONPATH": str(root / "tests")},
            capture_output=True,
            text=True,
            check=False,
        )
        (line,) = (line for line in found.stdout.splitlines() if "--hypothesis-seed" in line)
        return line

    assert re.match(r"--hypothesis-seed=\d+ ", run())
    assert run("--hypothesis-seed=7").startswith("--hypothesis-seed=7 ")
