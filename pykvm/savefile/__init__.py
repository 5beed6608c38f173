"""One file of named sections, as a snapshot is kept in.

==========  ===================================================================================
bytes       what is there
==========  ===================================================================================
0           the header: `Header`, then zeros to the end of the page
4096        the manifest: JSON, what is in the file and where; ``head -c 8000`` shows it
1 MiB on    the sections, each from the start of a page on
==========  ===================================================================================

A section holds bytes, packed by zlib where that helps, or *pages*: as long as a region of guest
memory, so that one mmap is the region.  The file is sparse: pages of zeros are holes in it.  A
bitmap says which pages are there; the others are zeros, or those of the parent's section of the
same name.  A file with such a section is a *difference* to its parent, another file.

The manifest has a hash (BLAKE2b) of each section, and the header one of the manifest.  So that
hash, the *id*, says what is in the whole file.  A difference names its parent by its id.

`write` makes a file or leaves none.  `SavedFile` reads one; a file is a stranger's: whatever is in
it, LoadError is all that comes of it, and neither memory nor time is spent on what it only claims.
"""

from __future__ import annotations

from importlib import import_module

from pykvm.savefile.magic import is_saved_file
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from pykvm.savefile.manifest import Parent
    from pykvm.savefile.reading import SavedFile
    from pykvm.savefile.strict_json import parse_json
    from pykvm.savefile.writing import Bytes, Pages, write

__all__ = [
    "Bytes",
    "Pages",
    "Parent",
    "SavedFile",
    "is_saved_file",
    "parse_json",
    "write",
]

# Every run asks whether its guest is such a file, and few are.
_HOME = {
    "Bytes": "writing",
    "Pages": "writing",
    "Parent": "manifest",
    "SavedFile": "reading",
    "parse_json": "strict_json",
    "write": "writing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pykvm.savefile' has no attribute {name!r}")
    return getattr(import_module(f"pykvm.savefile.{_HOME[name]}"), name)
