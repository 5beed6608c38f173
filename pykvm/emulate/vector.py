"""Moves and bitwise operations of AVX, with vectors of 128 and 256 bits (SDM 2 and 2A 2.3).

What kernels use them for: copying, XOR of blocks, and accesses to devices wider than a register.
"""

from __future__ import annotations

from functools import partial

from pykvm.emulate.fault import GP, UD, Fault
from pykvm.emulate.fpu import check_avx, image_of, layout_of, set_image
from pykvm.typed import TYPE_CHECKING
from pykvm.x86.xsave import XMM0

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.emulate.refused import Operations, Refused

__all__ = ["VECTOR_OPERATIONS"]

_SSE, _AVX, _ZMM_HIGH = 2, 4, 1 << 6
_ALL = (1 << 256) - 1


class _Vectors:
    """The vector registers of a vCPU, as integers."""

    def __init__(self, at: Refused) -> None:
        check_avx(at)
        self._at = at
        self._image = image_of(at.cpu)
        places = {part.bit: part.offset for part in layout_of(at.cpu)}
        self._high = places[_AVX]
        self._higher = places.get(_ZMM_HIGH)

    def get(self, number: int) -> int:
        image = self._image
        low, high = XMM0 + 16 * number, self._high + 16 * number
        return int.from_bytes(image[low : low + 16] + image[high : high + 16], "little")

    def put(self, number: int, value: int) -> None:
        """Write 256 bits; those above become 0 (SDM 1 14.4.1)."""
        image, data = self._image, value.to_bytes(32, "little")
        low, high = XMM0 + 16 * number, self._high + 16 * number
        image[low : low + 16], image[high : high + 16] = data[:16], data[16:]
        if self._higher is not None:
            image[self._higher + 32 * number : self._higher + 32 * (number + 1)] = bytes(32)

    def done(self) -> None:
        set_image(self._at.cpu, self._image, _SSE | _AVX)


