"""`--trace-only`: which VM exits a trace shows.

>>> only = Only("ioout,-com1", devices=["com1", "post"])
>>> from pykvm.exits import IoIn, IoOut
>>> only.shows(IoOut(port=0x80, size=1, data=b"A"), "post")
True
>>> (
...     only.shows(IoOut(port=0x3F8, size=1, data=b"A"), "com1"),
...     only.shows(IoIn(port=0x80, size=1), ""),
... )
(False, False)
"""

from __future__ import annotations

from pykvm.cli.describe import UNCLAIMED, target
from pykvm.errors import ConfigError
from pykvm.exits import EXITS
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pykvm.exits import Exit

    _Matches = Callable[[Exit, str], bool]

__all__ = ["Only"]


class Only:
    """Terms with commas between them; one with "-" before it leaves out what it matches.

    A term is a device's name, a kind of exit as in `pykvm.exits`, or a port or an address, or a
    range of them as 0x3f8-0x3ff.  Without a term that takes in, everything is shown.
    """

    def __init__(self, text: str, *, devices: Iterable[str]) -> None:
        """Raises ConfigError for a term that is none of these."""
        self._devices = {UNCLAIMED, *devices}
        self._kinds = {kind.__name__.lower(): kind for kind in EXITS}
        terms = [term.strip() for term in text.split(",") if term.strip()]
        self._in = [self._matcher(term) for term in terms if not term.startswith("-")]
        self._out = [self._matcher(term[1:]) for term in terms if term.startswith("-")]

    def shows(self, exit: Exit, device: str) -> bool:
        """Whether an exit, which is for `device`, is one to show."""
        if any(matches(exit, device) for matches in self._out):
            return False
        return not self._in or any(matches(exit, device) for matches in self._in)

    def _matcher(self, term: str) -> _Matches:
        if term in self._devices:
            return lambda exit, device: device == term
        kind = self._kinds.get(term.lower())
        if kind is not None:
            return lambda exit, device: isinstance(exit, kind)
        places = _range(term)
        if places is None:
            raise self._unknown(term)
        return lambda exit, device: (where := target(exit)) is not None and where[1] in places

    def _unknown(self, term: str) -> ConfigError:
        from difflib import get_close_matches

        names = [*self._devices, *(kind.__name__ for kind in EXITS)]
        near = get_close_matches(term, names, n=2, cutoff=0.5)
        return ConfigError(
            f"--trace-only: {term!r} is no device, kind of exit, port or address",
            hint=f"did you mean {' or '.join(near)}?"
            if near
            else f"the devices are {', '.join(sorted(self._devices))}",
        )


def _range(term: str) -> range | None:
    first, dash, last = term.partition("-")
    try:
        start = int(first, 0)
        return range(start, (int(last, 0) if dash else start) + 1)
    except ValueError:
        return None
