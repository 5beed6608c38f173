"""The error of a command line that makes no sense."""

from __future__ import annotations

__all__ = ["UsageError"]


class UsageError(Exception):
    """The command line makes no sense; the message is one line, and `see` says where to look."""

    def __init__(self, message: str, *, see: str = "pykvm --help shows what there is") -> None:
        super().__init__(message)
        self.see = see
