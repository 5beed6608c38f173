"""What a PC's firmware leaves in memory to tell a kernel about the machine."""

from __future__ import annotations

from pykvm.tables.hardware import Hardware

__all__ = ["Hardware"]
