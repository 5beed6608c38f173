"""The exit statuses of the command line, and the error of one that makes no sense."""

from __future__ import annotations

__all__ = ["Status", "UsageError"]


class Status:
    """What pykvm itself ends with; a guest that exits gives its own code."""

    DONE = 0
    WRONG_USE = 2
    #: The guest ended well, but never said what --until waits for.
    UNSAID = 123
    TIMED_OUT = 124
    CRASHED = 125
    FAILED = 126
    #: 128 + the number of the signal: SIGINT, and SIGPIPE when stdout has no reader any more.
    INTERRUPTED = 130
    OUTPUT_CLOSED = 141
    #: The largest that a process can give.
    LARGEST = 255


class UsageError(Exception):
    """The command line makes no sense; the message is one line, and `see` says where to look."""

    def __init__(self, message: str, *, see: str = "pykvm --help shows what there is") -> None:
        super().__init__(message)
        self.see = see
