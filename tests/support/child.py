"""Programs in a process of their own."""

from __future__ import annotations

import subprocess
import sys

__all__ = ["lines_of"]


def lines_of(program: str) -> list[str]:
    """What a Python program prints, which ends well and says nothing on stderr."""
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (ran.stderr, ran.returncode) == ("", 0)
    return ran.stdout.splitlines()
