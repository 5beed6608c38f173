"""What a guest says on the console of a process, line by line, and when."""

from __future__ import annotations

import os
import re
import select
import subprocess
from collections import Counter
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: What QEMU says, and then stands still, where KVM refuses an instruction.
REFUSED = "KVM internal error"

_CONTROL = re.compile(r"\x1b(?:\[[?\d;]*[A-Za-z]|c)")
_STAMP = re.compile(r"^\[ *\d+\.\d+\] ")
_NUMBER = re.compile(r"\b(?:0x)?[0-9a-f]*\d[0-9a-f]*", re.IGNORECASE)


class Line(NamedTuple):
    """A line, and how many seconds after the command it was complete."""

    seconds: float
    text: str

    @property
    def message(self) -> str:
        """What it says, without the kernel's time stamp.

        >>> Line(1.5, "[    0.046783] tsc: Detected 2445.406 MHz processor").message
        'tsc: Detected 2445.406 MHz processor'
        """
        return _STAMP.sub("", self.text)

    @property
    def gist(self) -> str:
        """What it says in any machine: the message with its numbers blotted out.

        >>> Line(1.5, "[    0.165628] RAMDISK: [mem 0x03d72000-0x03ffffff]").gist
        'RAMDISK: [mem #-#]'
        """
        return _NUMBER.sub("#", self.message)


class Told(NamedTuple):
    """The lines up to the one that was waited for; if it did not come, `trouble` says why."""

    lines: tuple[Line, ...]
    trouble: str = ""

    def first(self, text: str) -> Line | None:
        """The first line with `text` in it."""
        return next((line for line in self.lines if text in line.text), None)


def watch(
    command: Sequence[str], last: str, deadline: float, environment: Mapping[str, str] | None = None
) -> Told:
    """Start a command, listen until a line has `last` in it, and kill it.

    What it says on stderr counts as well.  `deadline` is in seconds.
    """
    begin = monotonic()
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
    ) as process:
        try:
            return _listen(process, last, begin, deadline)
        finally:
            process.kill()


def _listen(process: subprocess.Popen[bytes], last: str, begin: float, deadline: float) -> Told:
    assert process.stdout is not None
    console = process.stdout.fileno()
    lines: list[Line] = []
    rest = b""
    while True:
        left = begin + deadline - monotonic()
        if left <= 0 or not select.select([console], [], [], left)[0]:
            return Told(tuple(lines), f"it was not done within {deadline:g} s")
        data = os.read(console, 1 << 16)
        now = monotonic() - begin
        if not data:
            return Told(tuple(lines), f"it ended with status {process.wait()}")
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            text = _CONTROL.sub("", line.decode(errors="replace")).rstrip()
            if REFUSED in text:
                return Told(tuple(lines), text)
            lines.append(Line(now, text))
            if last in text:
                return Told(tuple(lines))


def furthest(ours: Told, theirs: Told) -> tuple[Line, Line] | None:
    """The last of their lines that came here too, in both; None if there is none.

    Lines are the same if their gists are.  One that comes twice on a side does not show how far
    that side is.

    >>> def told(*texts):
    ...     return Told(tuple(Line(float(at), text) for at, text in enumerate(texts)))
    >>> furthest(told("a", "a", "b 1", "c", "e"), told("a", "b 2", "d"))
    (Line(seconds=2.0, text='b 1'), Line(seconds=1.0, text='b 2'))
    """
    here, there = _by_gist(ours), _by_gist(theirs)
    common = [(here[gist], line) for gist, line in there.items() if gist in here]
    return common[-1] if common else None


def _by_gist(told: Told) -> dict[str, Line]:
    """The lines of which there is but one."""
    counts = Counter(line.gist for line in told.lines)
    return {line.gist: line for line in told.lines if counts[line.gist] == 1}
