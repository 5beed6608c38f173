"""Task state segments: the images that a TSS descriptor points to (SDM 3A 8.2.1, 8.6, 8.7).

Today a TSS is where the processor finds the stack pointers of inner rings and the I/O permission
bitmap; the 16 and 32-bit ones also hold the registers of a suspended task.

>>> image = tss64(rsp0=0x9000, ist1=0xA000)
>>> len(image), decode_tss(image, 64)["ist1"]
(104, 40960)
"""

from __future__ import annotations

import struct

from pykvm.errors import ConfigError
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["decode_tss", "tss16", "tss32", "tss64"]

_PORTS = 0x10000


class _Layout:
    """The fields of a TSS, each with its struct format (padding included)."""

    def __init__(self, *groups: tuple[str, str]) -> None:
        self.names = tuple(name for _, names in groups for name in names.split())
        formats = (code * len(names.split()) if names else code for code, names in groups)
        self.struct = struct.Struct("<" + "".join(formats))


_TSS16 = _Layout(
    ("H", "link sp0 ss0 sp1 ss1 sp2 ss2 ip flags ax cx dx bx sp bp si di es cs ss ds ldt"),
)
_TSS32 = _Layout(
    ("H2x", "link"),
    ("I", "esp0"),
    ("H2x", "ss0"),
    ("I", "esp1"),
    ("H2x", "ss1"),
    ("I", "esp2"),
    ("H2x", "ss2"),
    ("I", "cr3 eip eflags eax ecx edx ebx esp ebp esi edi"),
    ("H2x", "es cs ss ds fs gs ldt"),
    ("H", "trap io_map_base"),
)
_TSS64 = _Layout(
    ("4x", ""),
    ("Q", "rsp0 rsp1 rsp2"),
    ("8x", ""),
    ("Q", "ist1 ist2 ist3 ist4 ist5 ist6 ist7"),
    ("10x", ""),
    ("H", "io_map_base"),
)
_LAYOUTS = {16: _TSS16, 32: _TSS32, 64: _TSS64}


def tss16(**fields: int) -> bytes:
    """The 44 bytes of a 16-bit TSS; fields not given are zero.

    Fields: link, sp0 to sp2, ss0 to ss2, ip, flags, ax, cx, dx, bx, sp, bp, si, di, es, cs, ss, ds,
    ldt.  Raises ConfigError for another name or a value that does not fit.
    """
    return _encode(_TSS16, fields)


def tss32(*, ports: Iterable[int] = (), **fields: int) -> bytes:
    """A 32-bit TSS: 104 bytes, then the I/O permission bitmap if `ports` are allowed.

    Fields: link, esp0 to esp2, ss0 to ss2, cr3, eip, eflags, eax, ecx, edx, ebx, esp, ebp, esi,
    edi, es, cs, ss, ds, fs, gs, ldt, trap.  `ports` are those that code above IOPL may use.  Raises
    ConfigError for another name or a value that does not fit.

    >>> tss32(esp0=0x8000, ss0=0x18)[4:10].hex()
    '008000001800'
    """
    return _with_bitmap(_TSS32, fields, ports)


def tss64(*, ports: Iterable[int] = (), **fields: int) -> bytes:
    """A 64-bit TSS: 104 bytes, then the I/O permission bitmap if `ports` are allowed.

    Fields: rsp0 to rsp2, ist1 to ist7.  `ports` and errors as in `tss32`.

    >>> tss64(ports=[0x3F8])[104 + 0x7F :].hex()  # bit 0 of the byte for 0x3f8-0x3ff is clear
    'feff'
    """
    return _with_bitmap(_TSS64, fields, ports)


def decode_tss(image: bytes, bits: int) -> dict[str, int]:
    """The fields of a TSS of 16, 32 or 64 bits by name.

    Raises ConfigError for other `bits` or an image that is too short.
    """
    layout = _LAYOUTS.get(bits)
    if layout is None:
        raise ConfigError(f"a TSS of {bits} bits: choose from 16, 32, 64")
    if len(image) < layout.struct.size:
        raise ConfigError(f"a {bits}-bit TSS has {layout.struct.size} bytes, not {len(image)}")
    return dict(zip(layout.names, layout.struct.unpack_from(image), strict=True))


def _encode(layout: _Layout, fields: dict[str, int]) -> bytes:
    unknown = fields.keys() - set(layout.names)
    if unknown:
        raise ConfigError(
            f"this TSS has no field {min(unknown)!r}", hint=f"it has {' '.join(layout.names)}"
        )
    try:
        return layout.struct.pack(*(fields.get(name, 0) for name in layout.names))
    except struct.error as error:
        raise ConfigError(f"a TSS field does not fit: {error}") from None


def _with_bitmap(layout: _Layout, fields: dict[str, int], ports: Iterable[int]) -> bytes:
    """The TSS with its bitmap after it; a bit that is set or beyond the limit denies the port.

    The byte of ones after the last is required: the processor reads two at a time (SDM 1 19.5.2).
    """
    size = layout.struct.size
    allowed = sorted(ports)
    bitmap = bytearray(b"\xff" * ((allowed[-1] >> 3) + 2) if allowed else b"")
    for port in allowed:
        if not 0 <= port < _PORTS:
            raise ConfigError(f"there is no port {port:#x}")
        bitmap[port >> 3] &= ~(1 << (port & 7))
    return _encode(layout, {"io_map_base": size, **fields}) + bytes(bitmap)
