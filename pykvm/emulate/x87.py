"""x87's and SSE's control and status registers, and the environments that x87 saves (SDM 1 8.1).

What computes runs on this processor (`native`); this is what must not.
"""

from __future__ import annotations

from functools import partial

from pykvm.emulate.fault import GP, MF, NM, Fault, UnsupportedError
from pykvm.emulate.fpu import check_mmx, check_sse, check_x87, image_of, set_image
from pykvm.typed import TYPE_CHECKING
from pykvm.x86.registers import CR0
from pykvm.x86.xsave import FCW, FSW, FTW, MXCSR, MXCSR_MASK, ST0, X87_INITIAL

if TYPE_CHECKING:
    from pykvm.emulate.refused import Operations, Refused

__all__ = ["X87_OPERATIONS"]

_ES, _B = 1 << 7, 1 << 15
_X87, _SSE = 1, 2
_CONTROL = 0x1F7F  # the bits of FCW that can be written; bit 6 reads as one
_DEFAULT_MASK = 0xFFBF
_OPCODE, _FIP, _FDP = 6, 8, 16


def _word(image: bytearray, at: int) -> int:
    return int.from_bytes(image[at : at + 2], "little")


def _put(image: bytearray, at: int, value: int, size: int = 2) -> None:
    image[at : at + size] = value.to_bytes(size, "little")


def _fwait(at: Refused) -> None:
    if at.sregs.cr0 & CR0.TS and at.sregs.cr0 & CR0.MP:
        raise Fault(NM)
    if _word(image_of(at.cpu), FSW) & _ES:
        raise Fault(MF)


def _fninit(at: Refused) -> None:
    check_x87(at)
    image = image_of(at.cpu)
    image[:MXCSR] = X87_INITIAL
    set_image(at.cpu, image, _X87)


def _fnclex(at: Refused) -> None:
    check_x87(at)
    image = image_of(at.cpu)
    _put(image, FSW, _word(image, FSW) & 0x7F00)
    set_image(at.cpu, image, _X87)


def _set_control(image: bytearray, control: int, status: int) -> None:
    """FCW and FSW; a flagged exception that is not masked is pending (SDM 1 8.1.3.3)."""
    control = control & _CONTROL | 0x40
    pending = status & ~control & 0x3F
    _put(image, FCW, control)
    _put(image, FSW, status & ~(_ES | _B) | (_ES | _B if pending else 0))


def _fldcw(at: Refused) -> None:
    check_x87(at)
    image = image_of(at.cpu)
    if _word(image, FSW) & _ES:
        raise Fault(MF)
    _set_control(image, int.from_bytes(at.read(2), "little"), _word(image, FSW))
    set_image(at.cpu, image, _X87)


def _fnstcw(at: Refused) -> None:
    check_x87(at)
    at.write(bytes(image_of(at.cpu)[FCW : FCW + 2]))


def _fnstsw(at: Refused) -> None:
    check_x87(at)
    at.write(bytes(image_of(at.cpu)[FSW : FSW + 2]))


def _fnstsw_ax(at: Refused) -> None:
    check_x87(at)
    at.set(0, 16, _word(image_of(at.cpu), FSW))


def _emms(at: Refused) -> None:
    check_mmx(at)
    image = image_of(at.cpu)
    if _word(image, FSW) & _ES:
        raise Fault(MF)
    image[FTW] = 0
    set_image(at.cpu, image, _X87)


def _tags(image: bytearray) -> int:
    """The tag word: two bits a register, worked out from the contents (SDM 1 8.1.7, 13.5.1)."""
    top = _word(image, FSW) >> 11 & 7
    word = 0
    for physical in range(8):
        tag = 3
        if image[FTW] >> physical & 1:
            start = ST0 + 16 * ((physical - top) % 8)
            significand = int.from_bytes(image[start : start + 8], "little")
            exponent = _word(image, start + 8) & 0x7FFF
            if exponent == 0 and significand == 0:
                tag = 1
            elif exponent in (0, 0x7FFF) or not significand >> 63:
                tag = 2
            else:
                tag = 0
        word |= tag << 2 * physical
    return word


