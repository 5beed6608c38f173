"""The XSAVE area: where its parts lie, and what XSAVE and XRSTOR make of one (SDM 1 chapter 13).

`saved` and `restored` are the instructions as arithmetic on bytes.  An image is state in the
standard format, as KVM_GET_XSAVE gives it; an area is what lies in the guest's memory.
"""

from __future__ import annotations

from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = [
    "COMPACTED",
    "FCW",
    "FDP",
    "FIP",
    "FOP",
    "FSW",
    "FTW",
    "MXCSR",
    "MXCSR_MASK",
    "ST0",
    "X87_INITIAL",
    "XMM0",
    "XMM_END",
    "XSTATE_BV",
    "Component",
    "HeaderError",
    "components",
    "extent",
    "fill",
    "restored",
    "saved",
]

X87, SSE, AVX = 1, 2, 4
LEGACY_SIZE = 512
HEADER_SIZE = 64
AREA_START = LEGACY_SIZE + HEADER_SIZE

# Offsets in the legacy region and in the header (SDM 1 13.4.1, 13.4.2).
FCW, FSW, FTW, FOP, FIP, FDP = 0, 2, 4, 6, 8, 16
MXCSR, MXCSR_MASK, ST0, XMM0, XMM_END = 24, 28, 32, 160, 416
XSTATE_BV, XCOMP_BV = 512, 520

COMPACTED = 1 << 63
MXCSR_DEFAULT = 0x1F80
#: The first 24 bytes after FNINIT: control, status and (abridged) tag word, pointers.
X87_INITIAL = (0x37F).to_bytes(MXCSR, "little")


class HeaderError(ValueError):
    """An area that XRSTOR refuses with #GP(0)."""


class Component(NamedTuple):
    """A state component above SSE: its bit, its bytes, and where the standard format has it.

    `aligned` ones start at a multiple of 64 in the compacted format.
    """

    bit: int
    size: int
    offset: int
    aligned: bool


def components(leaf_d: Iterable[tuple[int, int, int, int]]) -> tuple[Component, ...]:
    """The components that CPUID leaf 0xD lists: (sub-leaf, EAX, EBX, ECX) each (SDM 1 13.2)."""
    return tuple(
        Component(1 << index, size, offset, bool(ecx & 2))
        for index, size, offset, ecx in sorted(leaf_d)
        if index >= 2 and size
    )


