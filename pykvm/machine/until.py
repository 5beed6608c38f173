"""Waiting for what a guest says or does: `until` and `fail` of `Machine.run`.

Text is matched as it is printed, byte by byte, so that the guest stops exactly at the awaited one.
What a match may take of it is bounded, so that a guest that prints without end costs neither memory
nor, for every byte, a search of all that it has ever said.
"""

from __future__ import annotations

from pykvm.errors import ConfigError
from pykvm.result import Ending, Outcome
from pykvm.typed import TYPE_CHECKING, Generic
from pykvm.values.checks import show
from pykvm.values.frozen import NamedTuple
from pykvm.values.spelling import in_python

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Sequence
    from typing import Any, TypeVar

    from pykvm.devices.stream import OutputLog

    #: What `until` and `fail` take, beside lists of such.
    Awaited = str | bytes | re.Pattern[str] | re.Pattern[bytes] | Callable[[Any], object]

    _Machine = TypeVar("_Machine")
else:
    _Machine = None

__all__ = ["BACKLOG", "PATTERN_WINDOW", "Conditions", "Ear"]

#: How long a match of a regular expression may be, in bytes: it is searched for at every byte.
PATTERN_WINDOW = 1024

#: How far back a run looks for what the guest said before it, in bytes.
BACKLOG = 64 << 10

# A regular expression that neither matches a newline nor looks beyond one: no control characters,
# no escapes but \d, \w, \b and punctuation, no [^...], no flags inside.  (Those outside: _flags.)
_ONE_LINE = r"(?:[^\\\[(\x00-\x1f]|\\(?:[dwb]|[^\w\s])|\[(?!\^)|\((?!\?)|\(\?(?:P?[<=:!]|<[=!]))*"
_LONGEST_QUOTE = 60


class Found(NamedTuple):
    """A match: `end` is where in the window it ends."""

    end: int
    said: str
    match: Any = None


class Literal:
    """A text as such."""

    def __init__(self, text: str | bytes | bytearray) -> None:
        self._needle = text.encode() if isinstance(text, str) else bytes(text)
        if not self._needle:
            raise ConfigError("until and fail: an empty text is always there")
        self._said = repr(text)
        #: The bytes at which a match may end; None for any.
        self.ends: bytes | None = self._needle[-1:]
        #: How much of what was said before is needed.
        self.memory = len(self._needle) - 1

    def find(self, window: bytes, new: int, first: int) -> Found | None:
        """Look for the text in `window`, of which the bytes from `new` on were not searched.

        It may begin at `first` or after that.
        """
        at = window.find(self._needle, max(new - self.memory, first))
        return Found(at + len(self._needle), self._said) if at >= 0 else None


class Pattern:
    """A regular expression, of str (the output as UTF-8) or of bytes."""

    memory = PATTERN_WINDOW - 1
    ends: bytes | None = None

    def __init__(self, pattern: Any) -> None:
        import re

        self._pattern = pattern
        source = self.source = pattern.pattern
        self._text = isinstance(source, str)
        if self._pattern.search("" if self._text else b""):
            raise ConfigError(f"until and fail: {pattern!r} matches an empty text: always")
        if not self._text:
            source = source.decode("latin-1")
        flags = pattern.flags & (re.DOTALL | re.VERBOSE | re.LOCALE)
        self._one_line = not flags and re.fullmatch(_ONE_LINE, source) is not None

    def find(self, window: bytes, new: int, first: int) -> Found | None:
        """See `Literal.find`."""
        if self._one_line:
            first = max(window.rfind(b"\n", 0, new) + 1, first)
        if not self._text:
            match = self._pattern.search(window, first)
            return match and Found(match.end(), _quoted(match[0]), match)
        # Bytes that are no UTF-8 are kept apart, one by one: there is a way back to the offset.
        text = window.decode("utf-8", "surrogateescape")
        match = self._pattern.search(text, len(window[:first].decode("utf-8", "surrogateescape")))
        if match is None:
            return None
        before = text[: match.end()].encode("utf-8", "surrogateescape")
        return Found(len(before), _quoted(match[0]), match)


def _quoted(said: str | bytes) -> str:
    quote = repr(said[:_LONGEST_QUOTE])
    return quote if len(said) <= _LONGEST_QUOTE else f"{quote}..."


class Ear:
    """How far a machine's console has been listened to, from one run to the next.

    `position` is after the last match, in bytes that were printed since the machine was made.
    """

    def __init__(self, console: OutputLog) -> None:
        self.console = console
        self.position = 0


