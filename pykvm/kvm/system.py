"""/dev/kvm itself: what the host's KVM offers, and the making of VMs."""

from __future__ import annotations

import errno
import os

from pykvm.descriptor import Descriptor
from pykvm.errors import HostError, KVMError, is_exhaustion, resource_error
from pykvm.kvm import uapi
from pykvm.kvm.constants import KVM_API_VERSION
from pykvm.kvm.handle import Attributes, Extensions
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pykvm.kvm.records import Record
    from pykvm.kvm.vm import VM

__all__ = ["System"]

_CPUID_ENTRIES = 256
_MSRS = 256

_ADVICE = {
    errno.ENOENT: (
        "load the module (`modprobe kvm_intel` or `modprobe kvm_amd`); if that fails, switch VT-x "
        "or SVM on in the firmware; in a container, pass the device in (`--device /dev/kvm`)"
    ),
    errno.EACCES: (
        "join the group that owns it (`usermod -aG kvm $USER`, then log in again); in a container, "
        "pass the device in with `--device /dev/kvm`"
    ),
    errno.ENODEV: "load the module: `modprobe kvm_intel` or `modprobe kvm_amd`",
    errno.EBUSY: "another hypervisor (VirtualBox, VMware) holds VT-x or SVM",
}
_ADVICE[errno.EPERM] = _ADVICE[errno.EACCES]
_ADVICE[errno.ENXIO] = _ADVICE[errno.ENODEV]
_ADVICE[errno.ENOTDIR] = _ADVICE[errno.ENOENT]


