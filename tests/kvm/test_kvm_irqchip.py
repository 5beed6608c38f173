"""The in-kernel interrupt controllers, routes, and eventfds in place of exits."""

from __future__ import annotations

import os
import struct
import time
from contextlib import suppress

import pytest
from kvm.guest import Guest, require_cap

from pykvm.errors import KVMError
from pykvm.kvm import VM, Cap, ExitReason, System, uapi
from pykvm.kvm.constants import (
    KVM_COALESCED_MMIO_PAGE_OFFSET,
    KVM_IRQ_ROUTING_IRQCHIP,
    KVM_IRQ_ROUTING_MSI,
    KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER,
    KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_UNINITIALIZED,
    KVM_PIT_SPEAKER_DUMMY,
)
from support.host import host_probe

pytestmark = pytest.mark.kvm


@pytest.fixture
def eventfd() -> object:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def test_without_an_irqchip_the_error_says_so(vm: VM) -> None:
    for call in (
        lambda: vm.irq_line(1, 1),
        lambda: vm.irq_line_status(1, 1),
        lambda: vm.get_irqchip(0),
        lambda: vm.set_irqchip({"chip_id": 0}),
    ):
        with pytest.raises(KVMError, match="create the in-kernel irqchip first"):
            call()
    for unexplained in (vm.get_pit, vm.get_pit2, lambda: vm.reinject_control(True)):
        with pytest.raises(KVMError):
            unexplained()


@host_probe("a-pit-needs-an-irqchip")
def a_pit_needs_an_irqchip() -> str | None:
    with System() as system, system.create_vm() as vm, suppress(KVMError):
        vm.create_pit2()
        return "makes a PIT without an irqchip, as Linux did until 6.14"
    return None


@pytest.mark.needs_host("a-pit-needs-an-irqchip")
def test_without_an_irqchip_there_is_no_pit(vm: VM) -> None:
    with pytest.raises(KVMError, match="create the in-kernel irqchip first"):
        vm.create_pit2()
    with pytest.raises(KVMError):
        vm.create_pit()


def test_an_irqchip_is_created_once_and_first(chipped: VM, vm: VM) -> None:
    with pytest.raises(KVMError, match="before the first vCPU"):
        chipped.create_irqchip()
    vm.create_vcpu(0)
    with pytest.raises(KVMError, match="before the first vCPU"):
        vm.create_irqchip()


def test_an_interrupt_line_shows_in_the_pic(chipped: VM) -> None:
    chipped.irq_line(3, 1)
    pic = chipped.get_irqchip(KVM_IRQCHIP_PIC_MASTER).chip.pic
    assert pic.irr & 1 << 3
    chipped.irq_line(3, 0)
    assert chipped.irq_line_status(5, 1) in (-1, 0, 1)
    chipped.irq_line_status(5, 0)


def test_an_irqchip_is_restored(chipped: VM) -> None:
    state = chipped.get_irqchip(KVM_IRQCHIP_IOAPIC)
    state.chip.ioapic.redirtbl[4].fields.vector = 0x44
    chipped.set_irqchip(state)
    again = chipped.get_irqchip(KVM_IRQCHIP_IOAPIC)
    assert again.chip.ioapic.redirtbl[4].fields.vector == 0x44
    assert again.chip.ioapic.redirtbl[4].fields.mask == 1


def test_the_pit(chipped: VM) -> None:
    chipped.create_pit2(KVM_PIT_SPEAKER_DUMMY)
    with pytest.raises(KVMError, match="already has a PIT"):
        chipped.create_pit2()
    state = chipped.get_pit2()
    state.channels[2].count = 0x1234
    chipped.set_pit2(state)
    assert chipped.get_pit2().channels[2].count == 0x1234
    old = chipped.get_pit()
    assert old.channels[2].count == 0x1234
    old.channels[2].count = 0x4321
    chipped.set_pit(old)
    assert chipped.get_pit2().channels[2].count == 0x4321
    chipped.reinject_control(False)


def test_the_pit_the_old_way(chipped: VM) -> None:
    chipped.create_pit()
    assert len(chipped.get_pit().channels) == 3


def test_routes(chipped: VM) -> None:
    pin = {"irqchip": {"irqchip": KVM_IRQCHIP_IOAPIC, "pin": 4}}
    msi = {"msi": {"address_lo": 0xFEE00000, "data": 0x55}}
    chipped.set_gsi_routing(
        [
            {"gsi": 4, "type": KVM_IRQ_ROUTING_IRQCHIP, "u": pin},
            {"gsi": 24, "type": KVM_IRQ_ROUTING_MSI, "u": msi},
        ]
    )
    with pytest.raises(KVMError, match="KVM_SET_GSI_ROUTING"):
        chipped.set_gsi_routing([{"gsi": 4, "type": 77}])


