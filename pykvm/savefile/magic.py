"""How a file of sections begins, and whether one does."""

from __future__ import annotations

import os
import stat

from pykvm.descriptor import Descriptor
from pykvm.errors import LoadError

__all__ = ["MAGIC", "is_saved_file", "open_regular"]

#: As PNG's: no text file begins so, and what changes the ends of lines spoils it.
MAGIC = b"\x89pykvm saved\r\n\x1a\n"


def is_saved_file(path: str | os.PathLike[str]) -> bool:
    """Whether the file at `path` begins as one does; False for what cannot be read."""
    try:
        with open_regular(os.fsdecode(path)) as file:
            return os.pread(file.fileno(), len(MAGIC), 0) == MAGIC
    except (OSError, ValueError, LoadError):
        return False


def open_regular(path: str) -> Descriptor:
    """Open a regular file for reading.  Raises LoadError for another kind, and OSError."""
    # O_NONBLOCK: opening a FIFO by mistake would wait for its other end.
    file = Descriptor.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise LoadError(f"{path}: is no regular file")
    return file
