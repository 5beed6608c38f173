"""The command line: `python -m pykvm guest.elf`, `pykvm step guest.elf`, `pykvm info`.

Only what a command needs is imported, and only when it runs: starting up fast is a feature.
"""

from __future__ import annotations

import os
import sys
import time
from importlib import import_module

from pykvm.cli.options import parse, spell
from pykvm.cli.status import Status, UsageError
from pykvm.errors import ConfigError, LoadError, PykvmError
from pykvm.typed import TYPE_CHECKING
from pykvm.values.spelling import spelled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.cli.options import Options

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (by default the program's own) and return its exit status.

    Errors are told on stderr, without a traceback unless the environment has PYKVM_TRACEBACK=1.
    """
    with spelled(spell):
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    until: float | None = None
    try:
        options = parse(sys.argv[1:] if argv is None else argv)
        if options.timeout is not None:
            until = time.monotonic() + options.timeout
        return _command(options)
    except UsageError as error:
        return _complain(Status.WRONG_USE, f"{error} ({error.see})")
    except KeyboardInterrupt:
        return _complain(Status.INTERRUPTED, "stopped by Ctrl-C", until=0.0)
    except BrokenPipeError:
        return _output_closed()
    except Exception as error:  # noqa: BLE001 - the last resort, for people who see no traceback
        return _complain(*_explain(error), error, until=until)


def _explain(error: Exception) -> tuple[int, str, str]:
    """The exit status for an error, what it is, and what to do about it."""
    if isinstance(error, (ConfigError, LoadError)):
        return Status.WRONG_USE, error.message, error.hint
    if isinstance(error, PykvmError):
        return Status.FAILED, error.message, error.hint
    if isinstance(error, MemoryError):
        return Status.FAILED, "this host is out of memory", ""
    return (
        Status.FAILED,
        f"an error inside pykvm: {type(error).__name__}: {error}",
        "PYKVM_TRACEBACK=1 in the environment shows where",
    )


def _command(options: Options) -> int:
    if options.help:
        from pykvm.cli.help import help_text

        return _show(help_text())
    if options.version:
        import pykvm

        return _show(f"pykvm {pykvm.__version__}\n")
    command = import_module(f"pykvm.cli.{options.command}")
    status: int = command.main(options)
    return status


def _show(text: str) -> int:
    from pykvm.cli.report import show

    show(text)
    return 0


def _complain(
    status: int,
    message: str,
    hint: str = "",
    error: Exception | None = None,
    *,
    until: float | None = None,
) -> int:
    from pykvm.cli.report import say

    if error is not None and os.environ.get("PYKVM_TRACEBACK", "0") not in ("", "0"):
        import traceback

        traceback.print_exception(error)
    say(message, hint, until=until)
    return status


def _output_closed() -> int:
    """The reader of our output has gone, as `head` does: end as a program that SIGPIPE ends."""
    # Python flushes stdout once more at exit.
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)
    return Status.OUTPUT_CLOSED
