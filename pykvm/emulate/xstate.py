"""XSAVE, XRSTOR and their siblings, XGETBV and XSETBV, on the vCPU's own state."""

from __future__ import annotations

from functools import partial

from pykvm.emulate.fault import GP, NM, UD, Fault
from pykvm.emulate.fpu import XCR0_VALUE, image_of, layout_of, set_image, xcr0_of
from pykvm.errors import KVMError
from pykvm.kvm import uapi
from pykvm.typed import TYPE_CHECKING
from pykvm.x86.registers import CR0, CR4
from pykvm.x86.xsave import (
    COMPACTED,
    XSTATE_BV,
    HeaderError,
    extent,
    restored,
    saved,
)

if TYPE_CHECKING:
    from pykvm.emulate.refused import Operations, Refused
    from pykvm.vcpu import CPU

__all__ = ["XSTATE_OPERATIONS"]

_IA32_XSS = 0xDA0
_HEADER_END = 576
_XCOMP_BV = 520


def _xss(cpu: CPU) -> int:
    return cpu.kvm.get_msrs([_IA32_XSS], partial=True).get(_IA32_XSS, 0)


def _check(at: Refused) -> None:
    at.no_lock()
    if not at.sregs.cr4 & CR4.OSXSAVE:
        raise Fault(UD)
    if at.sregs.cr0 & CR0.TS:
        raise Fault(NM)


def _area(at: Refused, length: int, *, write: bool) -> int:
    """The linear address of the operand.  Raises #GP(0) unless it is aligned to 64 bytes."""
    linear = at.linear(length, write=write)
    if linear % 64:
        raise Fault(GP)
    return linear


def _save(at: Refused, *, compacted: bool, skip_unused: bool, supervisor: bool) -> None:
    _check(at)
    if supervisor:
        at.privileged()
    layout = layout_of(at.cpu)
    enabled = xcr0_of(at.cpu) | (_xss(at.cpu) if supervisor else 0)
    wanted = enabled & at.pair()
    length = extent(layout, wanted, COMPACTED | wanted if compacted else 0)
    area = _area(at, length, write=True)
    memory = at.memory
    # All pages before the first write, so that a fault leaves nothing half done.
    for start in (area, *range((area | 4095) + 1, area + length, 4096)):
        memory.physical(start, write=True)
    before = 0
    if not compacted:
        before = int.from_bytes(memory.read(area + XSTATE_BV, 8), "little")
    parts = saved(
        image_of(at.cpu),
        layout,
        wanted,
        before=before,
        compacted=compacted,
        skip_unused=skip_unused,
        wide=at.instruction.wide,
    )
    for offset, data in parts:
        memory.write(area + offset, data)


def _restore(at: Refused, *, supervisor: bool) -> None:
    _check(at)
    if supervisor:
        at.privileged()
    layout = layout_of(at.cpu)
    enabled = xcr0_of(at.cpu) | (_xss(at.cpu) if supervisor else 0)
    wanted = enabled & at.pair()
    area = _area(at, _HEADER_END, write=False)
    header = at.memory.read(area, _HEADER_END)
    format_ = int.from_bytes(header[_XCOMP_BV : _XCOMP_BV + 8], "little")
    length = extent(layout, wanted, format_ if format_ & COMPACTED else 0)
    content = header + at.memory.read(area + _HEADER_END, length - _HEADER_END)
    try:
        image = restored(
            image_of(at.cpu),
            content,
            layout,
            wanted,
            enabled=enabled,
            only_compacted=supervisor,
            wide=at.instruction.wide,
        )
    except HeaderError:
        raise Fault(GP) from None
    set_image(at.cpu, image)


def _xgetbv(at: Refused) -> None:
    if not at.sregs.cr4 & CR4.OSXSAVE:
        raise Fault(UD)
    index = at.get(1, 32)
    if index > 1:
        raise Fault(GP)
    value = xcr0_of(at.cpu)
    if index == 1:
        value &= int.from_bytes(image_of(at.cpu)[XSTATE_BV : XSTATE_BV + 8], "little")
    at.set_pair(value)


def _xsetbv(at: Refused) -> None:
    if not at.sregs.cr4 & CR4.OSXSAVE:
        raise Fault(UD)
    at.privileged()
    if at.get(1, 32):
        raise Fault(GP)
    buffer = bytearray(uapi.kvm_xcrs.size)
    buffer[0] = 1
    buffer[XCR0_VALUE : XCR0_VALUE + 8] = at.pair().to_bytes(8, "little")
    try:
        at.cpu.kvm.ioctl(uapi.KVM_SET_XCRS, buffer)
    except KVMError:
        raise Fault(GP) from None


_xsave = partial(_save, compacted=False, skip_unused=False, supervisor=False)
_xsaveopt = partial(_save, compacted=False, skip_unused=True, supervisor=False)
_xsavec = partial(_save, compacted=True, skip_unused=True, supervisor=False)
_xsaves = partial(_save, compacted=True, skip_unused=True, supervisor=True)
_xrstor = partial(_restore, supervisor=False)
_xrstors = partial(_restore, supervisor=True)

XSTATE_OPERATIONS: Operations = {
    "0f ae /4 m": ("xsave", _xsave),
    "0f ae /5 m": ("xrstor", _xrstor),
    "0f ae /6 m": ("xsaveopt", _xsaveopt),
    "0f c7 /4 m": ("xsavec", _xsavec),
    "0f c7 /5 m": ("xsaves", _xsaves),
    "0f c7 /3 m": ("xrstors", _xrstors),
    "0f 01 /2 d0": ("xgetbv", _xgetbv),
    "0f 01 /2 d1": ("xsetbv", _xsetbv),
}
