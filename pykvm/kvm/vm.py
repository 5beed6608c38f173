"""A virtual machine: its memory, its clock, its vCPUs and what they may do."""

from __future__ import annotations

from contextlib import suppress
from errno import ENOENT

from pykvm._core import lib
from pykvm.descriptor import Descriptor
from pykvm.errors import ConfigError, KVMError
from pykvm.kvm import uapi
from pykvm.kvm.constants import (
    KVM_CREATE_DEVICE_TEST,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
    KVM_HYPERV_EVENTFD_DEASSIGN,
    KVM_MSR_FILTER_MAX_RANGES,
)
from pykvm.kvm.handle import Enabling, Extensions, address_of, bytes_of, fd_of
from pykvm.kvm.vm_interrupts import Interrupts
from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import unsigned

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from pykvm.kvm.codec import Buffer
    from pykvm.kvm.device import Device
    from pykvm.kvm.handle import Fields
    from pykvm.kvm.records import Record
    from pykvm.kvm.vcpu import VCPU

__all__ = ["VM"]

PAGE = 4096


# By number: to import the enum of all capabilities costs a millisecond at every start.
KVM_CAP_XSAVE2 = 208
KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 = 168


class VM(Interrupts, Enabling, Extensions):
    """A VM, made by `System.create_vm`.

    `close` closes its vCPUs and devices too; the kernel frees the VM with the last of them.
    """

    def __init__(self, descriptor: Descriptor, vcpu_mmap_size: int, *, warns: bool = True) -> None:
        super().__init__(descriptor, "VM", warns=warns)
        self._vcpu_mmap_size = vcpu_mmap_size
        self._children: list[VCPU | Device] = []
        self._slot_pages: dict[int, int] = {}
        # None until it was tried.
        self._manual_protect: bool | None = None

    def close(self) -> None:
        """Close the vCPUs and devices of this VM, then the VM."""
        # Not taken out of the list before: what an exception leaves open the next call closes.
        for child in self._children:
            child.close()
        self._children.clear()
        super().close()

    def create_vcpu(self, id: int) -> VCPU:
        """Return a new vCPU in its power-on state; `id` is its APIC ID.

        Raises KVMError: EEXIST for an id that is taken, EINVAL for one at or above
        KVM_CAP_MAX_VCPU_ID or for more than KVM_CAP_MAX_VCPUS vCPUs.  KVM_CREATE_VCPU, api.rst 4.7.
        """
        from pykvm.kvm.vcpu import VCPU

        xsave_size = self.check_extension(KVM_CAP_XSAVE2)
        descriptor = self.ioctl_open(uapi.KVM_CREATE_VCPU, id)
        vcpu = VCPU(descriptor, id, self._vcpu_mmap_size, xsave_size, warns=self._warns)
        self._children.append(vcpu)
        return vcpu

    def set_user_memory_region(
        self,
        slot: int,
        flags: int,
        guest_phys_addr: int,
        memory_size: int,
        userspace_addr: int,
    ) -> None:
        """Map `memory_size` bytes of this process at `userspace_addr` to `guest_phys_addr`.

        All but `slot` and `flags` (KVM_MEM_...) in bytes and page-aligned; bits 16-31 of `slot`
        are the address space (KVM_CAP_MULTI_ADDRESS_SPACE).  A size of 0 deletes the slot.  Raises
        KVMError: EEXIST for an overlap, EINVAL for what is not aligned, not mapped, or a size
        changed.  KVM_SET_USER_MEMORY_REGION, api.rst 4.35.
        """
        value = {
            "slot": slot,
            "flags": flags,
            "guest_phys_addr": guest_phys_addr,
            "memory_size": memory_size,
            "userspace_addr": userspace_addr,
        }
        layout = uapi.kvm_userspace_memory_region
        self.ioctl_write(uapi.KVM_SET_USER_MEMORY_REGION, layout, value)
        self._slot_pages[slot] = memory_size // PAGE

    def set_user_memory_region2(self, region: Fields) -> None:
        """Map memory as `set_user_memory_region` does, or backed by a guest_memfd.

        `region` is a kvm_userspace_memory_region2.  Needs KVM_CAP_USER_MEMORY2.
        KVM_SET_USER_MEMORY_REGION2, api.rst 4.140.
        """
        packed = uapi.kvm_userspace_memory_region2.pack(region)
        self.ioctl(uapi.KVM_SET_USER_MEMORY_REGION2, packed)
        value = uapi.kvm_userspace_memory_region2.unpack(packed)
        self._slot_pages[value.slot] = value.memory_size // PAGE

    def create_guest_memfd(self, size: int, flags: int = 0) -> Descriptor:
        """Return a file descriptor of `size` bytes of memory bound to this VM; close it yourself.

        `flags` are GUEST_MEMFD_FLAG_..., as KVM_CAP_GUEST_MEMFD_FLAGS offers.  Needs
        KVM_CAP_GUEST_MEMFD.  KVM_CREATE_GUEST_MEMFD, api.rst 4.142.
        """
        packed = uapi.kvm_create_guest_memfd.pack({"size": size, "flags": flags})
        return self.ioctl_open(uapi.KVM_CREATE_GUEST_MEMFD, address_of(packed))

    def set_memory_attributes(self, address: int, size: int, attributes: int) -> None:
        """Make guest-physical memory private (KVM_MEMORY_ATTRIBUTE_PRIVATE) or shared (0).

        `address` and `size` in bytes, page-aligned.  Needs KVM_CAP_MEMORY_ATTRIBUTES, whose value
        is the mask of attributes.  KVM_SET_MEMORY_ATTRIBUTES, api.rst 4.141.
        """
        value = {"address": address, "size": size, "attributes": attributes}
        layout = uapi.kvm_memory_attributes
        self.ioctl_write(uapi.KVM_SET_MEMORY_ATTRIBUTES, layout, value)

    def get_dirty_log(self, slot: int) -> bytearray:
        """Return the bitmap of the pages of `slot` written since the last call, bit 0 first.

        The bitmap comes in whole 64-bit words.  The slot needs KVM_MEM_LOG_DIRTY_PAGES and must
        have been set through this object, which knows its size.  Raises KVMError: ENOENT for a
        slot without a log.  KVM_GET_DIRTY_LOG, api.rst 4.8.
        """
        pages = self._slot_pages.get(slot, 0)
        bitmap = bytearray((pages + 63) // 64 * 8)
        if not bitmap:
            raise KVMError("KVM_GET_DIRTY_LOG", ENOENT, detail=f"there is no slot {slot}")
        value = {"slot": slot, "dirty_bitmap": address_of(bitmap)}
        self.ioctl_write(uapi.KVM_GET_DIRTY_LOG, uapi.kvm_dirty_log, value)
        return bitmap

    def clear_dirty_log(self, slot: int, first_page: int, num_pages: int, bitmap: Buffer) -> None:
        """Clear the pages set in `bitmap` from the dirty log of `slot`, and protect them again.

        `first_page` is a multiple of 64, `num_pages` too unless it reaches the slot's end.  Needs
        KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, enabled.  KVM_CLEAR_DIRTY_LOG, api.rst 4.117.
        """
        data = bytearray(bitmap)
        if len(data) * 8 < num_pages:
            raise ConfigError(f"a bitmap of {len(data)} bytes does not cover {num_pages} pages")
        value = {
            "slot": slot,
            "num_pages": num_pages,
            "first_page": first_page,
            "dirty_bitmap": address_of(data),
        }
        self.ioctl_write(uapi.KVM_CLEAR_DIRTY_LOG, uapi.kvm_clear_dirty_log, value)

    def merge_dirty_log(self, slot: int, pages: Any) -> None:
        """Mark in a struct pykvm_pages what was written to `slot` since the last call.

        The log is read and cleared in one call of C, so that no exception loses what it had.
        Enables KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 where it is offered: KVM_GET_DIRTY_LOG then copies
        a large bitmap without walking it.  Raises KVMError: ENOENT for a slot without a log.
        """
        if self._manual_protect is None:
            self._manual_protect = self._protect_manually()
        error = -lib.pykvm_merge_dirty_log(pages, self.fd, slot, self._manual_protect)
        if error:
            raise self._refused(uapi.KVM_GET_DIRTY_LOG, error)

    def _protect_manually(self) -> bool:
        with suppress(KVMError):
            self.enable_cap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE)
            return True
        return False

    def reset_dirty_rings(self) -> int:
        """Take back the harvested entries of all dirty rings; return how many there were.

        Needs KVM_CAP_DIRTY_LOG_RING, enabled.  KVM_RESET_DIRTY_RINGS, api.rst 8.29.
        """
        return self.ioctl(uapi.KVM_RESET_DIRTY_RINGS)

    def set_nr_mmu_pages(self, pages: int) -> None:
        """Limit the shadow page tables of this VM to `pages` pages of 4096 bytes.

        Needs KVM_CAP_MMU_SHADOW_CACHE_CONTROL.  KVM_SET_NR_MMU_PAGES.
        """
        self.ioctl_word(uapi.KVM_SET_NR_MMU_PAGES, pages)

    def get_nr_mmu_pages(self) -> int:
        """Return the limit set by `set_nr_mmu_pages`; newer kernels no longer report it.

        KVM_GET_NR_MMU_PAGES, deprecated.
        """
        return self.ioctl(uapi.KVM_GET_NR_MMU_PAGES)

    def set_tss_addr(self, address: int) -> None:
        """Give Intel hosts three pages of guest-physical memory below 4 GiB for real mode.

        No memory slot may lie there.  Needs KVM_CAP_SET_TSS_ADDR.  Raises KVMError: EINVAL for an
        address above 0xffffd000.  KVM_SET_TSS_ADDR, api.rst 4.36.
        """
        if 1 << 31 <= address < 1 << 32:
            # As a negative C int, which a zero-extended register turns back into the address.  KVM
            # refuses it if the compiler of fcntl did otherwise; the other way imports ctypes.
            with suppress(KVMError):
                self.ioctl(uapi.KVM_SET_TSS_ADDR, address - (1 << 32))
                return
        self.ioctl_word(uapi.KVM_SET_TSS_ADDR, address)

    def set_identity_map_addr(self, address: int) -> None:
        """Give Intel hosts one page of guest-physical memory for their identity page table.

        0 means the default, 0xfffbc000.  Needs KVM_CAP_SET_IDENTITY_MAP_ADDR.  Raises KVMError:
        EINVAL once there are vCPUs.  KVM_SET_IDENTITY_MAP_ADDR, api.rst 4.40.
        """
        self.ioctl(uapi.KVM_SET_IDENTITY_MAP_ADDR, bytearray(bytes_of(address, 8)))

    def set_boot_cpu_id(self, id: int) -> None:
        """Choose the vCPU that boots; without it, vCPU 0 does.

        Needs KVM_CAP_SET_BOOT_CPU_ID.  Raises KVMError: EBUSY once there are vCPUs.
        KVM_SET_BOOT_CPU_ID, api.rst 4.41.
        """
        self.ioctl_word(uapi.KVM_SET_BOOT_CPU_ID, id)

    def get_clock(self) -> Record:
        """Return the VM's kvmclock as kvm_clock_data: `clock` in nanoseconds.

        `flags` (KVM_CLOCK_...) say which of `realtime` and `host_tsc` are there.  Needs
        KVM_CAP_ADJUST_CLOCK.  KVM_GET_CLOCK, api.rst 4.29.
        """
        return self.ioctl_read(uapi.KVM_GET_CLOCK, uapi.kvm_clock_data)

    def set_clock(self, value: Fields) -> None:
        """Set the VM's kvmclock; with KVM_CLOCK_REALTIME in `flags`, as of `realtime`.

        Of the other flags that `get_clock` returns none may be set.  Needs KVM_CAP_ADJUST_CLOCK.
        KVM_SET_CLOCK, api.rst 4.30.
        """
        self.ioctl_write(uapi.KVM_SET_CLOCK, uapi.kvm_clock_data, value)

    def set_tsc_khz(self, khz: int) -> None:
        """Set the TSC frequency, in kHz, of the vCPUs made from now on.

        Needs KVM_CAP_VM_TSC_CONTROL.  KVM_SET_TSC_KHZ, api.rst 4.55.
        """
        self.ioctl_word(uapi.KVM_SET_TSC_KHZ, khz)

    def get_tsc_khz(self) -> int:
        """Return the TSC frequency of future vCPUs in kHz.

        Needs KVM_CAP_VM_TSC_CONTROL.  KVM_GET_TSC_KHZ, api.rst 4.56.
        """
        return self.ioctl(uapi.KVM_GET_TSC_KHZ)

    def set_msr_filter(
        self, ranges: Iterable[tuple[int, int, int, Buffer]] = (), *, flags: int = 0
    ) -> None:
        """Decide which MSRs the guest may access; what is denied is #GP, or an exit.

        `ranges` are up to 16 of (KVM_MSR_FILTER_READ|WRITE, first MSR, number of MSRs, bitmap), a
        set bit allowing; `flags` is what holds outside of them, KVM_MSR_FILTER_DEFAULT_ALLOW or
        _DENY.  No ranges and flags 0 remove the filter.  Needs KVM_CAP_X86_MSR_FILTER;
        KVM_CAP_X86_USER_SPACE_MSR with KVM_MSR_EXIT_REASON_FILTER makes exits of denials.
        KVM_X86_SET_MSR_FILTER, api.rst 4.126.
        """
        given = list(ranges)
        if len(given) > KVM_MSR_FILTER_MAX_RANGES:
            raise ConfigError(f"{len(given)} MSR ranges: KVM takes {KVM_MSR_FILTER_MAX_RANGES}")
        bitmaps, entries = [], list[dict[str, int]]()
        for range_flags, base, nmsrs, bitmap in given:
            data = bytearray(bitmap)
            if len(data) * 8 < nmsrs:
                raise ConfigError(f"a bitmap of {len(data)} bytes does not cover {nmsrs} MSRs")
            bitmaps.append(data)
            entries.append(
                {"flags": range_flags, "nmsrs": nmsrs, "base": base, "bitmap": address_of(data)}
            )
        entries += [{}] * (KVM_MSR_FILTER_MAX_RANGES - len(entries))
        value = {"flags": flags, "ranges": entries}
        self.ioctl_write(uapi.KVM_X86_SET_MSR_FILTER, uapi.kvm_msr_filter, value)

    def set_pmu_event_filter(
        self, action: int, events: Iterable[int], *, fixed_counter_bitmap: int = 0, flags: int = 0
    ) -> None:
        """Allow only these performance events, or all but these (KVM_PMU_EVENT_ALLOW, _DENY).

        Needs KVM_CAP_PMU_EVENT_FILTER.  KVM_SET_PMU_EVENT_FILTER, api.rst 4.120.
        """
        value = {
            "action": action,
            "fixed_counter_bitmap": fixed_counter_bitmap,
            "flags": flags,
            "events": list(events),
        }
        self.ioctl_write(uapi.KVM_SET_PMU_EVENT_FILTER, uapi.kvm_pmu_event_filter, value)

    def hyperv_eventfd(self, conn_id: int, fd: int | object, *, deassign: bool = False) -> None:
        """Signal an eventfd when the guest makes HVCALL_SIGNAL_EVENT with connection `conn_id`.

        Needs KVM_CAP_HYPERV_EVENTFD.  Raises KVMError: EEXIST, ENOENT, EINVAL.
        KVM_HYPERV_EVENTFD, api.rst 4.113.
        """
        flags = KVM_HYPERV_EVENTFD_DEASSIGN if deassign else 0
        value = {"conn_id": conn_id, "fd": fd_of(fd), "flags": flags}
        self.ioctl_write(uapi.KVM_HYPERV_EVENTFD, uapi.kvm_hyperv_eventfd, value)

    def create_device(self, type: int) -> Device:
        """Return a new in-kernel device of a KVM_DEV_TYPE_...

        Needs KVM_CAP_DEVICE_CTRL.  Raises KVMError: ENODEV for a type that the host does not
        have, EEXIST for a second one.  KVM_CREATE_DEVICE, api.rst 4.79.
        """
        from pykvm.kvm.device import Device

        try:
            descriptor = Descriptor.kvm_device(self.fd, unsigned("type", type, 32))
        except OSError as error:
            raise self._refused(uapi.KVM_CREATE_DEVICE, error.errno or 0) from None
        device = Device(descriptor, type, warns=self._warns)
        self._children.append(device)
        return device

    def has_device(self, type: int) -> bool:
        """Return whether `create_device` would know the type.

        KVM_CREATE_DEVICE with KVM_CREATE_DEVICE_TEST, api.rst 4.79.
        """
        value: Mapping[str, Any] = {"type": type, "flags": KVM_CREATE_DEVICE_TEST}
        try:
            self.ioctl_write(uapi.KVM_CREATE_DEVICE, uapi.kvm_create_device, value)
        except KVMError:
            return False
        return True
