"""Guests of a few instructions run through VCPU.run."""

from __future__ import annotations

import errno
import mmap
import signal
import threading

import pytest
from kvm.guest import CODE, Guest, require_cap

from pykvm.errors import KVMError
from pykvm.kvm import VM, Cap, ExitReason, uapi
from pykvm.kvm.constants import (
    KVM_EXIT_IO_IN,
    KVM_EXIT_IO_OUT,
    KVM_GUESTDBG_SINGLESTEP,
    KVM_GUESTDBG_USE_HW_BP,
    KVM_SYNC_X86_REGS,
)
from pykvm.kvm.handle import address_of
from support.debugging import BREAKPOINTS, STEPS

pytestmark = pytest.mark.kvm


def test_a_byte_goes_out(guest: Guest) -> None:
    guest.load("""
        B0 41        mov al, 'A'
        E6 80        out 0x80, al
        F4           hlt
    """)
    reason, io = guest.run()
    assert reason is ExitReason.KVM_EXIT_IO
    assert (io.direction, io.port, io.size, io.count) == (KVM_EXIT_IO_OUT, 0x80, 1, 1)
    assert guest.vcpu.run_page[io.data_offset] == 0x41
    assert guest.page.exit.io == io
    assert guest.run() == (ExitReason.KVM_EXIT_HLT, None)
    assert guest.vcpu.get_regs().rip == CODE + 5


def test_a_word_comes_in(guest: Guest) -> None:
    guest.load("""
        BA F8 03     mov dx, 0x3f8
        ED           in ax, dx
        F4           hlt
    """)
    reason, io = guest.run()
    assert (reason, io.direction, io.size) == (ExitReason.KVM_EXIT_IO, KVM_EXIT_IO_IN, 2)
    guest.vcpu.run_page[io.data_offset : io.data_offset + 2] = b"\x34\x12"
    assert guest.run()[0] is ExitReason.KVM_EXIT_HLT
    assert guest.vcpu.get_regs().rax == 0x1234


def test_a_write_to_nowhere_is_mmio(guest: Guest) -> None:
    guest.load("""
        B8 00 20     mov ax, 0x2000
        8E D8        mov ds, ax
        C6 06 34 12 5A   mov byte [0x1234], 0x5a
        F4           hlt
    """)
    reason, mmio = guest.run()
    assert reason is ExitReason.KVM_EXIT_MMIO
    assert (mmio.phys_addr, mmio.len, mmio.is_write, mmio.data[0]) == (0x21234, 1, 1, 0x5A)
    assert guest.run()[0] is ExitReason.KVM_EXIT_HLT


@pytest.mark.needs_host(STEPS)
def test_single_steps(guest: Guest) -> None:
    guest.load("""
        90           nop
        90           nop
        F4           hlt
    """)
    guest.vcpu.set_guest_debug(KVM_GUESTDBG_SINGLESTEP)
    reason, debug = guest.run()
    assert (reason, debug.arch.pc) == (ExitReason.KVM_EXIT_DEBUG, CODE + 1)
    assert guest.run()[1].arch.pc == CODE + 2
    guest.vcpu.set_guest_debug(0)
    assert guest.run()[0] is ExitReason.KVM_EXIT_HLT


@pytest.mark.needs_host(BREAKPOINTS)
def test_a_hardware_breakpoint(guest: Guest) -> None:
    guest.load("""
        90           nop
        90           nop
        F4           hlt
    """)
    guest.vcpu.set_guest_debug(KVM_GUESTDBG_USE_HW_BP, [CODE + 1, 0, 0, 0, 0, 0, 0, 0x402])
    reason, debug = guest.run()
    assert (reason, debug.arch.pc) == (ExitReason.KVM_EXIT_DEBUG, CODE + 1)
    assert debug.arch.dr6 & 1


def test_immediate_exit_is_eintr(guest: Guest) -> None:
    require_cap(guest.vm, Cap.KVM_CAP_IMMEDIATE_EXIT)
    guest.load("F4 hlt")
    guest.set_page("immediate_exit", 1)
    with pytest.raises(KVMError) as caught:
        guest.vcpu.run()
    assert (caught.value.ioctl, caught.value.errno) == ("KVM_RUN", errno.EINTR)
    guest.set_page("immediate_exit", 0)
    assert guest.run()[0] is ExitReason.KVM_EXIT_HLT


def test_a_blocked_signal_that_the_mask_lets_through_ends_the_run(guest: Guest) -> None:
    guest.load("EB FE jmp $")
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        guest.vcpu.set_signal_mask(previous)
        me = threading.get_ident()
        kick = threading.Timer(0.02, signal.pthread_kill, (me, signal.SIGUSR1))
        kick.start()
        with pytest.raises(KVMError) as caught:
            guest.vcpu.run()
        kick.join()
        assert caught.value.errno == errno.EINTR
        assert signal.sigtimedwait({signal.SIGUSR1}, 5) is not None
        guest.vcpu.set_signal_mask(None)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def test_registers_are_synchronised(guest: Guest) -> None:
    assert require_cap(guest.vm, Cap.KVM_CAP_SYNC_REGS) & KVM_SYNC_X86_REGS
    guest.load("""
        40           inc ax
        F4           hlt
    """)
    guest.set_page("kvm_valid_regs", KVM_SYNC_X86_REGS)
    assert guest.run()[0] is ExitReason.KVM_EXIT_HLT
    shared = uapi.kvm_regs.unpack(guest.vcpu.run_page, uapi.kvm_run.offset_of("s.regs.regs"))
    assert shared.rax == 1
    assert shared == guest.vcpu.get_regs()


def test_an_interrupt_window(guest: Guest) -> None:
    guest.load("""
        FB           sti
        90           nop
        EB FE        jmp $
    """)
    guest.set_page("request_interrupt_window", 1)
    assert guest.run() == (ExitReason.KVM_EXIT_IRQ_WINDOW_OPEN, None)
    assert guest.page.ready_for_interrupt_injection == 1
    handler = 0x2000
    guest.memory[0x31 * 4 : 0x31 * 4 + 4] = bytes([0, handler >> 8, 0, 0])
    guest.memory[handler] = 0xF4
    guest.set_page("request_interrupt_window", 0)
    guest.vcpu.interrupt(0x31)
    assert guest.run()[0] is ExitReason.KVM_EXIT_HLT
    assert guest.vcpu.get_regs().rip == handler + 1


def test_no_memory_to_run_in_is_an_exit_or_an_error(vm: VM) -> None:
    vcpu = vm.create_vcpu(0)
    with mmap.mmap(-1, 0x1000) as memory:
        vm.set_user_memory_region(0, 0, 0, 0x1000, address_of(memory))
        vcpu.run()
        reason = uapi.kvm_run.unpack(vcpu.run_page).exit_reason
        assert reason in (
            ExitReason.KVM_EXIT_INTERNAL_ERROR,
            ExitReason.KVM_EXIT_MMIO,
            ExitReason.KVM_EXIT_SHUTDOWN,
        )
        vm.close()
