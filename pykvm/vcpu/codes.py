"""Why an engine comes back from the guest."""

from __future__ import annotations

from pykvm._core import lib

__all__ = [
    "AGAIN",
    "ALARM",
    "ATTENTION",
    "CALLED",
    "DEADLINE",
    "DRAIN",
    "EXIT",
    "KICKED",
    "OVER",
    "REFUSED",
]

# Enum pykvm_code of core.h.
EXIT: int = lib.PYKVM_EXIT
AGAIN: int = lib.PYKVM_AGAIN
KICKED: int = lib.PYKVM_KICKED
DEADLINE: int = lib.PYKVM_DEADLINE
DRAIN: int = lib.PYKVM_DRAIN
ALARM: int = lib.PYKVM_ALARM
ATTENTION: int = lib.PYKVM_ATTENTION
OVER: int = lib.PYKVM_OVER
REFUSED: int = lib.PYKVM_REFUSED
CALLED: int = lib.PYKVM_CALLED
