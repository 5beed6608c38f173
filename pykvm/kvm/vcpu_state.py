"""The rest of a vCPU's state, which a snapshot saves: FPU, local APIC, events, debug registers."""

from __future__ import annotations

from pykvm.errors import ConfigError
from pykvm.kvm import uapi
from pykvm.kvm.constants import (
    KVM_REG_GUEST_SSP,
    KVM_REG_SIZE_MASK,
    KVM_REG_SIZE_SHIFT,
    KVM_REG_SIZE_U64,
    KVM_REG_X86,
    KVM_X86_REG_TYPE_KVM,
    KVM_X86_REG_TYPE_MSR,
)
from pykvm.kvm.handle import Handle, address_of, bytes_of
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.kvm.handle import Fields
    from pykvm.kvm.records import Record

__all__ = ["GUEST_SSP", "State", "msr_register"]

_LARGEST_REGISTER = 256

GUEST_SSP = KVM_REG_X86 | KVM_REG_SIZE_U64 | KVM_X86_REG_TYPE_KVM << 32 | KVM_REG_GUEST_SSP


def msr_register(index: int) -> int:
    """Return the id of an MSR for `State.get_one_reg`.

    >>> hex(msr_register(0x10))
    '0x2030000200000010'
    """
    return KVM_REG_X86 | KVM_REG_SIZE_U64 | KVM_X86_REG_TYPE_MSR << 32 | index


