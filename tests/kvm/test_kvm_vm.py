"""VMs: memory, clock, filters, devices, and closing with all that hangs on them."""

from __future__ import annotations

import errno
import mmap
import os

import pytest
from kvm.guest import CODE, MEMORY, Guest, require_cap

from pykvm.errors import ClosedError, ConfigError, KVMError
from pykvm.kvm import VM, Cap, ExitReason, System
from pykvm.kvm import vm as vm_module
from pykvm.kvm.constants import (
    KVM_DEV_TYPE_VFIO,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    KVM_MSR_EXIT_REASON_FILTER,
    KVM_MSR_FILTER_DEFAULT_ALLOW,
    KVM_MSR_FILTER_READ,
    KVM_PMU_EVENT_DENY,
)
from pykvm.kvm.handle import address_of
from support.resources import descriptors

pytestmark = pytest.mark.kvm


def test_closing_a_vm_closes_its_vcpus(system: System) -> None:
    before = descriptors()
    vm = system.create_vm()
    vcpus = [vm.create_vcpu(index) for index in range(3)]
    assert [vcpu.id for vcpu in vcpus] == [0, 1, 2]
    page = vcpus[0].run_page
    vm.close()
    vm.close()
    assert descriptors() == before
    assert all(vcpu.closed for vcpu in vcpus)
    with pytest.raises(ClosedError, match="this vCPU is closed"):
        vcpus[0].get_regs()
    with pytest.raises(ClosedError, match="this vCPU is closed"):
        _ = vcpus[0].run_page
    with pytest.raises(ValueError, match="mmap closed"):
        _ = page[0]


def test_a_view_of_the_run_page_keeps_it_mapped(vm: VM) -> None:
    vcpu = vm.create_vcpu(0)
    with memoryview(vcpu.run_page) as view:
        vcpu.close()
        assert view[0] == 0
    assert vcpu.closed


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_a_forgotten_vm_leaks_nothing(system: System) -> None:
    before = descriptors()
    vm = system.create_vm()
    vm.create_vcpu(0)
    del vm
    assert descriptors() == before


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_a_vcpu_in_use_survives_the_loss_of_its_vm(system: System) -> None:
    vcpu = system.create_vm().create_vcpu(0)
    with vcpu:
        assert vcpu.get_regs().rip == 0xFFF0


def test_vcpu_errors_say_what_to_do(vm: VM) -> None:
    vm.create_vcpu(0)
    with pytest.raises(KVMError, match="already has a vCPU of that id") as caught:
        vm.create_vcpu(0)
    assert caught.value.errno == errno.EEXIST
    with pytest.raises(KVMError, match="KVM_CAP_MAX_VCPU_ID"):
        vm.create_vcpu(1 << 30)


def test_memory_slots(vm: VM) -> None:
    with mmap.mmap(-1, 0x4000) as memory:
        address = address_of(memory)
        vm.set_user_memory_region(0, 0, 0, 0x2000, address)
        with pytest.raises(KVMError, match="overlaps another memory slot"):
            vm.set_user_memory_region(1, 0, 0x1000, 0x2000, address + 0x2000)
        with pytest.raises(KVMError, match="multiples of 4096"):
            vm.set_user_memory_region(1, 0, 0x2001, 0x1000, address)
        with pytest.raises(ConfigError, match=r"kvm_userspace_memory_region\.slot"):
            vm.set_user_memory_region(-1, 0, 0, 0x1000, address)
        vm.set_user_memory_region(0, 0, 0, 0, 0)
        vm.set_user_memory_region(1, 0, 0x1000, 0x2000, address)
        vm.close()


def test_guest_memfd(vm: VM) -> None:
    require_cap(vm, Cap.KVM_CAP_USER_MEMORY2)
    region = {"slot": 0, "memory_size": MEMORY}
    with mmap.mmap(-1, MEMORY) as memory:
        vm.set_user_memory_region2({**region, "userspace_addr": address_of(memory)})
        vm.set_user_memory_region2({"slot": 0})
        vm.close()


def test_guest_memfd_is_a_file_of_its_size_or_refused(vm: VM) -> None:
    if not vm.check_extension(Cap.KVM_CAP_GUEST_MEMFD):
        with pytest.raises(KVMError, match="needs KVM_CAP_GUEST_MEMFD"):
            vm.create_guest_memfd(MEMORY)
        return
    with vm.create_guest_memfd(MEMORY) as file:
        assert os.fstat(file.fileno()).st_size == MEMORY


