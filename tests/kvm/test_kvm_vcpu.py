"""A vCPU's state: everything that can be read is written back and read again."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from kvm.guest import Guest, require_cap

from pykvm.errors import ConfigError, KVMError
from pykvm.kvm import VCPU, VM, Cap, System, uapi
from pykvm.kvm.constants import (
    KVM_VCPU_TSC_CTRL,
    KVM_VCPU_TSC_OFFSET,
    KVM_VCPUEVENT_VALID_NMI_PENDING,
)
from pykvm.kvm.vcpu_state import GUEST_SSP, msr_register
from support.host import host_probe

pytestmark = pytest.mark.kvm

IA32_SYSENTER_CS = 0x174
IA32_SYSENTER_ESP = 0x175


@pytest.fixture
def vcpu(vm: VM) -> VCPU:
    return vm.create_vcpu(0)


def test_registers(vcpu: VCPU) -> None:
    regs = vcpu.get_regs()
    assert (regs.rip, regs.rflags) == (0xFFF0, 2)
    regs.rax, regs.r15 = 0x1122334455667788, 2**64 - 1
    vcpu.set_regs(regs)
    assert vcpu.get_regs() == regs
    vcpu.set_regs({"rip": 0x7C00, "rflags": 2})
    assert (vcpu.get_regs().rip, vcpu.get_regs().rax) == (0x7C00, 0)


def test_a_view_of_the_run_page_does_not_keep_the_vcpu_alive(vcpu: VCPU) -> None:
    page = vcpu.run_page
    page[0] = 1
    with memoryview(page) as view:
        assert "kvm-vcpu" in Path("/proc/self/maps").read_text()
        vcpu.close()
        assert not any(view)
        assert "kvm-vcpu" not in Path("/proc/self/maps").read_text()


def test_system_registers(vcpu: VCPU) -> None:
    sregs = vcpu.get_sregs()
    assert (sregs.cs.selector, sregs.cs.base) == (0xF000, 0xFFFF0000)
    sregs.cs.base, sregs.gdt.limit, sregs.cr2 = 0, 0x27, 0x1234
    vcpu.set_sregs(sregs)
    assert vcpu.get_sregs() == sregs


def test_contradictory_control_registers_are_refused(vcpu: VCPU) -> None:
    sregs = vcpu.get_sregs()
    sregs.cr0 |= 1 << 31
    with pytest.raises(KVMError, match=r"contradict each other.*SDM 3A 2\.5") as caught:
        vcpu.set_sregs(sregs)
    assert caught.value.errno == errno.EINVAL


def test_system_registers_with_pdptrs(vm: VM, vcpu: VCPU) -> None:
    require_cap(vm, Cap.KVM_CAP_SREGS2)
    sregs = vcpu.get_sregs2()
    assert sregs.cs == vcpu.get_sregs().cs
    sregs.idt.limit = 0x3FF
    vcpu.set_sregs2(sregs)
    assert vcpu.get_sregs2() == sregs


def test_msrs(vcpu: VCPU) -> None:
    assert vcpu.set_msrs({IA32_SYSENTER_CS: 0x10, IA32_SYSENTER_ESP: 0x8000}) == 2
    values = vcpu.get_msrs([IA32_SYSENTER_CS, IA32_SYSENTER_ESP])
    assert values == {IA32_SYSENTER_CS: 0x10, IA32_SYSENTER_ESP: 0x8000}


def test_a_refused_msr_is_named(vcpu: VCPU) -> None:
    with pytest.raises(KVMError, match="KVM_SET_MSRS: .*: MSR 0xdeadbeef refused, number 2 of 3"):
        vcpu.set_msrs({IA32_SYSENTER_CS: 8, 0xDEADBEEF: 1, IA32_SYSENTER_ESP: 1})
    assert vcpu.get_msrs([IA32_SYSENTER_CS]) == {IA32_SYSENTER_CS: 8}
    assert vcpu.set_msrs({0xDEADBEEF: 1}, partial=True) == 0
    assert vcpu.get_msrs([0xDEADBEEF], partial=True) == {}


def test_cpuid_from_entries_and_packed(system: System, vcpu: VCPU) -> None:
    entries = [entry for entry in system.supported_cpuid() if entry.function <= 1]
    vcpu.set_cpuid2(entries)
    assert {entry.function for entry in vcpu.get_cpuid2()} >= {0, 1}
    vcpu.set_cpuid2(system.supported_cpuid_packed())
    assert {entry.function for entry in vcpu.get_cpuid2()} >= {0, 1, 7, 0x80000000, 0x80000001}
    vcpu.set_cpuid2([{"function": 0x40000010, "eax": 5}])
    (entry,) = (entry for entry in vcpu.get_cpuid2() if entry.function == 0x40000010)
    assert entry.eax == 5


def test_packed_cpuid_that_is_cut_short(system: System, vcpu: VCPU) -> None:
    packed = system.supported_cpuid_packed()
    with pytest.raises(ConfigError, match="kvm_cpuid2 counts"):
        vcpu.set_cpuid2(packed[:-1])
    with pytest.raises(ConfigError, match="kvm_cpuid2 has 8 bytes or more, not 7"):
        vcpu.set_cpuid2(packed[:7])


def test_cpuid_the_old_way(vcpu: VCPU) -> None:
    vcpu.set_cpuid([{"function": 0, "eax": 1}])
    assert [entry.eax for entry in vcpu.get_cpuid2() if entry.function == 0] == [1]


def test_cpuid_of_a_kernel_that_does_not_count_it(
    vcpu: VCPU, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KVM_GET_CPUID2 leaves nent as it was asked for, as Linux before 6.3 does."""

    def fill_in(number: int, buffer: bytearray) -> int:
        assert number == uapi.KVM_GET_CPUID2
        entries = uapi.kvm_cpuid2.pack({"entries": [{"function": 0}, {"function": 1}]})
        head = uapi.kvm_cpuid2.size
        buffer[head : len(entries)] = entries[head:]
        return 0

    monkeypatch.setattr(vcpu, "ioctl", fill_in)
    assert [entry.function for entry in vcpu.get_cpuid2()] == [0, 1]


