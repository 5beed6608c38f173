"""Run the benchmarks from a checkout: ``python benchmarks/run.py --help``."""

from __future__ import annotations

import sys
from pathlib import Path


def start() -> int:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from benchmarks.command import main

    return main()


if __name__ == "__main__":
    sys.exit(start())