class State(Handle):
    """The part of a vCPU that holds state beyond registers, CPUID and MSRs."""

    xsave_size: int

    def get_fpu(self) -> Record:
        """Return x87 and SSE state as kvm_fpu.

        KVM_GET_FPU, api.rst 4.22.
        """
        return self.ioctl_read(uapi.KVM_GET_FPU, uapi.kvm_fpu)

    def set_fpu(self, value: Fields) -> None:
        """Set x87 and SSE state from a kvm_fpu.

        KVM_SET_FPU, api.rst 4.23.
        """
        self.ioctl_write(uapi.KVM_SET_FPU, uapi.kvm_fpu, value)

    def get_xsave(self) -> bytearray:
        """Return the 4096 bytes of extended state in the XSAVE format (CPUID leaf 0xD).

        Needs KVM_CAP_XSAVE.  KVM_GET_XSAVE, api.rst 4.42.
        """
        buffer = uapi.kvm_xsave.room(0)
        self.ioctl(uapi.KVM_GET_XSAVE, buffer)
        return buffer

    def get_xsave2(self) -> bytearray:
        """Return the `xsave_size` bytes of extended state, dynamic features included.

        Needs KVM_CAP_XSAVE2.  KVM_GET_XSAVE2, api.rst 4.134.
        """
        buffer = uapi.kvm_xsave.room(self.xsave_size - uapi.kvm_xsave.size)
        self.ioctl(uapi.KVM_GET_XSAVE2, buffer)
        return buffer

    def set_xsave(self, data: bytes | bytearray) -> None:
        """Set the extended state from what `get_xsave` or `get_xsave2` returned.

        Needs KVM_CAP_XSAVE.  Raises KVMError: EINVAL for features that the guest lacks.
        KVM_SET_XSAVE, api.rst 4.43.
        """
        # The kernel reads xsave_size bytes, whatever the struct in the ioctl's number says.
        self.ioctl(uapi.KVM_SET_XSAVE, bytearray(data).ljust(self.xsave_size, b"\0"))

    def get_xcrs(self) -> Record:
        """Return the extended control registers as kvm_xcrs, the first `nr_xcrs` of `xcrs`.

        Needs KVM_CAP_XCRS.  KVM_GET_XCRS, api.rst 4.44.
        """
        return self.ioctl_read(uapi.KVM_GET_XCRS, uapi.kvm_xcrs)

    def set_xcrs(self, value: Fields) -> None:
        """Set the extended control registers from a kvm_xcrs.

        Needs KVM_CAP_XCRS.  Raises KVMError: EINVAL for a bad XCR0.  KVM_SET_XCRS, api.rst 4.45.
        """
        self.ioctl_write(uapi.KVM_SET_XCRS, uapi.kvm_xcrs, value)

    def get_lapic(self) -> bytes:
        """Return the 1024 bytes of the in-kernel local APIC's registers.

        Needs KVM_CAP_IRQCHIP.  Raises KVMError: EINVAL without one.  KVM_GET_LAPIC, api.rst 4.57.
        """
        regs: bytes = self.ioctl_read(uapi.KVM_GET_LAPIC, uapi.kvm_lapic_state).regs
        return regs

    def set_lapic(self, regs: bytes | bytearray) -> None:
        """Set the in-kernel local APIC's registers.

        Needs KVM_CAP_IRQCHIP.  Raises KVMError: EINVAL without one.  KVM_SET_LAPIC, api.rst 4.58.
        """
        self.ioctl_write(uapi.KVM_SET_LAPIC, uapi.kvm_lapic_state, {"regs": regs})

    def get_mp_state(self) -> int:
        """Return what the vCPU does: KVM_MP_STATE_RUNNABLE, _HALTED, ...

        Needs KVM_CAP_MP_STATE.  KVM_GET_MP_STATE, api.rst 4.38.
        """
        state: int = self.ioctl_read(uapi.KVM_GET_MP_STATE, uapi.kvm_mp_state).mp_state
        return state

    def set_mp_state(self, mp_state: int) -> None:
        """Set what the vCPU does, a KVM_MP_STATE_...

        Needs KVM_CAP_MP_STATE.  Raises KVMError: EINVAL for a state that only an in-kernel irqchip
        knows.  KVM_SET_MP_STATE, api.rst 4.39.
        """
        self.ioctl_write(uapi.KVM_SET_MP_STATE, uapi.kvm_mp_state, {"mp_state": mp_state})

    def get_vcpu_events(self) -> Record:
        """Return exceptions, interrupts, NMIs and SMIs under way, as kvm_vcpu_events.

        Needs KVM_CAP_VCPU_EVENTS.  KVM_GET_VCPU_EVENTS, api.rst 4.31.
        """
        return self.ioctl_read(uapi.KVM_GET_VCPU_EVENTS, uapi.kvm_vcpu_events)

    def set_vcpu_events(self, value: Fields) -> None:
        """Set the events under way; `flags` (KVM_VCPUEVENT_VALID_...) say what counts.

        Needs KVM_CAP_VCPU_EVENTS.  Raises KVMError: EINVAL for an exception above 31 or flags that
        are not enabled.  KVM_SET_VCPU_EVENTS, api.rst 4.32.
        """
        self.ioctl_write(uapi.KVM_SET_VCPU_EVENTS, uapi.kvm_vcpu_events, value)

    def get_debugregs(self) -> Record:
        """Return the guest's DR0-DR3, DR6 and DR7 as kvm_debugregs.

        Needs KVM_CAP_DEBUGREGS.  KVM_GET_DEBUGREGS, api.rst 4.33.
        """
        return self.ioctl_read(uapi.KVM_GET_DEBUGREGS, uapi.kvm_debugregs)

    def set_debugregs(self, value: Fields) -> None:
        """Set the guest's debug registers from a kvm_debugregs.

        Needs KVM_CAP_DEBUGREGS.  Raises KVMError: EINVAL for reserved bits.  KVM_SET_DEBUGREGS,
        api.rst 4.34.
        """
        self.ioctl_write(uapi.KVM_SET_DEBUGREGS, uapi.kvm_debugregs, value)

    def get_nested_state(self, size: int) -> bytearray:
        """Return the state of nested virtualisation, a packed kvm_nested_state.

        `size` is the most that it can take: what /dev/kvm says to KVM_CAP_NESTED_STATE.
        KVM_GET_NESTED_STATE, api.rst 4.114.
        """
        layout = uapi.kvm_nested_state
        buffer = layout.room(max(0, size - layout.size), size=size)
        self.ioctl(uapi.KVM_GET_NESTED_STATE, buffer)
        del buffer[layout.unpack(buffer).size :]
        return buffer

    def set_nested_state(self, data: bytes | bytearray) -> None:
        """Set the state of nested virtualisation from what `get_nested_state` returned.

        Needs KVM_CAP_NESTED_STATE.  Raises KVMError: EINVAL.  KVM_SET_NESTED_STATE, api.rst 4.115.
        """
        size = uapi.kvm_nested_state.unpack(data).size if len(data) >= 128 else 0
        if not 128 <= size <= len(data):
            raise ConfigError(f"{len(data)} bytes are no kvm_nested_state")
        self.ioctl(uapi.KVM_SET_NESTED_STATE, bytearray(data))

    def get_one_reg(self, id: int) -> int:
        """Return one register by its id, whose size field says how wide it is.

        Needs KVM_CAP_ONE_REG.  Raises KVMError: ENOENT or EINVAL for an unknown id.
        KVM_GET_ONE_REG, api.rst 4.69.
        """
        data = bytearray(_LARGEST_REGISTER)
        value = {"id": id, "addr": address_of(data)}
        self.ioctl_write(uapi.KVM_GET_ONE_REG, uapi.kvm_one_reg, value)
        return int.from_bytes(data[: _register_size(id)], "little")

    def set_one_reg(self, id: int, value: int) -> None:
        """Set one register by its id.

        Needs KVM_CAP_ONE_REG.  KVM_SET_ONE_REG, api.rst 4.68.
        """
        data = bytearray(bytes_of(value, _register_size(id)))
        fields = {"id": id, "addr": address_of(data)}
        self.ioctl_write(uapi.KVM_SET_ONE_REG, uapi.kvm_one_reg, fields)

    def get_reg_list(self) -> list[int]:
        """Return the ids of the registers that `get_one_reg` knows, MSRs apart.

        Needs KVM_CAP_ONE_REG.  KVM_GET_REG_LIST, api.rst 4.84.
        """
        buffer = self.ioctl_growing(uapi.KVM_GET_REG_LIST, uapi.kvm_reg_list, 16)
        ids: list[int] = uapi.kvm_reg_list.unpack(buffer).reg
        return ids

    def tpr_access_reporting(self, enabled: bool) -> None:
        """Exit with KVM_EXIT_TPR_ACCESS when the guest accesses its task priority register.

        Needs KVM_CAP_VAPIC and an in-kernel local APIC.  KVM_TPR_ACCESS_REPORTING.
        """
        value = {"enabled": int(enabled)}
        self.ioctl_write(uapi.KVM_TPR_ACCESS_REPORTING, uapi.kvm_tpr_access_ctl, value)

    def set_vapic_addr(self, vapic_addr: int) -> None:
        """Keep a copy of the task priority at a guest-physical address, for patched guests.

        Needs KVM_CAP_VAPIC and an in-kernel local APIC.  KVM_SET_VAPIC_ADDR.
        """
        self.ioctl_write(uapi.KVM_SET_VAPIC_ADDR, uapi.kvm_vapic_addr, {"vapic_addr": vapic_addr})

    def setup_mce(self, mcg_cap: int) -> None:
        """Give the vCPU machine check banks: `mcg_cap` as `System.mce_cap_supported` returns.

        Needs KVM_CAP_MCE.  Raises KVMError: EINVAL for bits that are not supported.
        KVM_X86_SETUP_MCE, api.rst 4.105.
        """
        self.ioctl(uapi.KVM_X86_SETUP_MCE, bytearray(bytes_of(mcg_cap, 8)))

    def set_mce(self, value: Fields) -> None:
        """Inject a machine check, a kvm_x86_mce.

        Needs KVM_CAP_MCE.  Raises KVMError: EINVAL for a bank or status that does not fit.
        KVM_X86_SET_MCE, api.rst 4.106.
        """
        self.ioctl_write(uapi.KVM_X86_SET_MCE, uapi.kvm_x86_mce, value)


def _register_size(id: int) -> int:
    return 1 << ((id & KVM_REG_SIZE_MASK) >> KVM_REG_SIZE_SHIFT)
