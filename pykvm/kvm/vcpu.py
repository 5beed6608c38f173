"""A virtual CPU: running it, its registers, CPUID and MSRs, injecting events, debugging it."""

from __future__ import annotations

import mmap
import os
import struct
from contextlib import suppress

from pykvm._core import ffi, lib
from pykvm.errors import ConfigError, resource_error
from pykvm.kvm import uapi
from pykvm.kvm.constants import KVM_DIRTY_LOG_PAGE_OFFSET, KVM_GUESTDBG_ENABLE
from pykvm.kvm.handle import Attributes, Enabling
from pykvm.kvm.vcpu_state import State
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pykvm.descriptor import Descriptor
    from pykvm.kvm.handle import Fields
    from pykvm.kvm.records import Record

__all__ = ["VCPU"]

_CPUID_ENTRIES = 256
_SIGSET_BYTES = 8

# An entry that the kernel has not written; CPUID has no such leaf.
_UNWRITTEN = b"\xff" * uapi.kvm_cpuid_entry2.size


def _put_mapping(page: mmap.mmap, fd: int) -> None:
    with ffi.from_buffer(page) as place:
        error = -lib.pykvm_put_mapping(place, len(page), fd)
    if error:
        raise OSError(error, os.strerror(error))


def _unmap(page: mmap.mmap) -> None:
    try:
        page.close()
    except BufferError:
        # Without memory for a mapping the kernel's page stays, and the vCPU, until they let go.
        with suppress(OSError):
            _put_mapping(page, -1)


