"""What a getter returns, its setter takes: as a record, and as plain dicts."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kvm.guest import require_cap

from pykvm.errors import ConfigError, KVMError
from pykvm.kvm import VCPU, Cap, System, uapi
from pykvm.kvm.codec import StructLayout, UnionLayout
from pykvm.kvm.constants import KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET
from pykvm.kvm.records import Overlay, Record
from pykvm.kvm.vcpu_state import msr_register
from pykvm.kvm.vm import VM
from support.host import HostCannot

LAYOUTS = {name: one for name, one in vars(uapi).items() if isinstance(one, StructLayout)}
UNIONS = sorted(
    name for name, one in LAYOUTS.items() if any(isinstance(f[2], UnionLayout) for f in one.fields)
)


def overlays(record: Record) -> Iterator[Overlay]:
    for value in vars(record).values():
        if isinstance(value, Overlay):
            yield value


def some(layout: StructLayout) -> Record:
    """A record with something in every byte."""
    return layout.unpack(random.Random(layout.name).randbytes(layout.size))


def test_there_are_structs_with_unions() -> None:
    assert "kvm_irqchip" in UNIONS


@pytest.mark.parametrize("name", UNIONS)
def test_a_dict_of_it_is_packed_as_the_record_is(name: str) -> None:
    layout = LAYOUTS[name]
    assert layout.pack(some(layout).as_dict()) == layout.pack(some(layout))


@pytest.mark.parametrize("name", UNIONS)
def test_so_is_that_of_one_of_whose_unions_a_member_was_looked_at(name: str) -> None:
    layout = LAYOUTS[name]
    for union in overlays(some(layout)):
        for member in union._layout.members:
            record = some(layout)
            for one in overlays(record):
                if member in one._layout.members:
                    getattr(one, member)
            assert layout.pack(record.as_dict()) == layout.pack(some(layout)), member


def test_raw_bytes_of_a_union_have_its_size_at_most() -> None:
    with pytest.raises(ConfigError, match="513 bytes do not fit in 512"):
        uapi.kvm_irqchip.pack({"chip": {"raw": bytes(513)}})
    with pytest.raises(ConfigError, match="exactly one of dummy, pic, ioapic"):
        uapi.kvm_irqchip.pack({"chip": {"raw": bytes(512), "pic": {}}})


CHIPS = ("none", "kernel", "split")


@pytest.fixture(params=CHIPS)
def chips(request: pytest.FixtureRequest, vm: VM) -> str:
    """Where the interrupt controllers of `vm` are."""
    if request.param == "kernel":
        vm.create_irqchip()
        vm.create_pit2()
    elif request.param == "split":
        vm.enable_cap(Cap.KVM_CAP_SPLIT_IRQCHIP, 24)
    return str(request.param)


def plain(value: Any) -> Any:
    """A record as plain dicts, lists, ints and bytes; what is no record as it is."""
    return value.as_dict() if isinstance(value, Record) else value


VM_STATE: dict[str, tuple[Callable[[VM], Any], Callable[[VM, Any], object]]] = {
    "pic": (lambda vm: vm.get_irqchip(0), VM.set_irqchip),
    "second pic": (lambda vm: vm.get_irqchip(1), VM.set_irqchip),
    "ioapic": (lambda vm: vm.get_irqchip(2), VM.set_irqchip),
    "pit": (VM.get_pit, VM.set_pit),
    "pit2": (VM.get_pit2, VM.set_pit2),
}


@pytest.mark.parametrize("name", VM_STATE)
def test_state_of_a_vm(chipped: VM, name: str) -> None:
    get, set_ = VM_STATE[name]
    chipped.create_pit2()
    before = get(chipped)
    set_(chipped, before)
    set_(chipped, before.as_dict())
    # Of a timer the time at which it was loaded is the host's.
    assert name.startswith("pit") or get(chipped) == before


def test_the_clock_of_a_vm(vm: VM, chips: str) -> None:
    vm.create_vcpu(0)
    before = vm.get_clock()
    vm.set_clock(before)
    vm.set_clock(before.as_dict())
    assert before.clock <= vm.get_clock().clock < before.clock + 60 * 10**9


# By getter; the setter is named alike but for the second.
VCPU_STATE = {
    **{name: name for name in ("regs", "sregs", "fpu", "xsave", "xcrs", "vcpu_events")},
    **{name: name for name in ("debugregs", "mp_state", "cpuid2", "tsc_khz")},
    "sregs2": "sregs2",
    "xsave2": "xsave",
    "lapic": "lapic",
    "nested_state": "nested_state",
}
NEEDS = {
    "sregs2": Cap.KVM_CAP_SREGS2,
    "xsave2": Cap.KVM_CAP_XSAVE2,
    "nested_state": Cap.KVM_CAP_NESTED_STATE,
}


@pytest.mark.parametrize("name", VCPU_STATE)
def test_state_of_a_vcpu(system: System, vm: VM, chips: str, name: str) -> None:
    size = require_cap(system, NEEDS[name]) if name in NEEDS else 0
    vcpu = vm.create_vcpu(0)
    vcpu.set_cpuid2(system.supported_cpuid())
    if name == "lapic" and chips == "none":
        with pytest.raises(KVMError, match="KVM_GET_LAPIC: .*EINVAL"):
            vcpu.get_lapic()
        return
    arguments = (size,) if name == "nested_state" else ()
    get: Callable[..., Any] = getattr(vcpu, f"get_{name}")
    set_: Callable[[Any], None] = getattr(vcpu, f"set_{VCPU_STATE[name]}")
    before = get(*arguments)
    set_(before)
    set_([entry.as_dict() for entry in before] if name == "cpuid2" else plain(before))
    assert get(*arguments) == before


def test_msrs_of_a_vcpu(system: System, vm: VM, chips: str) -> None:
    """Of those that KVM lists, it takes back what it gave, or has it already."""
    vcpu = vm.create_vcpu(0)
    vcpu.set_cpuid2(system.supported_cpuid())
    for index in system.msr_index_list():
        value = vcpu.get_msrs([index])
        if not vcpu.set_msrs(value, partial=True):
            assert vcpu.get_msrs([index]) == value, hex(index)


def test_attributes_of_a_vcpu(vm: VM, chips: str) -> None:
    vcpu = vm.create_vcpu(0)
    if not vcpu.has_device_attr(KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET):
        raise HostCannot("KVM_VCPU_TSC_OFFSET", "this host does not offer it")
    before = vcpu.get_device_attr(KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET)
    if vcpu.get_device_attr(KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET) != before:
        raise HostCannot("tsc-offset-stays", "this host's KVM moves the TSC offset by itself")
    vcpu.set_device_attr(KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, before)
    assert vcpu.get_device_attr(KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET) == before


def test_single_registers_of_a_vcpu(vm: VM) -> None:
    require_cap(vm, Cap.KVM_CAP_ONE_REG)
    vcpu = vm.create_vcpu(0)
    known = [msr_register(0xC000_0081), *vcpu.get_reg_list()]
    for register in known:
        try:
            value = vcpu.get_one_reg(register)
        except KVMError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTTY):
                raise HostCannot("KVM_GET_ONE_REG", f"this host answers {error.strerror}") from None
            raise
        vcpu.set_one_reg(register, value)
        assert vcpu.get_one_reg(register) == value


def test_no_pair_is_forgotten() -> None:
    """Each get that has a set, of a VM and of a vCPU, has its place above."""
    pairs = {
        name.removeprefix("get_")
        for one in (VM, VCPU)
        for name in dir(one)
        if name.startswith("get_") and hasattr(one, name.replace("get", "set", 1))
    }
    elsewhere = {"clock", "device_attr", "irqchip", "msrs", "one_reg"}
    # The limit of the shadow page tables is a setting of the VMM's, which KVM no longer reports.
    settings = {"nr_mmu_pages"}
    assert pairs == (VM_STATE.keys() & pairs) | (VCPU_STATE.keys() & pairs) | elsewhere | settings