def _places(layout: Sequence[Component], compacted: int) -> Iterator[tuple[Component, int]]:
    """Each component and its offset, in the standard format or as XCOMP_BV `compacted` says."""
    at = AREA_START
    for component in layout:
        if not compacted:
            yield component, component.offset
        elif compacted & component.bit:
            if component.aligned:
                at = -(-at // 64) * 64
            yield component, at
            at += component.size


def extent(layout: Sequence[Component], wanted: int, compacted: int) -> int:
    """How many bytes of an area the components `wanted` reach up to, header included."""
    ends = [at + part.size for part, at in _places(layout, compacted) if part.bit & wanted]
    return max([AREA_START, *ends])


def saved(
    image: bytes | bytearray,
    layout: Sequence[Component],
    wanted: int,
    *,
    before: int,
    compacted: bool,
    skip_unused: bool,
    wide: bool,
) -> list[tuple[int, bytes]]:
    """What XSAVE and its siblings write: (offset in the area, bytes) each (SDM 1 13.7 to 13.11).

    `wanted` is RFBM, `before` the XSTATE_BV that lies in memory, `wide` REX.W, which keeps 64 bits
    of the x87 pointers.  `skip_unused` leaves components in their initial state unwritten, as all
    but XSAVE do.
    """
    used = int.from_bytes(image[XSTATE_BV : XSTATE_BV + 8], "little")
    mxcsr = int.from_bytes(image[MXCSR : MXCSR + 4], "little")
    if compacted and mxcsr != MXCSR_DEFAULT:
        used |= SSE
    written = wanted & used if skip_unused else wanted
    parts: list[tuple[int, bytes]] = []
    if written & X87:
        parts.append((0, _x87(image, wide=wide)))
        parts.append((ST0, bytes(image[ST0:XMM0])))
    if written & SSE if compacted else wanted & (SSE | AVX):
        parts.append((MXCSR, bytes(image[MXCSR:ST0])))
    if written & SSE:
        parts.append((XMM0, bytes(image[XMM0:XMM_END])))
    format_ = COMPACTED | wanted if compacted else 0
    for part, at in _places(layout, format_):
        if part.bit & written:
            parts.append((at, bytes(image[part.offset : part.offset + part.size])))
    state = used & wanted if compacted else before & ~wanted | used & wanted
    header = state.to_bytes(8, "little")
    parts.append((XSTATE_BV, header + format_.to_bytes(8, "little") if compacted else header))
    return _merged(parts)


def _merged(parts: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """The same in order, with what touches in one piece."""
    found: list[tuple[int, bytes]] = []
    for at, data in sorted(parts):
        if found and found[-1][0] + len(found[-1][1]) == at:
            at, data = found[-1][0], found.pop()[1] + data
        found.append((at, data))
    return found


def _x87(image: bytes | bytearray, *, wide: bool) -> bytes:
    """Bytes 0 to 23 of the legacy region; without REX.W the pointers have 32 bits and selectors."""
    if wide:
        return bytes(image[:MXCSR])
    return bytes(image[: FIP + 4]) + bytes(4) + bytes(image[FDP : FDP + 4]) + bytes(4)


def restored(
    image: bytes | bytearray,
    area: bytes,
    layout: Sequence[Component],
    wanted: int,
    *,
    enabled: int,
    only_compacted: bool,
    wide: bool,
) -> bytearray:
    """The image after XRSTOR of `area` (XRSTORS with `only_compacted`) (SDM 1 13.8, 13.12).

    `wanted` is RFBM, `enabled` the components that XCR0 (and IA32_XSS) have.  Raises HeaderError.
    """
    state, format_ = _checked_header(area, enabled, only_compacted=only_compacted)
    mask = int.from_bytes(image[MXCSR_MASK : MXCSR_MASK + 4], "little") or 0xFFBF
    new = bytearray(image)
    used = int.from_bytes(image[XSTATE_BV : XSTATE_BV + 8], "little")
    used = used & ~wanted | state & wanted
    loaded = state & wanted
    if loaded & X87:
        new[:MXCSR] = area[:MXCSR] if wide else _x87(area, wide=False)
        new[ST0:XMM0] = area[ST0:XMM0]
    elif wanted & X87:
        new[:MXCSR] = X87_INITIAL
        new[ST0:XMM0] = bytes(XMM0 - ST0)
    if loaded & SSE if format_ else wanted & (SSE | AVX):
        if int.from_bytes(area[MXCSR : MXCSR + 4], "little") & ~mask:
            raise HeaderError("MXCSR has reserved bits")
        new[MXCSR : MXCSR + 4] = area[MXCSR : MXCSR + 4]
    elif wanted & SSE:
        new[MXCSR : MXCSR + 4] = MXCSR_DEFAULT.to_bytes(4, "little")
    if wanted & SSE:
        new[XMM0:XMM_END] = area[XMM0:XMM_END] if loaded & SSE else bytes(XMM_END - XMM0)
    for part in layout:
        if part.bit & wanted & ~loaded:
            new[part.offset : part.offset + part.size] = bytes(part.size)
    for part, at in _places(layout, format_):
        if part.bit & loaded:
            new[part.offset : part.offset + part.size] = area[at : at + part.size]
    new[XSTATE_BV : XSTATE_BV + 16] = used.to_bytes(16, "little")
    return new


def _checked_header(area: bytes, enabled: int, *, only_compacted: bool) -> tuple[int, int]:
    """XSTATE_BV and XCOMP_BV of an area, if XRSTOR takes them."""
    state = int.from_bytes(area[XSTATE_BV : XSTATE_BV + 8], "little")
    format_ = int.from_bytes(area[XCOMP_BV : XCOMP_BV + 8], "little")
    if format_ & COMPACTED:
        if format_ & ~COMPACTED & ~enabled:
            raise HeaderError("XCOMP_BV names components that are not enabled")
        if state & ~format_:
            raise HeaderError("XSTATE_BV names components that XCOMP_BV does not")
        reserved = area[XCOMP_BV + 8 : AREA_START]
    else:
        if only_compacted:
            raise HeaderError("XRSTORS takes the compacted format alone")
        if state & ~enabled:
            raise HeaderError("XSTATE_BV names components that are not enabled")
        reserved = area[XCOMP_BV : XCOMP_BV + 16]
    if any(reserved):
        raise HeaderError("reserved bytes of the header are not zero")
    return state, format_


def fill(image: bytearray, bits: int) -> None:
    """Have KVM_SET_XSAVE take these components of an image as they stand.

    A component that XSTATE_BV did not name is in its initial state; the image shows it as such.
    """
    state = int.from_bytes(image[XSTATE_BV : XSTATE_BV + 8], "little") | bits
    image[XSTATE_BV : XSTATE_BV + 8] = state.to_bytes(8, "little")