def _operand(at: Refused, vectors: _Vectors, bits: int, *, aligned: bool = False) -> int:
    """The value of the operand in ModRM.rm."""
    if at.instruction.memory is None:
        return vectors.get(at.instruction.rm) & (1 << bits) - 1
    linear = at.linear(bits // 8, write=False)
    if aligned and linear % (bits // 8):
        raise Fault(GP)
    return int.from_bytes(at.memory.read(linear, bits // 8), "little")


def _no_vvvv(at: Refused) -> None:
    if at.instruction.vvvv:
        raise Fault(UD)


def _load(at: Refused, *, bits: int = 0, aligned: bool = False) -> None:
    """Move to a vector register: `bits`, or as many as VEX.L says, and zeros above them."""
    _no_vvvv(at)
    vectors = _Vectors(at)
    value = _operand(at, vectors, bits or at.instruction.vex, aligned=aligned)
    vectors.put(at.instruction.reg, value)
    vectors.done()


def _store(at: Refused, *, bits: int = 0, aligned: bool = False) -> None:
    """Move from a vector register to memory or another one."""
    _no_vvvv(at)
    vectors = _Vectors(at)
    size = bits or at.instruction.vex
    value = vectors.get(at.instruction.reg) & (1 << size) - 1
    if at.instruction.memory is None:
        vectors.put(at.instruction.rm, value)
        vectors.done()
        return
    linear = at.linear(size // 8, write=True)
    if aligned and linear % (size // 8):
        raise Fault(GP)
    at.memory.write(linear, value.to_bytes(size // 8, "little"))


def _from_general(at: Refused) -> None:
    """VMOVD and VMOVQ from a general register or memory."""
    _no_vvvv(at)
    vectors = _Vectors(at)
    vectors.put(at.instruction.reg, at.load(64 if at.instruction.wide else 32))
    vectors.done()


def _to_general(at: Refused) -> None:
    """VMOVD and VMOVQ to a general register or memory."""
    _no_vvvv(at)
    bits = 64 if at.instruction.wide else 32
    value = _Vectors(at).get(at.instruction.reg) & (1 << bits) - 1
    if at.instruction.memory is None:
        at.set(at.instruction.rm, bits, value)
    else:
        at.write(value.to_bytes(bits // 8, "little"))


def _bitwise(at: Refused, *, combine: Callable[[int, int], int]) -> None:
    vectors = _Vectors(at)
    size = at.instruction.vex
    second = _operand(at, vectors, size)
    value = combine(vectors.get(at.instruction.vvvv), second)
    vectors.put(at.instruction.reg, value & (1 << size) - 1)
    vectors.done()


def _zero(at: Refused) -> None:
    """VZEROUPPER, or with VEX.L VZEROALL."""
    _no_vvvv(at)
    vectors = _Vectors(at)
    kept = 0 if at.instruction.vex == 256 else (1 << 128) - 1
    for number in range(16 if at.bits == 64 else 8):
        vectors.put(number, vectors.get(number) & kept)
    vectors.done()


_aligned_load = partial(_load, aligned=True)
_aligned_store = partial(_store, aligned=True)
_and = partial(_bitwise, combine=int.__and__)
_and_not = partial(_bitwise, combine=lambda first, second: ~first & second & _ALL)
_or = partial(_bitwise, combine=int.__or__)
_xor = partial(_bitwise, combine=int.__xor__)

VECTOR_OPERATIONS: Operations = {
    "vex 0f 10": ("vmovups", _load),
    "vex 66 0f 10": ("vmovupd", _load),
    "vex f3 0f 10 m": ("vmovss", partial(_load, bits=32)),
    "vex f2 0f 10 m": ("vmovsd", partial(_load, bits=64)),
    "vex 0f 28": ("vmovaps", _aligned_load),
    "vex 66 0f 28": ("vmovapd", _aligned_load),
    "vex 66 0f 6f": ("vmovdqa", _aligned_load),
    "vex f3 0f 6f": ("vmovdqu", _load),
    "vex f2 0f f0 m": ("vlddqu", _load),
    "vex 66 0f 38 2a m": ("vmovntdqa", _aligned_load),
    "vex 0f 11": ("vmovups", _store),
    "vex 66 0f 11": ("vmovupd", _store),
    "vex f3 0f 11 m": ("vmovss", partial(_store, bits=32)),
    "vex f2 0f 11 m": ("vmovsd", partial(_store, bits=64)),
    "vex 0f 29": ("vmovaps", _aligned_store),
    "vex 66 0f 29": ("vmovapd", _aligned_store),
    "vex 66 0f 7f": ("vmovdqa", _aligned_store),
    "vex f3 0f 7f": ("vmovdqu", _store),
    "vex 0f 2b m": ("vmovntps", _aligned_store),
    "vex 66 0f 2b m": ("vmovntpd", _aligned_store),
    "vex 66 0f e7 m": ("vmovntdq", _aligned_store),
    "vex 66 0f 6e": ("vmovd", _from_general),
    "vex 66 0f 7e": ("vmovd", _to_general),
    "vex f3 0f 7e": ("vmovq", partial(_load, bits=64)),
    "vex 66 0f d6": ("vmovq", partial(_store, bits=64)),
    "vex 0f 54": ("vandps", _and),
    "vex 66 0f 54": ("vandpd", _and),
    "vex 0f 55": ("vandnps", _and_not),
    "vex 66 0f 55": ("vandnpd", _and_not),
    "vex 0f 56": ("vorps", _or),
    "vex 66 0f 56": ("vorpd", _or),
    "vex 0f 57": ("vxorps", _xor),
    "vex 66 0f 57": ("vxorpd", _xor),
    "vex 66 0f db": ("vpand", _and),
    "vex 66 0f df": ("vpandn", _and_not),
    "vex 66 0f eb": ("vpor", _or),
    "vex 66 0f ef": ("vpxor", _xor),
    "vex 0f 77": ("vzeroupper", _zero),
}
