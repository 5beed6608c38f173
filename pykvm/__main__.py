"""`python -m pykvm`: see `pykvm.cli`."""

from __future__ import annotations

import gc
import os

from pykvm.cli import main
from pykvm.cli.output import attach_standard_streams
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["run"]

_MANY_OBJECTS = 100_000


def run() -> NoReturn:
    """Run the command line and end the process."""
    # What start-up makes stays to the end: looking for garbage in it is in vain, and slow.
    gc.set_threshold(_MANY_OBJECTS)
    attach_standard_streams()
    status = main()
    # Everything is closed and flushed.  To take the interpreter apart would cost a small guest's
    # run several times over.
    os._exit(status)


if __name__ == "__main__":
    run()
