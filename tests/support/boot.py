"""Guest files, loaded as a test asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pykvm import boot

if TYPE_CHECKING:
    import os

    from pykvm.boot import Image

__all__ = ["load"]


def load(
    file: str | os.PathLike[str] | bytes | bytearray, name: str | None = None, **request: Any
) -> Image:
    """Read a guest file; `request` has the fields of a `boot.Request`."""
    return boot.load(file, boot.Request(**request), name=name)
