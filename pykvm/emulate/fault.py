"""An exception of the processor that an instruction raises, on its way to the guest."""

from __future__ import annotations

__all__ = ["BR", "DB", "GP", "MF", "NM", "NP", "PF", "SS", "UD", "XM", "Fault", "UnsupportedError"]

# Vectors (SDM 3A table 6-1).
DB, BR, UD, NM, NP, SS, GP, PF, MF, XM = 1, 5, 6, 7, 11, 12, 13, 14, 16, 19

_WITH_ERROR_CODE = {8, 10, 11, 12, 13, 14, 17, 21}


class Fault(Exception):
    """What the guest gets instead of the instruction.

    `error` is the error code, None for the vectors that have none; `address` is what CR2 is to say
    (#PF alone).
    """

    def __init__(self, vector: int, error: int = 0, address: int | None = None) -> None:
        super().__init__(f"exception {vector}")
        self.vector = vector
        self.error = error if vector in _WITH_ERROR_CODE else None
        self.address = address


class UnsupportedError(Exception):
    """pykvm does not emulate this instruction, or this case of it: the run ends as without it."""
