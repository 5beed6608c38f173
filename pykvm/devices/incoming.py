"""What was sent to a serial port and is still on its way there.

To a guest that polls, a character comes when it looks: it takes them at its own speed.  One that is
interrupted would never leave its handler if there were always one more, and what it received would
overflow its own buffers before it came to use it.  So the line pauses: after a FIFO's worth of
characters, for as long as the guest took to read them, and until it has seen that there is none
more: its host may have stopped it for longer than that.  At most half of its time goes into
receiving, whatever its speed.
"""

from __future__ import annotations

import struct
from collections import deque

from pykvm.errors import ConfigError
from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import integer
from pykvm.values.state import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pykvm.clock import Timer, TimerState, TimeSource
    from pykvm.values.state import U8, U64

__all__ = ["BURST", "LONGEST_PAUSE", "Incoming", "IncomingState"]

#: The most characters without a pause: what a 16550A's FIFO holds.
BURST = 16
#: In ns: a guest that was stopped for an hour does not wait for an hour.
LONGEST_PAUSE = 50_000_000


class IncomingState(State):
    """The characters that wait, two bytes each, and what `Incoming` knows of burst and pause."""

    queue: bytes
    left: U8
    spent: U64
    reading: bool
    since: U64
    unseen: bool
    overdue: bool
    timer: TimerState | None


class Incoming:
    """A queue of characters, with pauses once it has a clock.

    The owner takes what it has room for, and says `used` whenever it has none of that left.

    >>> line = Incoming()
    >>> line.send(b"hello"), line.take(3), line.take(3), len(line)
    (None, [104, 101, 108], [108, 111], 0)
    """

    def __init__(self) -> None:
        self._queue: deque[int] = deque()
        self._clock: TimeSource | None = None
        self._timer: Timer | None = None
        self._resumed: Callable[[], None] = lambda: None
        # Of this burst: how many may still come, and how long the guest has been reading it.
        self._left = BURST
        self._spent = 0
        # Whether the guest has something to read, and since when that is so.
        self._reading = False
        self._since = 0
        # Of a pause: whether the guest has yet to see it, and whether that alone is awaited.
        self._unseen = False
        self._overdue = False

    def __len__(self) -> int:
        return len(self._queue)

    def state(self) -> IncomingState:
        """See `pykvm.values.state.Stateful`."""
        timer = None if self._timer is None else self._timer.state()
        queue = struct.pack(f"<{len(self._queue)}H", *self._queue) if self._queue else b""
        return IncomingState(
            # By position: a reset to a snapshot asks for the state of every device.
            queue,
            self._left,
            self._spent,
            self._reading,
            self._since,
            self._unseen,
            self._overdue,
            timer,
        )

    def restore(self, state: IncomingState) -> None:
        """See `pykvm.values.state.Stateful`."""
        if len(state.queue) % 2:
            raise ConfigError("characters on their way have two bytes each")
        clock = self._clock
        integer("characters without a pause", state.left, 0, BURST)
        now = clock.now() if clock is not None and clock.made else 0
        integer("when characters came last", state.since, 0, now)
        integer("how long characters were read", state.spent, 0, now)
        if state.timer is not None and clock is not None:
            self._make_timer(clock)
        if self._timer is not None:
            self._timer.restore(state.timer)
        self._queue.clear()
        self._queue.extend(struct.unpack(f"<{len(state.queue) // 2}H", state.queue))
        self._left, self._spent = state.left, state.spent
        self._reading, self._since = state.reading, state.since
        self._unseen, self._overdue = state.unseen, state.overdue

    def _make_timer(self, clock: TimeSource) -> Timer:
        if self._timer is None:
            self._timer = clock.timer(self._over)
        return self._timer

    def send(self, characters: Iterable[int]) -> None:
        """Put `characters` after what waits already."""
        self._queue.extend(characters)

    def pace(self, clock: TimeSource, resumed: Callable[[], None]) -> None:
        """Make pauses from now on, and call ``resumed()`` at the end of each.

        There is none before the clock is made: nothing could interrupt the guest until then.
        """
        self._clock = clock
        self._timer = None
        self._resumed = resumed

    @property
    def pausing(self) -> bool:
        """Whether nothing is to come yet."""
        return self._timer is not None and self._timer.when is not None

    def take(self, room: int) -> list[int]:
        """Up to `room` characters, whether there should be a pause or not."""
        return [self._queue.popleft() for _ in range(min(room, len(self._queue)))]

    def take_burst(self, room: int) -> list[int]:
        """Up to `room` characters, less if a pause is due."""
        if self._clock is None or not self._clock.made:
            return self.take(room)
        if self.pausing or not (self._queue and self._left and room):
            return []
        if not self._reading:
            now = self._clock.now()
            # Only then is it a new burst: a guest that is slow over one, or whose host is, has not
            # left its handler.
            if now - self._since > LONGEST_PAUSE:
                self._left, self._spent = BURST, 0
            self._reading, self._since = True, now
        taken = self.take(min(room, self._left))
        self._left -= len(taken)
        return taken

    def used(self, *, unseen: bool = False) -> None:
        """All that was taken has been read, or thrown away: if that was a burst, pause.

        `unseen` if the guest reads on until it sees that there is no more.  One that does not look
        is waited for no longer than LONGEST_PAUSE.
        """
        if self._clock is None or not self._reading:
            return
        now = self._clock.now()
        self._spent += now - self._since
        self._reading, self._since = False, now
        if self._queue or not self._left:
            # Where nothing waits C may answer, and the guest's look is not seen here.
            self._unseen, self._overdue = unseen and bool(self._queue), False
            self._make_timer(self._clock).arm(now + min(self._spent, LONGEST_PAUSE))
            self._left, self._spent = BURST, 0

    def seen(self) -> None:
        """The guest has seen that there is nothing to read."""
        self._unseen = False
        if self._overdue and self._timer is not None:
            self._overdue = False
            self._timer.cancel()

    def _over(self, when: int) -> None:
        if self._unseen and not self._overdue and self._timer is not None:
            self._overdue = True
            self._timer.arm(when + LONGEST_PAUSE)
            return
        self._overdue = False
        self._resumed()
