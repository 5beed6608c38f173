"""Functions that want to hear of an event: the one way in which pykvm calls back.

What has an event `x` has a method `on_x(callback)`, which subscribes and returns a function that
ends it.  What a callback raises comes out where the event is caused: mostly a vCPU's run.
"""

from __future__ import annotations

from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import callback as check_callback

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Subscribers"]


class Subscribers:
    """The subscribers of one event, called in the order in which they came.

    Any thread may subscribe, end a subscription (more than once, too) and call, at any time.

    >>> heard = Subscribers()
    >>> end = heard.add(print)
    >>> heard("hello", 1)
    hello 1
    >>> end()
    >>> bool(heard)
    False
    """

    __slots__ = ("_callbacks",)

    def __init__(self) -> None:
        # By a key of each subscription: one function may subscribe twice.
        self._callbacks: dict[object, Callable[..., object]] = {}

    def add(self, callback: Callable[..., object]) -> Callable[[], None]:
        """Subscribe; returns what ends it.  Raises ConfigError for what cannot be called."""
        key = object()
        self._callbacks[key] = check_callback("callback", callback)

        def end() -> None:
            self._callbacks.pop(key, None)

        return end

    def clear(self) -> None:
        """End every subscription."""
        self._callbacks.clear()

    def __call__(self, *arguments: object) -> None:
        """Call each of them.  What one raises comes out, and those after it are not called."""
        for callback in tuple(self._callbacks.values()):
            callback(*arguments)

    def __bool__(self) -> bool:
        return bool(self._callbacks)
