"""How much longer everything takes on a host that is known to be slow, such as an emulated one."""

from __future__ import annotations

import os

__all__ = ["SLOWNESS", "longer"]

#: A factor; the environment has it on hosts that build-support/hosts makes.
SLOWNESS = float(os.environ.get("PYKVM_SLOWNESS", "1"))


def longer(seconds: float) -> float:
    """What a time limit is here that elsewhere is `seconds`.

    >>> longer(30.0) >= 30.0
    True
    """
    return seconds * SLOWNESS
