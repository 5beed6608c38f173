"""State of a guest that is a hypervisor itself (KVM_GET_NESTED_STATE), where it can be one."""

from __future__ import annotations

import pytest

from pykvm import Machine, Mode
from pykvm.exits import IoOut
from pykvm.kvm import Cap, System, uapi
from pykvm.machine.snapshot import Snapshot
from support.guest import MakeGuest
from support.host import host_probe

NESTED = "guests-can-use-svm"

# KVM_STATE_NESTED_GIF_SET (arch/x86/include/uapi/asm/kvm.h): the global interrupt flag is set.
GIF = 0x100

# Turns SVM on, and the global interrupt flag off, then on again (APM 2, 15.17).
CLGI_STGI = """
    B9 80 00 00 C0    mov ecx, 0xc0000080   ; EFER
    0F 32             rdmsr
    0D 00 10 00 00    or eax, 0x1000        ; SVME
    0F 30             wrmsr
    0F 01 DD          clgi
    E6 80             out 0x80, al
    0F 01 DC          stgi
    E6 80             out 0x80, al
    B0 00             mov al, 0
    E6 F4             out 0xf4, al
"""


@host_probe(NESTED)
def guests_can_use_svm() -> str | None:
    with System() as system:
        if not system.check_extension(Cap.KVM_CAP_NESTED_STATE):
            return "KVM has no nested virtualization here"
        shown = any(
            leaf.function == 0x8000_0001 and leaf.ecx & 1 << 2 for leaf in system.supported_cpuid()
        )
    return None if shown else "KVM offers guests no SVM"


def at_next_out(machine: Machine) -> Snapshot:
    for exit in machine.exits(timeout=60):
        if isinstance(exit, IoOut) and exit.port == 0x80:
            return machine.snapshot()
    raise AssertionError("the guest has ended")


def nested_flags(saved: Snapshot) -> int:
    (state,) = saved.state.cpus
    assert state.nested is not None
    flags: int = uapi.kvm_nested_state.unpack(state.nested).flags
    return flags


@pytest.mark.kvm
@pytest.mark.needs_host(NESTED)
def test_the_global_interrupt_flag_goes_back(guest: MakeGuest) -> None:
    machine = guest(CLGI_STGI, Mode.LONG, cpu="host")
    before = machine.snapshot()
    off = at_next_out(machine)
    on = at_next_out(machine)
    assert [bool(nested_flags(saved) & GIF) for saved in (before, off, on)] == [True, False, True]
    for saved in (off, before, on, off):
        machine.reset(saved)
        assert machine.snapshot().digest() == saved.digest()
        with saved.fork() as twin:
            assert twin.snapshot().state.cpus[0].nested == saved.state.cpus[0].nested
            assert twin.run(timeout=60).exit_code == 0
    assert machine.run(timeout=60).exit_code == 0


@pytest.mark.kvm
def test_a_guest_that_can_nest_nothing_has_no_such_state(guest: MakeGuest) -> None:
    machine = guest("F4 hlt")
    assert machine.vcpus[0].save().nested is None
