"""Blocking calls in asyncio programs."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

__all__ = ["in_thread"]

#: How often a call that is to end is told so, until it has: it may not have begun yet.
_AGAIN = 0.01


async def in_thread(action: Callable[[], T], stop: Callable[[], object]) -> T:
    """Call ``action()`` in a thread of its own, and return what it returns.

    asyncio's own threads are few, and a guest may run for ever.  Cancelled, this calls ``stop()``
    until the action has ended: none is left running.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def work() -> None:
        try:
            result = action()
        except BaseException as error:  # noqa: BLE001  it is raised where this is awaited
            loop.call_soon_threadsafe(done.set_exception, error)
        else:
            loop.call_soon_threadsafe(done.set_result, result)

    thread = threading.Thread(target=work, name="pykvm-asyncio")
    thread.start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        while not done.done():
            stop()
            await asyncio.wait({done}, timeout=_AGAIN)
        with suppress(BaseException):
            done.result()
        raise
    finally:
        if done.done():
            thread.join()  # it has nothing left to do
