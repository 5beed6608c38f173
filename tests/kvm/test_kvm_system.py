"""/dev/kvm: what it offers."""

from __future__ import annotations

import errno

import pytest
from kvm.guest import require_cap

from pykvm.errors import ClosedError, KVMError
from pykvm.kvm import VM, Cap, System, uapi
from pykvm.kvm.constants import KVM_X86_GRP_SYSTEM, KVM_X86_XCOMP_GUEST_SUPP
from pykvm.kvm.stats import read_stats

pytestmark = pytest.mark.kvm


def test_the_api_is_version_12(system: System) -> None:
    assert system.api_version() == 12


def test_the_run_page_holds_kvm_run_and_port_data(system: System) -> None:
    assert system.vcpu_mmap_size() >= 2 * 4096
    assert system.vcpu_mmap_size() % 4096 == 0


def test_capabilities_are_asked_by_name_or_number(system: System, vm: VM) -> None:
    assert system.check_extension(Cap.KVM_CAP_USER_MEMORY) == 1
    assert system.check_extension(3) == 1
    assert system.check_extension(0x7FFF) == 0
    assert vm.check_extension(Cap.KVM_CAP_NR_MEMSLOTS) >= 32


def test_supported_cpuid_has_the_vendor_and_packs_to_the_kernels_form(system: System) -> None:
    entries = system.supported_cpuid()
    (vendor,) = (entry for entry in entries if entry.function == 0)
    name = b"".join(word.to_bytes(4, "little") for word in (vendor.ebx, vendor.edx, vendor.ecx))
    assert len(name) == 12
    assert name.isascii()
    packed = system.supported_cpuid_packed()
    assert len(packed) == uapi.kvm_cpuid2.size + len(entries) * uapi.kvm_cpuid_entry2.size
    assert uapi.kvm_cpuid2.unpack(packed).entries == entries


def test_emulated_cpuid(system: System) -> None:
    require_cap(system, Cap.KVM_CAP_EXT_EMUL_CPUID)
    functions = {entry.function for entry in system.emulated_cpuid()}
    assert functions <= {entry.function for entry in system.supported_cpuid()} | {0, 1, 7}


def test_hyperv_cpuid_or_why_not(system: System) -> None:
    if system.check_extension(Cap.KVM_CAP_SYS_HYPERV_CPUID):
        assert 0x40000000 in {entry.function for entry in system.supported_hv_cpuid()}
    else:
        with pytest.raises(KVMError, match="needs KVM_CAP_HYPERV_CPUID"):
            system.supported_hv_cpuid()


def test_msr_lists(system: System) -> None:
    indices = system.msr_index_list()
    assert 0x10 in indices, "IA32_TIME_STAMP_COUNTER"
    assert len(set(indices)) == len(indices)
    features = system.msr_feature_index_list()
    values = system.get_msrs(features[:1])
    assert list(values) == features[:1]


def test_an_unknown_feature_msr_is_named(system: System) -> None:
    first = system.msr_feature_index_list()[0]
    with pytest.raises(KVMError, match="MSR 0x12345678 refused, number 2 of 2") as caught:
        system.get_msrs([first, 0x12345678])
    assert (caught.value.ioctl, caught.value.errno) == ("KVM_GET_MSRS", errno.EINVAL)
    assert list(system.get_msrs([first, 0x12345678], partial=True)) == [first]


def test_machine_check_banks(system: System) -> None:
    require_cap(system, Cap.KVM_CAP_MCE)
    assert system.mce_cap_supported() & 0xFF <= 32


def test_system_attributes(system: System) -> None:
    require_cap(system, Cap.KVM_CAP_SYS_ATTRIBUTES)
    assert system.has_device_attr(KVM_X86_GRP_SYSTEM, KVM_X86_XCOMP_GUEST_SUPP)
    assert not system.has_device_attr(77, 0)
    xfeatures = system.get_device_attr(KVM_X86_GRP_SYSTEM, KVM_X86_XCOMP_GUEST_SUPP)
    assert xfeatures < 1 << 63
    with pytest.raises(KVMError, match="KVM_GET_DEVICE_ATTR"):
        system.get_device_attr(77, 0)


def test_a_vm_of_an_unknown_type_is_refused(system: System) -> None:
    with pytest.raises(KVMError, match="no VM of that type") as caught:
        system.create_vm(0x7FFF)
    assert caught.value.errno == errno.EINVAL


def test_a_vm_outlives_the_system(system: System) -> None:
    with system.create_vm() as vm:
        system.close()
        assert vm.check_extension(Cap.KVM_CAP_USER_MEMORY) == 1
        with pytest.raises(ClosedError, match="KVM system is closed"):
            system.create_vm()


def test_statistics_of_vms_and_vcpus(vm: VM) -> None:
    require_cap(vm, Cap.KVM_CAP_BINARY_STATS_FD)
    vcpu = vm.create_vcpu(0)
    for file, name in ((vm.get_stats_fd(), "remote_tlb_flush"), (vcpu.get_stats_fd(), "exits")):
        with file:
            stats = read_stats(file)
        assert name in stats
        assert all(isinstance(value, int | list) for value in stats.values())
