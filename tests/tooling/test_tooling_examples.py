"""Hypothesis tries new examples in each run, and says how to try a failing one again."""

import os
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