def _environment(at: Refused, image: bytearray) -> bytes:
    """What FNSTENV stores, with fields of 16 or 32 bits (SDM 1 8.1.10)."""
    if not at.sregs.cr0 & CR0.PE:
        raise UnsupportedError("x87 environments of real mode")
    opcode = _word(image, _OPCODE) & 0x7FF
    ip, dp = (int.from_bytes(image[start : start + 4], "little") for start in (_FIP, _FDP))
    words = [_word(image, FCW), _word(image, FSW), _tags(image)]
    if at.instruction.operand_bits == 16:
        fields = [*words, ip & 0xFFFF, 0, dp & 0xFFFF, 0]
        return b"".join(field.to_bytes(2, "little") for field in fields)
    fields = [*(0xFFFF_0000 | word for word in words), ip, opcode << 16, dp, 0xFFFF_0000]
    return b"".join(field.to_bytes(4, "little") for field in fields)


def _take_environment(image: bytearray, data: bytes) -> None:
    """What FLDENV loads."""
    step = len(data) // 7
    control, status, tags = (_word(bytearray(data), step * at) for at in range(3))
    _set_control(image, control, status)
    image[FTW] = sum(1 << at for at in range(8) if tags >> 2 * at & 3 != 3)
    _put(image, _OPCODE, 0)
    ip = int.from_bytes(data[3 * step : 4 * step], "little")
    dp = int.from_bytes(data[5 * step : 6 * step], "little")
    if step == 4:
        _put(image, _OPCODE, int.from_bytes(data[4 * step + 2 : 5 * step], "little") & 0x7FF)
    _put(image, _FIP, ip, 8)
    _put(image, _FDP, dp, 8)


def _store(at: Refused, *, registers: bool) -> None:
    """FNSTENV, which masks all exceptions, or FNSAVE, which initialises x87."""
    check_x87(at)
    image = image_of(at.cpu)
    data = _environment(at, image)
    if registers:
        data += b"".join(bytes(image[ST0 + 16 * n : ST0 + 16 * n + 10]) for n in range(8))
    at.write(data)
    if registers:
        image[:MXCSR] = X87_INITIAL
    else:
        _set_control(image, _word(image, FCW) | 0x3F, _word(image, FSW))
    set_image(at.cpu, image, _X87)


def _load(at: Refused, *, registers: bool) -> None:
    """FLDENV or FRSTOR."""
    check_x87(at)
    if not at.sregs.cr0 & CR0.PE:
        raise UnsupportedError("x87 environments of real mode")
    image = image_of(at.cpu)
    if _word(image, FSW) & _ES:
        raise Fault(MF)
    size = 14 if at.instruction.operand_bits == 16 else 28
    data = at.read(size + 80 if registers else size)
    _take_environment(image, data[:size])
    for number in range(8 if registers else 0):
        start = size + 10 * number
        image[ST0 + 16 * number : ST0 + 16 * number + 10] = data[start : start + 10]
    set_image(at.cpu, image, _X87)


def _ldmxcsr(at: Refused) -> None:
    check_sse(at)
    value = int.from_bytes(at.read(4), "little")
    image = image_of(at.cpu)
    mask = int.from_bytes(image[MXCSR_MASK : MXCSR_MASK + 4], "little") or _DEFAULT_MASK
    if value & ~mask:
        raise Fault(GP)
    _put(image, MXCSR, value, 4)
    set_image(at.cpu, image, _SSE)


def _stmxcsr(at: Refused) -> None:
    check_sse(at)
    at.write(bytes(image_of(at.cpu)[MXCSR : MXCSR + 4]))


X87_OPERATIONS: Operations = {
    "9b": ("fwait", _fwait),
    "db /4 e3": ("fninit", _fninit),
    "db /4 e2": ("fnclex", _fnclex),
    "d9 /5 m": ("fldcw", _fldcw),
    "d9 /7 m": ("fnstcw", _fnstcw),
    "dd /7 m": ("fnstsw", _fnstsw),
    "df /4 e0": ("fnstsw", _fnstsw_ax),
    "d9 /6 m": ("fnstenv", partial(_store, registers=False)),
    "dd /6 m": ("fnsave", partial(_store, registers=True)),
    "d9 /4 m": ("fldenv", partial(_load, registers=False)),
    "dd /4 m": ("frstor", partial(_load, registers=True)),
    "0f 77": ("emms", _emms),
    "0f ae /2 m": ("ldmxcsr", _ldmxcsr),
    "0f ae /3 m": ("stmxcsr", _stmxcsr),
}