def test_memory_attributes_or_why_not(vm: VM) -> None:
    if vm.check_extension(Cap.KVM_CAP_MEMORY_ATTRIBUTES) & KVM_MEMORY_ATTRIBUTE_PRIVATE:
        vm.set_memory_attributes(0, 0x1000, KVM_MEMORY_ATTRIBUTE_PRIVATE)
        vm.set_memory_attributes(0, 0x1000, 0)
    else:
        with pytest.raises(KVMError, match="needs KVM_CAP_MEMORY_ATTRIBUTES"):
            vm.set_memory_attributes(0, 0x1000, KVM_MEMORY_ATTRIBUTE_PRIVATE)


DIRTY = """
    C6 06 00 30 01   mov byte [0x3000], 1
    C6 06 00 50 01   mov byte [0x5000], 1
    F4               hlt
"""


def test_the_dirty_log_shows_the_pages_written(vm: VM) -> None:
    with Guest(vm, flags=KVM_MEM_LOG_DIRTY_PAGES) as guest:
        vm.get_dirty_log(0)
        guest.load(DIRTY)
        assert guest.run()[0] is ExitReason.KVM_EXIT_HLT
        log = int.from_bytes(vm.get_dirty_log(0), "little")
        # A page that KVM maps writable counts as written, and so may the code's.
        assert log & ~(1 << CODE // 0x1000) == 1 << 3 | 1 << 5
        assert vm.get_dirty_log(0) == bytes(8)
        with pytest.raises(KVMError, match="there is no slot 1"):
            vm.get_dirty_log(1)
        vm.set_user_memory_region(0, 0, 0, MEMORY, address_of(guest.memory))
        with pytest.raises(KVMError, match="does not log dirty pages"):
            vm.get_dirty_log(0)


def test_the_dirty_log_can_be_cleared_by_hand(vm: VM) -> None:
    require_cap(vm, Cap.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)
    vm.enable_cap(Cap.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE)
    with Guest(vm, flags=KVM_MEM_LOG_DIRTY_PAGES) as guest:
        guest.load(DIRTY)
        guest.run()
        pages = MEMORY // 4096
        log = vm.get_dirty_log(0)
        assert log == vm.get_dirty_log(0)
        vm.clear_dirty_log(0, 0, pages, log)
        assert vm.get_dirty_log(0) == bytes(8)
        with pytest.raises(ConfigError, match="a bitmap of 1 bytes does not cover 16 pages"):
            vm.clear_dirty_log(0, 0, pages, b"\0")


def test_dirty_rings(vm: VM) -> None:
    size = 0x10000
    require_cap(vm, Cap.KVM_CAP_DIRTY_LOG_RING)
    vm.enable_cap(Cap.KVM_CAP_DIRTY_LOG_RING, size)
    vcpu = vm.create_vcpu(0)
    with vcpu.map_dirty_ring(size) as ring:
        assert ring[:16] == bytes(16)
    assert vm.reset_dirty_rings() == 0


def test_addresses_for_real_mode_on_intel(vm: VM) -> None:
    vm.set_tss_addr(0xFFFBD000)
    vm.set_tss_addr(0x7FFFD000)
    vm.set_identity_map_addr(0xFFFBC000)
    with pytest.raises(KVMError, match="KVM_SET_TSS_ADDR"):
        vm.set_tss_addr(0xFFFFE000)
    vm.create_vcpu(0)
    with pytest.raises(KVMError, match="KVM_SET_IDENTITY_MAP_ADDR"):
        vm.set_identity_map_addr(0xFFFBC000)


def test_shadow_pages_and_the_boot_cpu(vm: VM) -> None:
    vm.set_nr_mmu_pages(256)
    try:
        assert vm.get_nr_mmu_pages() in (0, 256)
    except KVMError as error:
        assert error.errno in (errno.EINVAL, errno.ENOTTY)  # gone in newer kernels
    vm.set_boot_cpu_id(1)
    vm.create_vcpu(0)
    with pytest.raises(KVMError, match="KVM_SET_BOOT_CPU_ID"):
        vm.set_boot_cpu_id(0)


def test_the_clock_runs_on_from_what_it_is_set_to(vm: VM) -> None:
    vm.set_clock({"clock": 10**15})
    assert 10**15 <= vm.get_clock().clock < 2 * 10**15
    with pytest.raises(KVMError, match="KVM_SET_CLOCK"):
        vm.set_clock({"clock": 0, "flags": 1 << 31})


def test_the_tsc_frequency_of_a_vm(vm: VM) -> None:
    try:
        default = vm.get_tsc_khz()
    except KVMError:  # kernels before 5.18
        require_cap(vm, Cap.KVM_CAP_VM_TSC_CONTROL)
        raise
    assert 100_000 < default < 10_000_000
    vm.set_tsc_khz(default)
    assert vm.get_tsc_khz() == default


RDMSR = """
    66 B9 74 01 00 00   mov ecx, 0x174
    0F 32               rdmsr
    F4                  hlt
"""


def test_a_filtered_msr_exits(vm: VM) -> None:
    require_cap(vm, Cap.KVM_CAP_X86_MSR_FILTER)
    require_cap(vm, Cap.KVM_CAP_X86_USER_SPACE_MSR)
    vm.enable_cap(Cap.KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER)
    denied = (KVM_MSR_FILTER_READ, 0x174, 1, b"\0")
    vm.set_msr_filter([denied], flags=KVM_MSR_FILTER_DEFAULT_ALLOW)
    with Guest(vm) as guest:
        guest.load(RDMSR)
        reason, msr = guest.run()
        assert reason is ExitReason.KVM_EXIT_X86_RDMSR
        assert (msr.index, msr.reason) == (0x174, KVM_MSR_EXIT_REASON_FILTER)
        guest.set_page("exit.msr.data", 0x5A)
        assert guest.run()[0] is ExitReason.KVM_EXIT_HLT
        assert guest.vcpu.get_regs().rax == 0x5A
        vm.set_msr_filter()
        guest.load(RDMSR)
        assert guest.run()[0] is ExitReason.KVM_EXIT_HLT
        assert guest.vcpu.get_regs().rax == 0


def test_msr_filters_are_checked(vm: VM) -> None:
    with pytest.raises(ConfigError, match="a bitmap of 1 bytes does not cover 9 MSRs"):
        vm.set_msr_filter([(KVM_MSR_FILTER_READ, 0, 9, b"\0")])
    with pytest.raises(ConfigError, match="17 MSR ranges: KVM takes 16"):
        vm.set_msr_filter([(KVM_MSR_FILTER_READ, 0, 1, b"\0")] * 17)


def test_performance_events_are_filtered(vm: VM) -> None:
    require_cap(vm, Cap.KVM_CAP_PMU_EVENT_FILTER)
    vm.set_pmu_event_filter(KVM_PMU_EVENT_DENY, [0x3C, 0xC0])
    with pytest.raises(KVMError, match="KVM_SET_PMU_EVENT_FILTER"):
        vm.set_pmu_event_filter(99, [])


def test_hyperv_eventfds_or_why_not(vm: VM) -> None:
    fd = os.eventfd(0)
    try:
        if vm.check_extension(Cap.KVM_CAP_HYPERV_EVENTFD):
            vm.hyperv_eventfd(1, fd)
            vm.hyperv_eventfd(1, fd, deassign=True)
        else:
            with pytest.raises(KVMError, match="needs KVM_CAP_HYPERV_EVENTFD"):
                vm.hyperv_eventfd(1, fd)
    finally:
        os.close(fd)


def test_enabling_a_capability_that_is_not_there(vm: VM) -> None:
    with pytest.raises(KVMError, match="KVM_ENABLE_CAP"):
        vm.enable_cap(0x7FFF)
    with pytest.raises(ConfigError, match="up to 4 arguments, not 5"):
        vm.enable_cap(Cap.KVM_CAP_HALT_POLL, 1, 2, 3, 4, 5)


def test_devices(vm: VM) -> None:
    assert not vm.has_device(0x7FFF)
    with pytest.raises(KVMError) as caught:
        vm.create_device(0x7FFF)
    assert (caught.value.ioctl, caught.value.errno) == ("KVM_CREATE_DEVICE", errno.ENODEV)
    if not vm.has_device(KVM_DEV_TYPE_VFIO):
        return
    with vm.create_device(KVM_DEV_TYPE_VFIO) as device:
        assert device.type == KVM_DEV_TYPE_VFIO
        assert device.has_device_attr(1, 1)
        with pytest.raises(KVMError, match="KVM_SET_DEVICE_ATTR"):
            device.set_device_attr(1, 1, -1, size=4)


def test_capabilities_that_are_numbers_here_are_the_kernels() -> None:
    assert vm_module.KVM_CAP_XSAVE2 == Cap.KVM_CAP_XSAVE2
