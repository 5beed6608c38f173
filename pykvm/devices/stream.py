"""What a guest printed: kept within bounds, and handed to subscribers."""

from __future__ import annotations

from _thread import allocate_lock

from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import integer
from pykvm.values.state import State, expect
from pykvm.values.subscribers import Subscribers

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.values.state import U64

__all__ = ["OUTPUT_LIMIT", "OutputLog", "OutputState"]

OUTPUT_LIMIT = 1 << 20

# So many lines, of so many characters each, are enough to see what a guest was at.
LAST_LINES = 24
LONGEST_LINE = 256


class OutputState(State):
    """What was printed: the end of it that is kept, and how many bytes came before that."""

    output: bytes
    dropped: U64


class OutputLog:
    """The output side of a device that prints: its last `limit` bytes, and subscribers.

    >>> log = OutputLog(limit=8)
    >>> log.emit(b"hello, "), log.emit(b"world")
    (None, None)
    >>> log.text, log.dropped
    ('o, world', 4)
    """

    def __init__(self, *, limit: int = OUTPUT_LIMIT) -> None:
        self._limit = integer("limit", limit, 0)
        self._kept = bytearray()
        self._keeping = allocate_lock()
        self._trimmed = 0
        self._printed = Subscribers()
        # The `at_once` of each subscriber: by what ends its subscription, and alone.
        self._wants: dict[Callable[[], None], bytes | None] = {}
        # The bytes that some subscriber wants at once; None for all of them.
        self._prompt: bytes | None = b""

    def _summary(self) -> str:
        return f"{self.printed} byte{'s' * (self.printed != 1)} printed"

    @property
    def output(self) -> bytes:
        """What the guest printed so far, or the last `limit` bytes of it."""
        return bytes(self._kept[-self._limit :]) if self._limit else b""

    @property
    def text(self) -> str:
        """`output` as text: UTF-8, with U+FFFD for what is not."""
        return self.output.decode(errors="replace")

    @property
    def dropped(self) -> int:
        """How many bytes were printed and are no longer in `output`."""
        return self._trimmed + max(len(self._kept) - self._limit, 0)

    @property
    def printed(self) -> int:
        """How many bytes were printed so far, kept or not."""
        return self._trimmed + len(self._kept)

    def state(self) -> OutputState:
        """See `pykvm.values.state.Stateful`."""
        with self._keeping:
            return OutputState(self.output, self.dropped)

    def restore(self, state: OutputState) -> None:
        """See `pykvm.values.state.Stateful`: what was printed since is forgotten."""
        expect(state, OutputState)
        with self._keeping:
            if self.output != state.output:
                self._kept = bytearray(state.output)
            self._trimmed = state.dropped + len(state.output) - len(self._kept)

    def since(self, position: int) -> tuple[int, bytes]:
        """What is kept of the output from its byte `position` on, and where that begins."""
        with self._keeping:
            first = max(position, self.dropped)
            return first, bytes(self._kept[first - self._trimmed :])

    def last_lines(self, count: int = LAST_LINES) -> str:
        r"""The last lines printed, without blank ones at the end; long ones lose their beginning.

        >>> log = OutputLog()
        >>> log.emit(b"one\r\ntwo\nthree\n")
        >>> log.last_lines(2)
        'two\nthree'
        """
        _, tail = self.since(self.printed - count * LONGEST_LINE)
        lines = tail.decode(errors="replace").replace("\r\n", "\n").rstrip().split("\n")
        return "\n".join(line.rstrip("\r")[-LONGEST_LINE:] for line in lines[-count:])

    def on_output(
        self, callback: Callable[[bytes], object], *, at_once: bytes | None = None
    ) -> Callable[[], None]:
        """Call ``callback(data)`` with everything printed from now on; returns what ends that.

        It is called in the thread of the vCPU that prints.  What it raises comes out of that
        vCPU's run.  A subscriber that need not see each byte at the moment at which the guest
        prints it says so by `at_once`, the bytes that it has to see before the guest goes on
        (``b""`` for none): others come with them, before the guest's next exit that Python sees,
        or within 50 ms.
        """
        end = self._printed.add(callback)
        self._wants[end] = at_once
        self._subscribers_changed()

        def unsubscribe() -> None:
            end()
            self._wants.pop(end, None)
            self._subscribers_changed()

        return unsubscribe

    def _subscribers_changed(self) -> None:
        """Others listen now, or want other bytes at once."""
        wanted = tuple(self._wants.values())
        self._prompt = None if None in wanted else bytes(sorted({*b"".join(filter(None, wanted))}))

    def emit(self, data: bytes) -> None:
        """Keep `data` as printed, and pass it on."""
        with self._keeping:
            self._kept += data
            # Trimming moves what is kept, so it waits until that is worth it.
            if len(self._kept) > 2 * self._limit:
                excess = len(self._kept) - self._limit
                self._trimmed += excess
                del self._kept[:excess]
        self._printed(data)
