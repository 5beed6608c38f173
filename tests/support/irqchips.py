"""The kinds of interrupt controllers that a machine may have, beside none."""

from __future__ import annotations

__all__ = ["IRQCHIPS"]

IRQCHIPS = ("user", "split", "kernel")