def requested(guest: Guest, vector: int) -> bool:
    """Whether the local APIC has a vector requested."""
    registers = guest.vcpu.get_lapic()
    (word,) = struct.unpack_from("<I", registers, 0x200 + vector // 32 * 0x10)
    return bool(word >> vector % 32 & 1)


def enable_apic(guest: Guest) -> None:
    registers = bytearray(guest.vcpu.get_lapic())
    struct.pack_into("<I", registers, 0xF0, 0x1FF)
    guest.vcpu.set_lapic(registers)


def test_an_msi_arrives_in_the_local_apic(chipped: VM) -> None:
    with Guest(chipped) as guest:
        enable_apic(guest)
        assert chipped.signal_msi(0xFEE00000, 0x55) == 1
        assert requested(guest, 0x55)
        assert chipped.signal_msi(0xFEE00000, 0x66, devid=1) == 1
        assert requested(guest, 0x66)


def test_an_msi_without_local_apics_is_refused(vm: VM) -> None:
    with pytest.raises(KVMError, match="KVM_SIGNAL_MSI"):
        vm.signal_msi(0xFEE00000, 0x55)


def test_an_irqfd_raises_its_gsi(chipped: VM, eventfd: int) -> None:
    chipped.irqfd(eventfd, 3)
    os.eventfd_write(eventfd, 1)
    # A kernel worker raises and lowers the line; the PIC remembers the edge.
    deadline = time.monotonic() + 10
    while not chipped.get_irqchip(KVM_IRQCHIP_PIC_MASTER).chip.pic.irr & 1 << 3:
        assert time.monotonic() < deadline, "no interrupt at the PIC within 10 s of the eventfd"
        time.sleep(0.001)
    with pytest.raises(KVMError, match="KVM_IRQFD"):
        chipped.irqfd(eventfd, 4)
    chipped.irqfd(eventfd, 3, deassign=True)


def test_an_irqfd_with_resampling(chipped: VM, eventfd: int) -> None:
    require_cap(chipped, Cap.KVM_CAP_IRQFD_RESAMPLE)
    other = os.eventfd(0)
    try:
        chipped.irqfd(eventfd, 5, resamplefd=other)
        chipped.irqfd(eventfd, 5, resamplefd=other, deassign=True)
    finally:
        os.close(other)


def test_vcpus_wait_for_their_init(chipped: VM) -> None:
    boot, other = chipped.create_vcpu(0), chipped.create_vcpu(1)
    assert boot.get_mp_state() == KVM_MP_STATE_RUNNABLE
    assert other.get_mp_state() == KVM_MP_STATE_UNINITIALIZED
    other.set_mp_state(KVM_MP_STATE_RUNNABLE)
    assert other.get_mp_state() == KVM_MP_STATE_RUNNABLE


def test_tpr_access_reporting(chipped: VM) -> None:
    vcpu = chipped.create_vcpu(0)
    vcpu.tpr_access_reporting(True)
    vcpu.tpr_access_reporting(False)
    vcpu.set_vapic_addr(0)


OUT = """
    B0 41        mov al, 'A'
    E6 80        out 0x80, al
    B0 42        mov al, 'B'
    E6 80        out 0x80, al
    F4           hlt
"""


def test_an_ioeventfd_takes_the_place_of_an_exit(guest: Guest, eventfd: int) -> None:
    guest.vm.ioeventfd(eventfd, 0x80, 1, pio=True, datamatch=0x41)
    with pytest.raises(KVMError, match="already takes these writes"):
        guest.vm.ioeventfd(eventfd, 0x80, 1, pio=True, datamatch=0x41)
    guest.load(OUT)
    reason, io = guest.run()
    assert (reason, io.port) == (ExitReason.KVM_EXIT_IO, 0x80)
    assert guest.vcpu.run_page[io.data_offset] == 0x42
    assert os.eventfd_read(eventfd) == 1
    guest.vm.ioeventfd(eventfd, 0x80, 1, pio=True, datamatch=0x41, deassign=True)
    guest.load(OUT)
    assert guest.run()[0] is ExitReason.KVM_EXIT_IO


def test_coalesced_writes_wait_in_the_ring(guest: Guest) -> None:
    page = require_cap(guest.vm, Cap.KVM_CAP_COALESCED_MMIO)
    require_cap(guest.vm, Cap.KVM_CAP_COALESCED_PIO)
    assert page == KVM_COALESCED_MMIO_PAGE_OFFSET
    guest.vm.register_coalesced_mmio(0x80, 1, pio=True)
    guest.load(OUT)
    assert guest.run()[0] is ExitReason.KVM_EXIT_HLT
    ring = uapi.kvm_coalesced_mmio_ring.unpack(
        guest.vcpu.run_page[page * 4096 : page * 4096 + 4096]
    )
    entries = ring.coalesced_mmio[ring.first : ring.last]
    assert [(entry.phys_addr, entry.len, entry.pio, entry.data[0]) for entry in entries] == [
        (0x80, 1, 1, 0x41),
        (0x80, 1, 1, 0x42),
    ]
    guest.vm.unregister_coalesced_mmio(0x80, 1, pio=True)
    guest.load(OUT)
    assert guest.run()[0] is ExitReason.KVM_EXIT_IO
