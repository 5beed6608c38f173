"""What is said on stderr, and the exit status, once a run is over."""

from __future__ import annotations

import sys
from contextlib import suppress

from pykvm.cli.output import TimeLimit, Writer
from pykvm.cli.status import Status
from pykvm.errors import HostError
from pykvm.printable import printable, printable_lines
from pykvm.result import Outcome
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.result import Result

__all__ = ["ending_line", "exit_status", "say", "show", "stderr_has_stalled", "write_stderr"]

_STDERR = 2

_STATUS = {
    Outcome.HALTED: Status.DONE,
    Outcome.RESET: Status.DONE,
    Outcome.TIMEOUT: Status.TIMED_OUT,
    Outcome.CRASHED: Status.CRASHED,
    Outcome.UNTIL: Status.DONE,
    # Only code stops a run, says what must not come or sets breakpoints; `run` does none of it.
    Outcome.STOPPED: Status.FAILED,
    Outcome.DEBUG: Status.FAILED,
    Outcome.FAILED: Status.FAILED,
}


class _Stderr:
    """What is known of stderr's reader."""

    #: Whether it has stopped reading: what comes next waits for it no more.
    stalled = False


def stderr_has_stalled() -> None:
    """The reader of stderr was waited for in vain, be it on stdout."""
    _Stderr.stalled = True


def write_stderr(text: str, *, until: float | None = None) -> None:
    """Print `text` on stderr, as it is.

    It waits for a reader; from `until` on, on time.monotonic's clock, only while it makes progress.
    """
    # There is no reader: the exit status still says it.
    with suppress(OSError):
        limit = TimeLimit()
        limit.at = until
        writer = Writer(_STDERR, limit=limit, lingers=not _Stderr.stalled)
        try:
            _Stderr.stalled = writer.write(text.encode(errors="replace")) > 0
        finally:
            writer.close()


def show(text: str) -> None:
    """Print `text` on stdout.  Raises BrokenPipeError if its reader has gone, or HostError."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise HostError(f"cannot write to stdout: {error.strerror}") from error


def say(message: str, hint: str = "", *, until: float | None = None) -> None:
    """Print one message on stderr, and below it, indented, what to do about it; see `write_stderr`.

    Both may hold what a guest or a file says.
    """
    lines = [f"pykvm: {printable(message)}"]
    lines += (f"       {line}" for line in printable_lines(hint).split("\n") if hint)
    write_stderr("".join(f"{line}\n" for line in lines), until=until)


def exit_status(result: Result, style: str = "guest") -> tuple[int, str]:
    """The exit status for a result, and a remark where it is not the guest's own code.

    `style` is "guest" (the code itself) or "qemu" (what QEMU's isa-debug-exit makes of it).  A run
    that waited for a text in vain never has status 0.

    >>> from pykvm.result import Ending, Outcome, Result
    >>> ending = Ending(Outcome.EXITED, "the guest exited with code 3", exit_code=3)
    >>> result = Result(ending, exits={}, seconds=0.0, guest_seconds=0.0, outside_seconds=0.0)
    >>> exit_status(result), exit_status(result, "qemu")
    ((3, ''), (7, 'exit status 7'))
    """
    status, note = _status(result, style)
    if result.awaited and status == Status.DONE and result.outcome is not Outcome.UNTIL:
        return Status.UNSAID, f"exit status {Status.UNSAID}: it did not say what --until waits for"
    return status, note


def _status(result: Result, style: str) -> tuple[int, str]:
    code = result.exit_code
    if result.outcome is not Outcome.EXITED or code is None:
        return _STATUS[result.outcome], ""
    if style == "qemu":
        # QEMU passes this to exit(3), of which the parent sees the low eight bits.
        status = ((code << 1) | 1) & Status.LARGEST
        return status, f"exit status {status}"
    if code > Status.LARGEST:
        return Status.LARGEST, f"exit status {Status.LARGEST}, the largest there is"
    return code, ""


def ending_line(sentence: str, result: Result, note: str = "") -> str:
    """The line that says how a run ended.

    >>> from pykvm.result import Ending, Outcome, Result
    >>> ending = Ending(Outcome.EXITED, "the guest exited with code 0", exit_code=0)
    >>> exits = {"IoOut": 24, "Hlt": 1}
    >>> result = Result(ending, exits=exits, seconds=0.5, guest_seconds=0.4, outside_seconds=0.1)
    >>> ending_line(ending.sentence, result)
    'the guest exited with code 0 (0.500 s, 25 VM exits)'
    """
    count = sum(result.exits.values())
    exits = "1 VM exit" if count == 1 else f"{count} VM exits"
    figures = [f"{result.seconds:.3f} s", exits, *filter(None, [note])]
    return f"{sentence} ({', '.join(figures)})"