def test_too_much_cpuid(vcpu: VCPU) -> None:
    with pytest.raises(KVMError, match="too many CPUID entries"):
        vcpu.set_cpuid2([{"function": index} for index in range(300)])


def test_hyperv_cpuid_or_why_not(vm: VM, vcpu: VCPU) -> None:
    if vm.check_extension(Cap.KVM_CAP_HYPERV_CPUID):
        assert vcpu.supported_hv_cpuid()
    else:
        with pytest.raises(KVMError, match="needs KVM_CAP_HYPERV_CPUID"):
            vcpu.supported_hv_cpuid()


def test_fpu(vcpu: VCPU) -> None:
    fpu = vcpu.get_fpu()
    fpu.xmm[3] = bytes(range(16))
    fpu.fcw = 0x27F
    vcpu.set_fpu(fpu)
    assert vcpu.get_fpu().xmm[3] == bytes(range(16))
    assert vcpu.get_fpu().fcw == 0x27F


def test_xsave(vm: VM, vcpu: VCPU) -> None:
    require_cap(vm, Cap.KVM_CAP_XSAVE)
    area = vcpu.get_xsave()
    assert len(area) == 4096
    area[24:28] = (0x1F80).to_bytes(4, "little")
    vcpu.set_xsave(area)
    assert vcpu.get_xsave()[24:28] == area[24:28]


def test_xsave2(vm: VM, vcpu: VCPU) -> None:
    size = require_cap(vm, Cap.KVM_CAP_XSAVE2)
    area = vcpu.get_xsave2()
    assert len(area) == vcpu.xsave_size == size
    assert area[:512] == vcpu.get_xsave()[:512]
    vcpu.set_xsave(area)
    vcpu.set_xsave(area[:576])


def test_xcrs(vm: VM, vcpu: VCPU) -> None:
    require_cap(vm, Cap.KVM_CAP_XCRS)
    xcrs = vcpu.get_xcrs()
    assert (xcrs.nr_xcrs, xcrs.xcrs[0].value & 1) == (1, 1)
    vcpu.set_xcrs(xcrs)
    xcrs.xcrs[0].value = 0
    with pytest.raises(KVMError, match="KVM_SET_XCRS"):
        vcpu.set_xcrs(xcrs)


