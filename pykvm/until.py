"""Waiting for what a guest says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from pykvm.devices.uart import Uart16550

__all__ = ["TextWatch"]


class TextWatch:
    """Whether a text has appeared on a serial port since the watch began.

    Raises ConfigError for an empty one.
    """

    def __init__(self, serial: Uart16550, text: str | bytes) -> None:
        self._needle = text.encode() if isinstance(text, str) else bytes(text)
        if not self._needle:
            raise ConfigError("until: an empty text is always there")
        self._tail = b""
        self._serial = serial
        self.seen = False

    def _output(self, data: bytes) -> None:
        text = self._tail + data
        self.seen = self.seen or self._needle in text
        self._tail = text[-(len(self._needle) - 1) :] if len(self._needle) > 1 else b""

    def __enter__(self) -> TextWatch:
        self._forget = self._serial.on_output(self._output)
        return self

    def __exit__(self, *_: object) -> None:
        self._forget()
