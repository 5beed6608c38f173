"""Page tables of every x86 paging mode: geometry and entry bits, a builder, a walker (SDM 3A 4)."""

from __future__ import annotations

from pykvm.typed import TYPE_CHECKING
from pykvm.x86.paging.modes import PAGE_SIZE, PTE, LevelFormat, PagingMode
from pykvm.x86.paging.tables import IdentityTables, PageTables, identity

if TYPE_CHECKING:
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


def __getattr__(name: str) -> object:
    # Every machine builds tables as it starts; few ever walk them.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pykvm.x86.paging import walker

    return getattr(walker, name)