class System(Extensions, Attributes):
    """An open /dev/kvm.

    Raises HostError, saying what to do, where `path` is missing, not permitted or not KVM.

    >>> with System() as system:  # needs /dev/kvm
    ...     system.api_version()
    12
    """

    def __init__(self, path: str = "/dev/kvm", *, warns: bool = True) -> None:
        """`warns` is False for one whose VMs warn of nothing: see `Handle`."""
        try:
            descriptor = Descriptor.open(path, os.O_RDWR)
        except OSError as error:
            if is_exhaustion(error.errno):
                raise resource_error(f"cannot open {path}", error.errno or 0) from None
            advice = _ADVICE.get(error.errno or 0, "")
            raise HostError(f"cannot open {path}: {error.strerror}", hint=advice) from None
        super().__init__(descriptor, "KVM system", warns=warns)
        try:
            version = self.api_version()
        except KVMError as error:
            self.close()
            message = f"{path} is not a KVM device: {error.strerror}"
            raise HostError(
                message, hint="the device is /dev/kvm, character device 10:232"
            ) from None
        if version != KVM_API_VERSION:
            self.close()
            raise HostError(
                f"{path} speaks version {version} of the KVM API, not {KVM_API_VERSION}",
                hint="Linux has spoken version 12 since 2.6.22: use a newer kernel",
            )
        self._mmap_size = 0

    def api_version(self) -> int:
        """Return the version of the KVM API: 12, for good.

        KVM_GET_API_VERSION, api.rst 4.1.
        """
        return self.ioctl(uapi.KVM_GET_API_VERSION)

    def create_vm(self, type: int = 0) -> VM:
        """Return a new VM, without memory or vCPUs.

        `type` is one of those that KVM_CAP_VM_TYPES offers; 0 is the ordinary one.  Raises
        KVMError: EINVAL for the type, ENOMEM, EMFILE, EBUSY where another hypervisor holds the
        processor.  KVM_CREATE_VM, api.rst 4.2.
        """
        from pykvm.kvm.vm import VM

        mmap_size = self.vcpu_mmap_size()
        descriptor = self.ioctl_open(uapi.KVM_CREATE_VM, type)
        return VM(descriptor, mmap_size, warns=self._warns)

    def vcpu_mmap_size(self) -> int:
        """Return the size in bytes of the page, and more, that a vCPU shares with its VMM.

        KVM_GET_VCPU_MMAP_SIZE, api.rst 4.5.
        """
        if not self._mmap_size:
            self._mmap_size = self.ioctl(uapi.KVM_GET_VCPU_MMAP_SIZE)
        return self._mmap_size

    def supported_cpuid(self) -> list[Record]:
        """Return the CPUID entries that host and KVM support together, as kvm_cpuid_entry2.

        Needs KVM_CAP_EXT_CPUID.  Raises KVMError: E2BIG, ENOMEM.  KVM_GET_SUPPORTED_CPUID,
        api.rst 4.46; it takes the kernel about half a millisecond.
        """
        return self._cpuid(self.supported_cpuid_packed())

    def supported_cpuid_packed(self) -> bytearray:
        """Return `supported_cpuid` as the kernel's struct kvm_cpuid2, for VCPU.set_cpuid2."""
        return self._packed_cpuid(uapi.KVM_GET_SUPPORTED_CPUID)

    def emulated_cpuid(self) -> list[Record]:
        """Return the CPUID entries of features that KVM emulates though the host lacks them.

        Needs KVM_CAP_EXT_EMUL_CPUID.  KVM_GET_EMULATED_CPUID, api.rst 4.88.
        """
        return self._cpuid(self._packed_cpuid(uapi.KVM_GET_EMULATED_CPUID))

    def supported_hv_cpuid(self) -> list[Record]:
        """Return the CPUID entries of the Hyper-V features that KVM offers.

        Needs KVM_CAP_SYS_HYPERV_CPUID.  KVM_GET_SUPPORTED_HV_CPUID, api.rst 4.118.
        """
        return self._cpuid(self._packed_cpuid(uapi.KVM_GET_SUPPORTED_HV_CPUID))

    def _packed_cpuid(self, number: int) -> bytearray:
        buffer = self.ioctl_growing(number, uapi.kvm_cpuid2, _CPUID_ENTRIES)
        count = uapi.kvm_cpuid2.count_in(buffer)
        del buffer[uapi.kvm_cpuid2.size + count * uapi.kvm_cpuid2.element_size :]
        return buffer

    def _cpuid(self, packed: bytearray) -> list[Record]:
        entries: list[Record] = uapi.kvm_cpuid2.unpack(packed).entries
        return entries

    def msr_index_list(self) -> list[int]:
        """Return the indices of the MSRs that make up a vCPU's state.

        KVM_GET_MSR_INDEX_LIST, api.rst 4.3.
        """
        return self._indices(uapi.KVM_GET_MSR_INDEX_LIST)

    def msr_feature_index_list(self) -> list[int]:
        """Return the indices of the MSRs that show features, to be read with `get_msrs`.

        Needs KVM_CAP_GET_MSR_FEATURES.  KVM_GET_MSR_FEATURE_INDEX_LIST, api.rst 4.3.
        """
        return self._indices(uapi.KVM_GET_MSR_FEATURE_INDEX_LIST)

    def _indices(self, number: int) -> list[int]:
        buffer = self.ioctl_growing(number, uapi.kvm_msr_list, _MSRS)
        indices: list[int] = uapi.kvm_msr_list.unpack(buffer).indices
        return indices

    def get_msrs(self, indices: Iterable[int], *, partial: bool = False) -> dict[int, int]:
        """Return the values of feature MSRs by index.

        Needs KVM_CAP_GET_MSR_FEATURES.  Raises KVMError naming the first MSR that KVM refuses,
        unless `partial`: then the MSRs before it.  KVM_GET_MSRS, api.rst 4.18.
        """
        from pykvm.kvm.msrs import read_msrs

        return read_msrs(self, indices, partial=partial)

    def mce_cap_supported(self) -> int:
        """Return the supported bits of MCG_CAP, the number of banks in the low eight.

        Needs KVM_CAP_MCE.  KVM_X86_GET_MCE_CAP_SUPPORTED, api.rst 4.104.
        """
        buffer = bytearray(8)
        self.ioctl(uapi.KVM_X86_GET_MCE_CAP_SUPPORTED, buffer)
        return int.from_bytes(buffer, "little")
