"""The hot part of pykvm in C: see core.h for what each function does.

`lib` has the functions, `ffi` the types.  Only `pykvm.vcpu` and `pykvm.memory` come here.
"""

from __future__ import annotations

from pykvm._core._native import ffi, lib

__all__ = ["ffi", "lib"]
