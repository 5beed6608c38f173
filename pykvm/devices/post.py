"""The POST port 0x80, where firmware says how far it came."""

from __future__ import annotations

from collections import deque

from pykvm.bus.device import NamedDevice
from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import integer
from pykvm.values.state import State, expect

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PostPort", "PostPortState"]


class PostPortState(State):
    """The last codes, oldest first."""

    history: bytes


class PostPort(NamedDevice):
    """Remembers the codes written to it; Linux also writes here to pass a microsecond.

    >>> port = PostPort()
    >>> port.posted([(0, 1, 0x11), (0, 1, 0x2A)])
    >>> port.code, port.history
    (42, (17, 42))
    """

    def __init__(self, name: str = "post", *, limit: int = 256) -> None:
        self.name = name
        self._codes: deque[int] = deque(maxlen=integer("limit", limit, 0))

    @property
    def code(self) -> int | None:
        """The last code written, None before the first."""
        return self._codes[-1] if self._codes else None

    @property
    def history(self) -> tuple[int, ...]:
        """The last `limit` codes, oldest first."""
        return tuple(self._codes)

    def state(self) -> PostPortState:
        """See `pykvm.values.state.Stateful`."""
        return PostPortState(bytes(self._codes))

    def restore(self, state: PostPortState) -> None:
        """See `pykvm.values.state.Stateful`."""
        expect(state, PostPortState)
        self._codes.clear()
        self._codes.extend(state.history)

    def posted(self, writes: Sequence[tuple[int, int, int]]) -> None:
        """Remember the low byte of each write."""
        self._codes.extend([value & 0xFF for _, _, value in writes])
