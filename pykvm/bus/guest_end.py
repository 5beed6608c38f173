"""How a guest ends by itself: what a device raises, and `Machine.run` turns into its Result."""

from __future__ import annotations

from pykvm.values.checks import integer

__all__ = ["GuestEnd", "GuestExit", "GuestPanic", "GuestPowerOff", "GuestReset"]


class GuestEnd(Exception):
    """The guest has ended its own run, in one of four ways.  A device raises it; no error."""


class GuestExit(GuestEnd):
    """The guest asked for its run to end with `code`.  A device raises it; it is not an error."""

    def __init__(self, code: int) -> None:
        code = integer("the code of a GuestExit", code)
        super().__init__(f"the guest ended with code {code}")
        self.code = code


class GuestReset(GuestEnd):
    """The guest reset the machine; `how` says by what, as a person would put it.  Not an error."""

    def __init__(self, how: str) -> None:
        super().__init__(f"the guest reset the machine ({how})")
        self.how = how


class GuestPowerOff(GuestEnd):
    """The guest switched the machine off; `how` says by what.  A device raises it; not an error."""

    def __init__(self, how: str) -> None:
        super().__init__(f"the guest powered itself off ({how})")
        self.how = how


class GuestPanic(GuestEnd):
    """The guest told of its own death: `cause` is what it said, in a sentence.

    A device raises it, and the run ends as a crash.  `kind` is as in GuestError, and `console` the
    last lines that the guest printed.
    """

    def __init__(self, cause: str, kind: str = "guest panic", console: str = "") -> None:
        super().__init__(f"{kind}: {cause}")
        self.cause = cause
        self.kind = kind
        self.console = console
