"""Page tables of every x86 paging mode: geometry and entry bits, a builder, a walker (SDM 3A 4)."""

from __future__ import annotations

from pykvm.x86.paging.modes import PAGE_SIZE, PTE, LevelFormat, PagingMode
from pykvm.x86.paging.tables import IdentityTables, PageTables, identity
from pykvm.x86.paging.walker import Level, Walk, walk

__all__ = [
    "PAGE_SIZE",
    "PTE",
    "IdentityTables",
    "Level",
    "LevelFormat",
    "PageTables",
    "PagingMode",
    "Walk",
    "identity",
    "walk",
]
