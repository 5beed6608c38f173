"""The Unicorn library through cffi.

The package `unicorn` brings the library and its constants.  Its own binding is left aside: it takes
0.1 s to import, a call of it some microseconds, and it drops exceptions of callbacks now and then.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cffi import FFI

from pykvm.emulate.fault import UnsupportedError
from pykvm.frozen import NamedTuple

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["Library", "load"]

# <unicorn/unicorn.h> and <unicorn/x86.h> of version 2.1, as far as it is used here.
_DECLARATIONS = """
typedef struct uc_struct uc_engine;
typedef struct uc_context uc_context;
typedef size_t uc_hook;
typedef struct { uint64_t paddr; uint32_t perms; } uc_tlb_entry;
typedef struct { uint16_t selector; uint64_t base; uint32_t limit; uint32_t flags; } uc_x86_mmr;
int uc_open(int arch, int mode, uc_engine **uc);
int uc_close(uc_engine *uc);
int uc_ctl(uc_engine *uc, int control, ...);
int uc_hook_add(uc_engine *uc, uc_hook *hook, int type, void *callback, void *data,
                uint64_t begin, uint64_t end, ...);
int uc_emu_start(uc_engine *uc, uint64_t begin, uint64_t until, uint64_t timeout, size_t count);
int uc_emu_stop(uc_engine *uc);
int uc_mem_map_ptr(uc_engine *uc, uint64_t address, uint64_t size, uint32_t perms, void *host);
int uc_reg_read_batch(uc_engine *uc, int *registers, void **values, int count);
int uc_reg_write_batch(uc_engine *uc, int *registers, void **values, int count);
int uc_reg_write(uc_engine *uc, int register, const void *value);
int uc_context_alloc(uc_engine *uc, uc_context **context);
int uc_context_save(uc_engine *uc, uc_context *context);
int uc_context_restore(uc_engine *uc, uc_context *context);
int uc_context_free(uc_context *context);
const char *uc_strerror(int code);
"""

_LIBRARIES = ("libunicorn.so.2", "libunicorn.so")


class Library(NamedTuple):
    """`ffi` and `lib` are cffi's; `uc` and `x86` the modules of constants."""

    ffi: Any
    lib: Any
    uc: Any
    x86: Any

    def control(self, engine: Any, control: int, *arguments: Any) -> None:
        """uc_ctl that sets something (UC_CTL_WRITE)."""
        code = control | len(arguments) << 26 | self.uc.UC_CTL_IO_WRITE << 30
        self.check(self.lib.uc_ctl(engine, code, *arguments))

    def check(self, code: int) -> None:
        """Raise UnsupportedError with what Unicorn says to an error code."""
        if code:
            reason = self.ffi.string(self.lib.uc_strerror(code)).decode()
            raise UnsupportedError(f"Unicorn: {reason}")


@cache
def load() -> Library | None:
    """The library, None where it is not installed."""
    spec = find_spec("unicorn")
    if spec is None or not spec.submodule_search_locations:
        return None
    package = Path(spec.submodule_search_locations[0])
    ffi = FFI()
    ffi.cdef(_DECLARATIONS)
    for candidate in (*(package / "lib" / name for name in _LIBRARIES), *_LIBRARIES):
        try:
            lib = ffi.dlopen(str(candidate))
        except OSError:
            continue
        return Library(
            ffi, lib, _constants(package / "unicorn_const.py"), _constants(package / "x86_const.py")
        )
    return None


def _constants(path: Path) -> ModuleType:
    """A module of constants, without the package around it."""
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
