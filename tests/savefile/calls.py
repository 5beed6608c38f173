"""System calls that fail when a test says so."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

__all__ = ["Calls"]

#: What makes a file, in `pykvm.savefile.new_file`.
STEPS = ("pwrite", "ftruncate", "fsync", "link", "rename")


class Calls:
    """Stands for `os` there: counts what is called, and lets one call fail."""

    def __init__(self, fails: int | None = None, number: int = errno.ENOSPC) -> None:
        self.names: list[str] = []
        self._fails = fails
        self._number = number

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        return self._counted(name, real) if name in STEPS else real

    def _counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.names.append(name)
            if len(self.names) - 1 == self._fails:
                raise OSError(self._number, os.strerror(self._number))
            return real(*arguments, **options)

        return call
