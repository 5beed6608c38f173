r"""What a Linux kernel says on its console when it dies.

>>> watch = KernelWatch()
>>> watch.output(b"[    1.2] Kernel panic - not syncing: No working init found.\n")
>>> watch.death().cause
'No working init found.'

The messages are those of kernel/panic.c and arch/x86/kernel/dumpstack.c; Documentation/admin-guide/
bug-hunting.rst shows what an oops looks like.
"""

from __future__ import annotations

from collections import deque

from pykvm.bus import GuestPanic
from pykvm.values.state import State

__all__ = ["KernelWatch", "KernelWatchState"]

# So many lines are kept for the report, of so many bytes each.
LINES = 24
LONGEST_LINE = 1024

# What each line that says something has in it.  To load `re` and to compile what follows takes
# longer than a machine from a file may.
_SIGNS = "panic", "BUG", "[#", "RIP: ", "[ end "

# printk's time stamp and, with earlyprintk and sysrq, its level.
_PREFIX = r"^(?:<\d>)?(?:\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? ?)?"
_PANIC = r"Kernel panic - not syncing: ?(.*)"
_PANIC_END = r"---\[ end Kernel panic"
_COMPLAINT = r"BUG: .*|kernel BUG at .*"
# The error code and how many times the kernel has died: "Oops: 0002 [#1] SMP".
_OOPS = r"(.*): [0-9a-f]{4} \[#\d+\]"
_PLACE = r"RIP: [0-9a-f]{4}:([^ ]+)"
_OOPS_END = r"---\[ end trace"


class KernelWatchState(State):
    """What a `KernelWatch` has heard so far."""

    lines: tuple[str, ...]
    partial: str
    panic: str | None
    oops: str | None
    complaint: str
    place: str


class KernelWatch:
    """Listens to a kernel's console, given as the pieces in which it is printed.

    `output` raises GuestPanic at the last line of an oops or of a panic.  A kernel that resets
    itself in the middle of a panic, or prints no more, does not get there: `death` then says what
    it printed.
    """

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=LINES)
        self._partial = ""
        self._panic: str | None = None
        self._oops: str | None = None
        self._complaint = ""
        self._place = ""

    @property
    def console(self) -> str:
        """The last lines that the kernel printed."""
        return "\n".join((*self._lines, *filter(None, [self._partial])))

    def state(self) -> KernelWatchState:
        """What it has heard so far."""
        heard = self._panic, self._oops, self._complaint, self._place
        return KernelWatchState(tuple(self._lines), self._partial, *heard)

    def restore(self, state: KernelWatchState) -> None:
        """Have heard that and nothing else."""
        self._lines = deque(state.lines, maxlen=LINES)
        self._partial = state.partial
        self._panic, self._oops = state.panic, state.oops
        self._complaint, self._place = state.complaint, state.place

    def output(self, data: bytes) -> None:
        """Listen to `data`.  Raises GuestPanic."""
        first, *others = (self._partial + data.decode("utf-8", "replace")).split("\n")
        self._partial = first[:LONGEST_LINE]
        for other in others:
            line, self._partial = self._partial, other[:LONGEST_LINE]
            self._line(line.rstrip("\r"))

    def death(self) -> GuestPanic | None:
        """What the kernel has died of, as far as it came to say so; asked once, it is forgotten."""
        if self._panic is not None:
            death = self._report("kernel panic", self._panic)
        elif self._oops is not None:
            death = self._report("kernel oops", self._oops)
        else:
            return None
        self._panic = self._oops = None
        self._complaint = self._place = ""
        return death

    def _report(self, kind: str, cause: str) -> GuestPanic:
        place = f", at {self._place}" if self._place else ""
        return GuestPanic(f"{cause or 'it gives no reason'}{place}", kind, self.console)

    def _line(self, line: str) -> None:
        self._lines.append(line)
        if not any(sign in line for sign in _SIGNS):
            return
        import re

        text = re.sub(_PREFIX, "", line, count=1)
        if found := re.match(_PANIC, text):
            self._panic = found[1]
        elif found := re.match(_OOPS, text):
            self._oops = self._complaint or found[1]
        elif found := re.match(_COMPLAINT, text):
            self._complaint = found[0]
        elif (found := re.match(_PLACE, text)) and self._oops is not None:
            self._place = self._place or found[1]
        elif re.match(_PANIC_END, text) or (self._oops is not None and re.match(_OOPS_END, text)):
            death = self.death()
            if death is not None:
                raise death