def test_the_local_apic_is_the_irqchips(chipped: VM, vm: VM) -> None:
    vcpu = chipped.create_vcpu(0)
    registers = bytearray(vcpu.get_lapic())
    assert len(registers) == 1024
    registers[0x80] = 0x20
    vcpu.set_lapic(registers)
    assert vcpu.get_lapic()[0x80] == 0x20
    other = vm.create_vcpu(0)
    for call in (other.get_lapic, lambda: other.set_lapic(registers)):
        with pytest.raises(KVMError, match="create the in-kernel irqchip first"):
            call()


def test_mp_state_without_an_irqchip(vcpu: VCPU) -> None:
    assert vcpu.get_mp_state() == 0
    vcpu.set_mp_state(0)
    with pytest.raises(KVMError, match="KVM_SET_MP_STATE"):
        vcpu.set_mp_state(77)


def test_events(vcpu: VCPU) -> None:
    events = vcpu.get_vcpu_events()
    events.nmi.pending = 1
    events.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING
    vcpu.set_vcpu_events(events)
    assert vcpu.get_vcpu_events().nmi.pending == 1
    with pytest.raises(KVMError, match="KVM_SET_VCPU_EVENTS"):
        vcpu.set_vcpu_events({"exception": {"injected": 1, "nr": 77}})


def test_nmi_and_interrupt_are_queued(vcpu: VCPU) -> None:
    vcpu.nmi()
    vcpu.interrupt(0x31)
    events = vcpu.get_vcpu_events()
    assert (events.interrupt.injected, events.interrupt.nr) == (1, 0x31)
    with pytest.raises(KVMError) as caught:
        vcpu.interrupt(256)
    assert caught.value.errno == errno.EINVAL


def test_interrupts_are_the_irqchips_where_there_is_one(chipped: VM) -> None:
    with pytest.raises(KVMError, match="use irq_line or signal_msi"):
        chipped.create_vcpu(0).interrupt(0x31)


def test_smi_or_why_not(vm: VM, vcpu: VCPU) -> None:
    if vm.check_extension(Cap.KVM_CAP_X86_SMM):
        vcpu.smi()
        assert vcpu.get_vcpu_events().smi.pending == 1
    else:
        with pytest.raises(KVMError, match="needs KVM_CAP_X86_SMM"):
            vcpu.smi()


def test_debug_registers(vcpu: VCPU) -> None:
    debug = vcpu.get_debugregs()
    debug.db[2] = 0x1234
    vcpu.set_debugregs(debug)
    assert vcpu.get_debugregs().db[2] == 0x1234
    with pytest.raises(KVMError, match="KVM_SET_DEBUGREGS"):
        vcpu.set_debugregs({"dr7": 1 << 40})


def test_signals_have_numbers_from_1_to_64(vcpu: VCPU) -> None:
    vcpu.set_signal_mask([1, 64])
    for number in (0, 65):
        with pytest.raises(ConfigError, match=f"no signal {number}"):
            vcpu.set_signal_mask([number])


def test_guest_debug_takes_eight_registers(vcpu: VCPU) -> None:
    vcpu.set_guest_debug(0)
    with pytest.raises(ConfigError, match="8 debug registers, not 9"):
        vcpu.set_guest_debug(1, [0] * 9)


def test_translation_without_paging(guest: Guest) -> None:
    guest.load("F4 hlt")
    translation = guest.vcpu.translate(0x1234)
    assert (translation.physical_address, translation.valid) == (0x1234, 1)


def test_the_tsc_frequency(vm: VM, vcpu: VCPU) -> None:
    require_cap(vm, Cap.KVM_CAP_GET_TSC_KHZ)
    khz = vcpu.get_tsc_khz()
    assert 100_000 < khz < 10_000_000
    vcpu.set_tsc_khz(khz)


