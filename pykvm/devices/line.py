"""The wire from a device to an interrupt controller."""

from __future__ import annotations

from typing import Protocol

__all__ = ["InterruptLine", "Unconnected"]


class InterruptLine(Protocol):
    """A level-driven interrupt input.  It starts low; a device sets it only when it changes."""

    def set(self, level: bool, /) -> None:
        """Drive the line high or low."""


class Unconnected:
    """A wire that ends nowhere."""

    def set(self, level: bool, /) -> None:
        """Do nothing."""
