"""What a kernel expects around it on a PC beside the standard devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.bus import Placement

__all__ = ["pc_devices"]


def pc_devices() -> list[Placement]:
    """New devices in their places."""
    return []