class VCPU(State, Enabling, Attributes):
    """A vCPU, made by `VM.create_vcpu`; its ioctls belong to the thread that runs it.

    `id` is its number in the VM, `run_page` the mapping that it shares with the kernel: kvm_run,
    and after it the pages of port data and of the coalesced ring, `xsave_size` the size of its
    extended state (KVM_CAP_XSAVE2).
    """

    def __init__(
        self,
        descriptor: Descriptor,
        id: int,
        mmap_size: int,
        xsave_size: int = 0,
        *,
        warns: bool = True,
    ) -> None:
        super().__init__(descriptor, "vCPU", warns=warns)
        self.id = id
        self.xsave_size = max(xsave_size, uapi.kvm_xsave.size)
        # Memory of our own, in which the kernel's lies while the vCPU is open: a view of it, in
        # another thread or a traceback, neither keeps the vCPU alive nor points to nothing.
        try:
            self._page: mmap.mmap | None = mmap.mmap(-1, mmap_size)
            _put_mapping(self._page, self.fd)
        except OSError as error:
            self.close()
            raise resource_error(
                f"cannot map the run page of vCPU {id}", error.errno or 0
            ) from None

    @property
    def run_page(self) -> mmap.mmap:
        """The mapping of struct kvm_run.  Raises ClosedError once the vCPU is closed."""
        if self._page is None:
            self.fd  # noqa: B018  raises
            raise ConfigError("this vCPU has no run page")
        return self._page

    def close(self) -> None:
        """Unmap the run page and close the vCPU.

        Views that others hold of the page show empty memory from now on.
        """
        # An exception may come in anywhere: what is not done then, the next call does.
        page = getattr(self, "_page", None)
        try:
            if page is not None:
                _unmap(page)
                self._page = None
        finally:
            super().close()

    def run(self) -> None:
        """Run the guest until an exit; `run_page` then says why, by its exit_reason.

        Raises KVMError: EINTR for a signal or immediate_exit, EAGAIN for a vCPU that just left
        INIT (run it again), EFAULT with KVM_EXIT_MEMORY_FAULT, and others, at which exit_reason is
        that of an earlier run.  The GIL is released meanwhile.  KVM_RUN, api.rst 4.10 and 5.
        """
        self.ioctl(uapi.KVM_RUN)

    def get_regs(self) -> Record:
        """Return the general registers, RIP and RFLAGS as kvm_regs.

        KVM_GET_REGS, api.rst 4.11.
        """
        return self.ioctl_read(uapi.KVM_GET_REGS, uapi.kvm_regs)

    def set_regs(self, value: Fields) -> None:
        """Set the general registers, RIP and RFLAGS; a mapping's missing ones become 0.

        KVM_SET_REGS, api.rst 4.12.
        """
        self.ioctl_write(uapi.KVM_SET_REGS, uapi.kvm_regs, value)

    def get_sregs(self) -> Record:
        """Return segments, descriptor tables, control registers and EFER as kvm_sregs.

        KVM_GET_SREGS, api.rst 4.13.
        """
        return self.ioctl_read(uapi.KVM_GET_SREGS, uapi.kvm_sregs)

    def set_sregs(self, value: Fields) -> None:
        """Set segments, descriptor tables, control registers and EFER.

        Raises KVMError: EINVAL for control registers that contradict each other.  KVM_SET_SREGS,
        api.rst 4.14.
        """
        self.ioctl_write(uapi.KVM_SET_SREGS, uapi.kvm_sregs, value)

    def get_sregs2(self) -> Record:
        """Return the system registers as kvm_sregs2: without interrupts, with PAE's PDPTRs.

        Needs KVM_CAP_SREGS2.  KVM_GET_SREGS2, api.rst 4.131.
        """
        return self.ioctl_read(uapi.KVM_GET_SREGS2, uapi.kvm_sregs2)

    def set_sregs2(self, value: Fields) -> None:
        """Set the system registers from a kvm_sregs2.

        Needs KVM_CAP_SREGS2.  Raises KVMError as `set_sregs`.  KVM_SET_SREGS2, api.rst 4.132.
        """
        self.ioctl_write(uapi.KVM_SET_SREGS2, uapi.kvm_sregs2, value)

    def get_msrs(self, indices: Iterable[int], *, partial: bool = False) -> dict[int, int]:
        """Return the values of MSRs by index.

        Raises KVMError naming the first MSR that KVM refuses, unless `partial`: then those before
        it.  E2BIG for more than 256 at a time.  KVM_GET_MSRS, api.rst 4.18.
        """
        from pykvm.kvm.msrs import read_msrs

        return read_msrs(self, indices, partial=partial)

    def set_msrs(self, values: Mapping[int, int], *, partial: bool = False) -> int:
        """Set MSRs, given as {index: value}, in that order; return how many.

        Raises KVMError naming the first MSR that KVM refuses, those before it being set, unless
        `partial`.  KVM_SET_MSRS, api.rst 4.19.
        """
        from pykvm.kvm.msrs import write_msrs

        return write_msrs(self, values, partial=partial)

    def set_cpuid2(self, entries: Iterable[Fields] | bytes | bytearray) -> None:
        """Set what CPUID shows the guest.

        `entries` are kvm_cpuid_entry2 (KVM_CPUID_FLAG_SIGNIFCANT_INDEX where `index` counts), or
        a packed kvm_cpuid2 as `System.supported_cpuid_packed` returns it.  Needs
        KVM_CAP_EXT_CPUID.  Raises KVMError: EINVAL after the vCPU has run, E2BIG.
        KVM_SET_CPUID2, api.rst 4.20.
        """
        if isinstance(entries, bytes | bytearray):
            self.ioctl(uapi.KVM_SET_CPUID2, uapi.kvm_cpuid2.complete(entries))
            return
        value = {"entries": list(entries)}
        self.ioctl_write(uapi.KVM_SET_CPUID2, uapi.kvm_cpuid2, value)

    def get_cpuid2(self) -> list[Record]:
        """Return what CPUID shows the guest, as kvm_cpuid_entry2.

        Needs KVM_CAP_EXT_CPUID.  KVM_GET_CPUID2, api.rst 4.20.
        """
        entries: list[Record] = uapi.kvm_cpuid2.unpack(self.get_cpuid2_packed()).entries
        return entries

    def get_cpuid2_packed(self) -> bytearray:
        """Return `get_cpuid2` as the kernel's struct kvm_cpuid2."""
        number, layout = uapi.KVM_GET_CPUID2, uapi.kvm_cpuid2
        buffer = self.ioctl_growing(number, layout, _CPUID_ENTRIES, fill=0xFF)
        # Linux before 6.3 leaves nent as it was.
        while buffer.endswith(_UNWRITTEN):
            del buffer[-len(_UNWRITTEN) :]
        count = (len(buffer) - layout.size) // len(_UNWRITTEN)
        buffer[:4] = count.to_bytes(4, "little")
        return buffer

    def set_cpuid(self, entries: Iterable[Fields]) -> None:
        """Set what CPUID shows the guest, in entries without an index (kvm_cpuid_entry).

        KVM_SET_CPUID, api.rst 4.20; `set_cpuid2` says more.
        """
        self.ioctl_write(uapi.KVM_SET_CPUID, uapi.kvm_cpuid, {"entries": list(entries)})

    def supported_hv_cpuid(self) -> list[Record]:
        """Return the CPUID entries of the Hyper-V features that this vCPU can have.

        Needs KVM_CAP_HYPERV_CPUID.  KVM_GET_SUPPORTED_HV_CPUID, api.rst 4.118.
        """
        number = uapi.KVM_GET_SUPPORTED_HV_CPUID
        buffer = self.ioctl_growing(number, uapi.kvm_cpuid2, _CPUID_ENTRIES)
        entries: list[Record] = uapi.kvm_cpuid2.unpack(buffer).entries
        return entries

    def interrupt(self, irq: int) -> None:
        """Queue interrupt vector `irq`, to be delivered at the next entry.

        For VMs without an in-kernel irqchip.  KVM checks neither RFLAGS.IF nor a vector already
        queued: call it when kvm_run.ready_for_interrupt_injection says so.  Raises KVMError:
        EEXIST if one is queued, EINVAL for a vector above 255, ENXIO with an irqchip.
        KVM_INTERRUPT, api.rst 4.16.
        """
        layout = uapi.kvm_interrupt
        try:
            # Every interrupt comes this way: `layout.pack` takes as long as all the rest.
            data = bytearray(layout.packer.pack(irq))
        except struct.error:
            data = layout.pack({"irq": irq})
        self.ioctl(uapi.KVM_INTERRUPT, data)

    def nmi(self) -> None:
        """Queue a non-maskable interrupt.

        Needs KVM_CAP_USER_NMI.  KVM_NMI, api.rst 4.64.
        """
        self.ioctl(uapi.KVM_NMI)

    def smi(self) -> None:
        """Queue a system management interrupt.

        Needs KVM_CAP_X86_SMM.  KVM_SMI, api.rst 4.96.
        """
        self.ioctl(uapi.KVM_SMI)

    def translate(self, linear_address: int) -> Record:
        """Return where the guest's page tables map an address, as kvm_translation.

        `valid` says whether they do; `writeable` and `usermode` are not filled in by KVM.
        KVM_TRANSLATE, api.rst 4.15.
        """
        data = uapi.kvm_translation.pack({"linear_address": linear_address})
        self.ioctl(uapi.KVM_TRANSLATE, data)
        return uapi.kvm_translation.unpack(data)

    def set_signal_mask(self, blocked: Iterable[int] | None) -> None:
        """Block exactly the signals `blocked` while the guest runs; None leaves the thread's mask.

        A signal that the thread blocks and this mask does not ends KVM_RUN with EINTR, without
        its handler having to run.  KVM_SET_SIGNAL_MASK, api.rst 4.21.
        """
        if blocked is None:
            self.ioctl(uapi.KVM_SET_SIGNAL_MASK)
            return
        mask = 0
        for number in blocked:
            if not 1 <= number <= 8 * _SIGSET_BYTES:
                raise ConfigError(f"there is no signal {number}")
            mask |= 1 << (number - 1)
        value = {"sigset": mask.to_bytes(_SIGSET_BYTES, "little")}
        self.ioctl_write(uapi.KVM_SET_SIGNAL_MASK, uapi.kvm_signal_mask, value)

    def set_guest_debug(self, control: int, debugreg: Sequence[int] = ()) -> None:
        """Single-step or stop the guest at breakpoints (KVM_EXIT_DEBUG).

        `control` is KVM_GUESTDBG_..., KVM_GUESTDBG_ENABLE being implied by any; 0 ends it.
        `debugreg` are DR0 to DR7 for KVM_GUESTDBG_USE_HW_BP, as far as given.  Needs
        KVM_CAP_SET_GUEST_DEBUG (KVM_CAP_SET_GUEST_DEBUG2 returns the flags).  Raises KVMError:
        EBUSY to inject while an exception is pending.  KVM_SET_GUEST_DEBUG, api.rst 4.87.
        """
        if len(debugreg) > 8:
            raise ConfigError(f"there are 8 debug registers, not {len(debugreg)}")
        registers = [*debugreg, *[0] * (8 - len(debugreg))]
        enabled = control | KVM_GUESTDBG_ENABLE if control else 0
        value = {"control": enabled, "arch": {"debugreg": registers}}
        self.ioctl_write(uapi.KVM_SET_GUEST_DEBUG, uapi.kvm_guest_debug, value)

    def set_tsc_khz(self, khz: int) -> None:
        """Set the frequency of the guest's TSC in kHz.

        Needs KVM_CAP_TSC_CONTROL, unless it is about the host's.  KVM_SET_TSC_KHZ, api.rst 4.55.
        """
        self.ioctl_word(uapi.KVM_SET_TSC_KHZ, khz)

    def get_tsc_khz(self) -> int:
        """Return the frequency of the guest's TSC in kHz.

        Needs KVM_CAP_GET_TSC_KHZ.  Raises KVMError: EIO where the host's TSC is unstable.
        KVM_GET_TSC_KHZ, api.rst 4.56.
        """
        return self.ioctl(uapi.KVM_GET_TSC_KHZ)

    def kvmclock_ctrl(self) -> None:
        """Tell the guest, through its kvmclock, that the VMM stopped it (for its watchdogs).

        Needs KVM_CAP_KVMCLOCK_CTRL.  Raises KVMError: EINVAL for a guest without kvmclock.
        KVM_KVMCLOCK_CTRL, api.rst 4.70.
        """
        self.ioctl(uapi.KVM_KVMCLOCK_CTRL)

    def pre_fault_memory(self, gpa: int, size: int) -> Record:
        """Map guest memory before the guest touches it; `size` in bytes.

        Returns kvm_pre_fault_memory with what is left to do: KVM stops early on a signal.  Needs
        KVM_CAP_PRE_FAULT_MEMORY.  KVM_PRE_FAULT_MEMORY, api.rst 4.143.
        """
        data = uapi.kvm_pre_fault_memory.pack({"gpa": gpa, "size": size})
        self.ioctl(uapi.KVM_PRE_FAULT_MEMORY, data)
        return uapi.kvm_pre_fault_memory.unpack(data)

    def map_dirty_ring(self, size: int) -> mmap.mmap:
        """Return the mapping of this vCPU's dirty ring, an array of kvm_dirty_gfn.

        `size` in bytes is what KVM_CAP_DIRTY_LOG_RING was enabled with.  api.rst 8.29.
        """
        return mmap.mmap(self.fd, size, offset=KVM_DIRTY_LOG_PAGE_OFFSET * mmap.PAGESIZE)
