"""The x87, MMX, SSE and AVX state of a vCPU as one image, and when the guest may use it."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from pykvm.emulate.fault import NM, UD, Fault
from pykvm.kvm import uapi
from pykvm.typed import TYPE_CHECKING
from pykvm.x86.registers import CR0, CR4
from pykvm.x86.xsave import MXCSR, Component, components, fill

if TYPE_CHECKING:
    from pykvm.emulate.refused import Refused
    from pykvm.vcpu import CPU

__all__ = [
    "PLAIN",
    "XCR0_VALUE",
    "check_avx",
    "check_mmx",
    "check_sse",
    "check_x87",
    "image_of",
    "layout_of",
    "set_image",
    "xcr0_of",
]

_SSE = 2
_AVX_STATE = 6  # of XCR0: SSE and AVX
PLAIN = 4096  # the most that KVM_GET_XSAVE gives

_LEAF_XSAVE = 0xD
# In struct kvm_xcrs: nr_xcrs, flags, then (xcr, reserved, value) each.
XCR0_VALUE = 16

# CPUID cannot change once a vCPU has run.
_layouts: WeakKeyDictionary[CPU, tuple[Component, ...]] = WeakKeyDictionary()


def layout_of(cpu: CPU) -> tuple[Component, ...]:
    """The components above SSE, as CPUID lists them."""
    found = _layouts.get(cpu)
    if found is None:
        leaf = [
            (entry.index, entry.eax, entry.ebx, entry.ecx)
            for entry in cpu.kvm.get_cpuid2()
            if entry.function == _LEAF_XSAVE
        ]
        found = _layouts[cpu] = components(leaf)
    return found


def xcr0_of(cpu: CPU) -> int:
    """XCR0: the components that the guest has enabled."""
    buffer = bytearray(uapi.kvm_xcrs.size)
    cpu.kvm.ioctl(uapi.KVM_GET_XCRS, buffer)
    return int.from_bytes(buffer[XCR0_VALUE : XCR0_VALUE + 8], "little")


def image_of(cpu: CPU) -> bytearray:
    """The state in the standard XSAVE format."""
    kvm = cpu.kvm
    image = bytearray(kvm.xsave_size)
    kvm.ioctl(uapi.KVM_GET_XSAVE if len(image) <= PLAIN else uapi.KVM_GET_XSAVE2, image)
    return image


def set_image(cpu: CPU, image: bytearray, changed: int = 0) -> None:
    """Set the state; `changed` are the components (bits of XSTATE_BV) that were written to."""
    if image[MXCSR : MXCSR + 4] != b"\x80\x1f\0\0":
        # The kernel takes MXCSR from an image only together with a component that has it.
        changed |= _SSE
    fill(image, changed)
    cpu.kvm.ioctl(uapi.KVM_SET_XSAVE, image)


def check_x87(at: Refused) -> None:
    """Raise #NM where x87 instructions do (SDM 3A table 2-3)."""
    if at.sregs.cr0 & (CR0.EM | CR0.TS):
        raise Fault(NM)


def check_mmx(at: Refused) -> None:
    """Raise #UD or #NM where MMX instructions do."""
    if at.sregs.cr0 & CR0.EM:
        raise Fault(UD)
    if at.sregs.cr0 & CR0.TS:
        raise Fault(NM)


def check_sse(at: Refused) -> None:
    """Raise #UD or #NM where SSE instructions do (SDM 3A 13.1, table 2-3)."""
    if at.sregs.cr0 & CR0.EM or not at.sregs.cr4 & CR4.OSFXSR:
        raise Fault(UD)
    if at.sregs.cr0 & CR0.TS:
        raise Fault(NM)


def check_avx(at: Refused) -> None:
    """Raise #UD or #NM where AVX instructions do (SDM 1 14.3, SDM 2A 2.4)."""
    if not at.sregs.cr4 & CR4.OSXSAVE or xcr0_of(at.cpu) & _AVX_STATE != _AVX_STATE:
        raise Fault(UD)
    if at.sregs.cr0 & CR0.TS:
        raise Fault(NM)