class _Alternative(NamedTuple):
    """One alternative: `given` as the caller wrote it, and the outcome that it stands for."""

    given: object
    outcome: Outcome
    text: Literal | Pattern | None
    function: Callable[[Any], object] | None

    @property
    def described(self) -> str:
        if self.function is not None:
            return getattr(self.function, "__name__", "the condition")
        if isinstance(self.text, Pattern):
            return in_python(repr(self.given)) or f"a match of {self.text.source!r}"
        return repr(self.given)

    def ending(self, found: Found | None) -> Ending:
        """The end of a run by it."""
        failed = "the guest failed: " if self.outcome is Outcome.FAILED else ""
        if found is None:
            return Ending(self.outcome, f"{failed}{self.described} holds", matched=self.given)
        who = "it" if failed else "the guest"
        return Ending(
            self.outcome,
            f"{failed}{who} said {found.said}",
            matched=self.given,
            match=found.match,
        )


class Conditions(Generic[_Machine]):
    """What ends a run before the guest does: any of `until`, or as a failure any of `fail`.

    Each is text, bytes, a compiled regular expression, a function of the machine, or a list or
    tuple of these.  `ear` gives the console to listen to, and is asked only for texts.  Between
    entering and leaving, `check` says whether one holds.

    Raises ConfigError for anything else.
    """

    def __init__(
        self, machine: _Machine, ear: Callable[[], Ear], *, until: object, fail: object
    ) -> None:
        self._machine = machine
        goals = _alternatives("until", until, Outcome.UNTIL)
        # At the same byte a failure counts more.
        awaited = [*_alternatives("fail", fail, Outcome.FAILED), *goals]
        self._texts = [(one, one.text) for one in awaited if one.text is not None]
        self._functions = [(one, one.function) for one in awaited if one.function is not None]
        #: What `until` waits for, in words.
        self.awaited = " or ".join(one.described for one in goals)
        self._ear = ear() if self._texts else None
        ends = [text.ends for _, text in self._texts]
        self._at_once = None if None in ends else b"".join(filter(None, ends))
        #: Whether the guest is to be seen at every access, since a function looks at it.
        self.prompt = bool(self._functions)
        self._memory = max((text.memory for _, text in self._texts), default=0)
        # What was searched and may yet be part of a match.  Once its beginning is cut off, a byte
        # more is kept and not searched: \A and ^ hold after the last match only.
        self._tail = b""
        self._cut = False
        self._heard = 0
        #: The end of the run by a text, as soon as it was said; it may have been before the run.
        self.ending: Ending | None = None
        #: Called once there is one.
        self.on_ending: Callable[[], object] = bool
        self._forget: Callable[[], object] = bool

    def check(self) -> Ending | None:
        """How the run ends now, or None."""
        if self.ending is None:
            for one, function in self._functions:
                if function(self._machine):
                    return one.ending(None)
        return self.ending

    def _output(self, data: bytes) -> None:
        # In pieces: what a search may look at is bounded, however much was said at once.
        for start in range(0, len(data), PATTERN_WINDOW):
            if self.ending is None:
                self._search(data[start : start + PATTERN_WINDOW])

    def _search(self, data: bytes) -> None:
        window = self._tail + data
        best: tuple[_Alternative, Found] | None = None
        for one, text in self._texts:
            found = text.find(window, len(self._tail), int(self._cut))
            if found is not None and (best is None or found.end < best[1].end):
                best = one, found
        assert self._ear is not None
        if best is None:
            self._heard += len(data)
            excess = len(window) - self._memory - 1
            self._tail = window[max(excess, 0) :]
            self._cut = self._cut or excess > 0
        else:
            self.ending = best[0].ending(best[1])
            self._ear.position = self._heard - len(self._tail) + best[1].end
            self.on_ending()

    def __enter__(self) -> Conditions[_Machine]:
        ear = self._ear
        if ear is not None:
            console = ear.console
            self._heard, said = console.since(max(ear.position, console.printed - BACKLOG))
            self._cut = self._heard > ear.position
            self._tail = b"\0" * self._cut
            self._output(said)
            self._forget = console.on_output(self._output, at_once=self._at_once)
        return self

    def __exit__(self, *_: object) -> None:
        self._forget()


def _alternatives(name: str, given: object, outcome: Outcome) -> list[_Alternative]:
    if given is None:
        return []
    alternatives: Sequence[object] = given if isinstance(given, (list, tuple)) else (given,)
    if not alternatives:
        raise ConfigError(f"{name}: there is nothing in {show(given)} to wait for")
    return [_alternative(name, one, outcome) for one in alternatives]


def _alternative(name: str, given: Any, outcome: Outcome) -> _Alternative:
    if isinstance(given, (str, bytes, bytearray)):
        return _Alternative(given, outcome, Literal(given), None)
    # Not isinstance: `re` is loaded only if the caller compiled one, and others have their own.
    if callable(getattr(given, "search", None)) and isinstance(
        getattr(given, "pattern", None), (str, bytes)
    ):
        return _Alternative(given, outcome, Pattern(given), None)
    if callable(given):
        return _Alternative(given, outcome, None, given)
    raise ConfigError(
        f"{name} is text, bytes, a compiled regular expression, a function of the machine, "
        f"or a list of these, not {show(given)}"
    )