@host_probe("tsc-offset-is-kept")
def tsc_offset_is_kept() -> str | None:
    with System() as system, system.create_vm() as vm:
        require_cap(vm, Cap.KVM_CAP_VCPU_ATTRIBUTES)
        vcpu = vm.create_vcpu(0)
        vcpu.set_device_attr(KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, 1000)
        offset = vcpu.get_device_attr(KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET)
    return None if offset == 1000 else "accepts a TSC offset and forgets it"


@pytest.mark.needs_host("tsc-offset-is-kept")
def test_the_tsc_offset_is_signed(vcpu: VCPU) -> None:
    vcpu.set_device_attr(KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, 0)
    assert vcpu.get_device_attr(KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET) == 0
    vcpu.set_device_attr(KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, -(10**9))
    offset = vcpu.get_device_attr(KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET)
    assert offset == 2**64 - 10**9


def test_the_tsc_offset_is_an_attribute(vm: VM, vcpu: VCPU) -> None:
    require_cap(vm, Cap.KVM_CAP_VCPU_ATTRIBUTES)
    assert vcpu.has_device_attr(KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET)
    assert not vcpu.has_device_attr(77, 0)
    vcpu.set_device_attr(KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, 0)
    with pytest.raises(ConfigError, match="does not fit in 8 bytes"):
        vcpu.set_device_attr(KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, 2**64)


def test_kvmclock_control_without_a_kvmclock(vcpu: VCPU) -> None:
    with pytest.raises(KVMError, match="KVM_KVMCLOCK_CTRL"):
        vcpu.kvmclock_ctrl()


def test_machine_checks(system: System, vcpu: VCPU) -> None:
    require_cap(system, Cap.KVM_CAP_MCE)
    vcpu.setup_mce(system.mce_cap_supported() & ~0xFF | 4)
    with pytest.raises(KVMError, match="KVM_X86_SETUP_MCE"):
        vcpu.setup_mce(0)
    valid_uncorrected = 1 << 63 | 1 << 61
    with pytest.raises(KVMError, match="KVM_X86_SET_MCE"):
        vcpu.set_mce({"bank": 200, "status": valid_uncorrected})


def test_nested_state_or_why_not(system: System, vcpu: VCPU) -> None:
    size = system.check_extension(Cap.KVM_CAP_NESTED_STATE)
    if size:
        state = vcpu.get_nested_state(size)
        assert 128 <= len(state) <= size
        vcpu.set_nested_state(state)
    else:
        with pytest.raises(KVMError, match="needs KVM_CAP_NESTED_STATE"):
            vcpu.get_nested_state(4096)
        with pytest.raises(KVMError, match="needs KVM_CAP_NESTED_STATE"):
            vcpu.set_nested_state(bytes(4) + (128).to_bytes(4, "little") + bytes(120))
    with pytest.raises(ConfigError, match="128 bytes are no kvm_nested_state"):
        vcpu.set_nested_state(bytes(128))


def test_registers_by_id(vm: VM, vcpu: VCPU) -> None:
    require_cap(vm, Cap.KVM_CAP_ONE_REG)
    vcpu.set_one_reg(msr_register(IA32_SYSENTER_CS), 0x28)
    assert vcpu.get_one_reg(msr_register(IA32_SYSENTER_CS)) == 0x28
    assert set(vcpu.get_reg_list()) <= {GUEST_SSP}
    with pytest.raises(KVMError, match="KVM_GET_ONE_REG"):
        vcpu.get_one_reg(0x2030000200000000 | 0xDEADBEEF)


def test_memory_is_faulted_in_beforehand_or_why_not(guest: Guest) -> None:
    if guest.vm.check_extension(Cap.KVM_CAP_PRE_FAULT_MEMORY):
        assert guest.vcpu.pre_fault_memory(0, 0x2000).size == 0
    else:
        with pytest.raises(KVMError, match="needs KVM_CAP_PRE_FAULT_MEMORY"):
            guest.vcpu.pre_fault_memory(0, 0x2000)


def test_capabilities_of_a_vcpu(vcpu: VCPU) -> None:
    with pytest.raises(KVMError, match="KVM_ENABLE_CAP"):
        vcpu.enable_cap(0x7FFF)
