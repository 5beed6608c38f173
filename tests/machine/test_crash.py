"""What killed the guest, in words, for every way of dying: no KVM needed."""

from __future__ import annotations

from typing import Any

import pytest

from pykvm import exits
from pykvm.machine.crash import crash_of
from pykvm.memory import GuestMemory
from pykvm.x86 import paging
from pykvm.x86.entry import real_mode, reset
from pykvm.x86.state import CpuState


class FakeCPU:
    """As much of a CPU as a report looks at."""

    def __init__(self, memory: GuestMemory, state: CpuState) -> None:
        self.memory = memory
        self.state = state
        self.regs = {"rip": state.rip}

    def walk(self, address: int, *, access: str = "read") -> Any:
        s = self.state
        return paging.walk(
            self.memory.read,
            address,
            cr0=s.cr0,
            cr3=s.cr3,
            cr4=s.cr4,
            efer=s.efer,
            access=access,
        )

    def read(self, address: int, length: int) -> bytes:
        return self.memory.read(address, length)


def report(exit: exits.Exit, *, ip: int = 0x1000, state: CpuState | None = None) -> Any:
    with GuestMemory() as memory:
        memory.add_ram(0, 0x10000)
        memory.write(0x1000, b"\xd9\xe8")
        cpu: Any = FakeCPU(memory, state or real_mode(ip=ip))
        return crash_of(cpu, exit, lambda address: "main+0x4" if address == 0x1000 else "")


@pytest.mark.parametrize(
    ("exit", "kind", "words"),
    [
        (exits.InternalError(1, (1, 0xE8D90F, 0)), "refused instruction", "starts with d9 e8"),
        (exits.InternalError(1), "refused instruction", "starts with d9 e8 00"),
        (exits.InternalError(3, (1, 2)), "KVM internal error", "delivered (data: 0x1 0x2)"),
        (exits.InternalError(9), "KVM internal error", "suberror 9 (data: none)"),
        (exits.FailEntry(0x80000021, 2), "entry failure", "invalid guest state (0x80000021, on"),
        (exits.FailEntry(7, 2), "entry failure", "a reason that the CPU's manual may list"),
        (exits.IoIn(0x60, 2), "wild access", "read 2 byte(s) from port 0x60, where there is no"),
        (exits.IoOut(0x60, 1, b"\1"), "wild access", "wrote 01 to port 0x60, where there is no"),
        (exits.MmioRead(0xD0000000, 4), "wild access", "read 4 byte(s) at physical address 0xd"),
        (exits.MmioWrite(0xD0000000, b"\1"), "wild access", "wrote 01 at physical address 0xd000"),
        (exits.MemoryFault(0, 0x5000, 0x1000), "memory fault", "0x1000 bytes at physical address"),
        (exits.SystemEvent(3), "guest panic", "SystemEvent(type=3"),
        (exits.Nmi(), "unexpected exit", "Nmi()"),
        (exits.UnknownReason(77, b""), "unexpected exit", "number=0x4d"),
    ],
)
def test_each_way_of_dying(exit: exits.Exit, kind: str, words: str) -> None:
    error = report(exit)

    assert error.kind == kind
    assert words in error.cause
    assert error.cause.endswith("at 0x1000 (main+0x4)")
    assert error.exit is exit
    assert error.registers == {"rip": 0x1000}


def test_what_the_processor_refused_to_enter() -> None:
    state = real_mode(ip=0x1000)
    assert "SDM volume 3, chapter 27" in report(exits.FailEntry(0x80000021, 2), state=state).hint
    state.tr.unusable, state.rflags = 1, 0x8002
    hint = report(exits.FailEntry(0x80000021, 2), state=state).hint
    assert hint == "TR is unusable; RFLAGS has reserved bit 15 set"


def test_a_jump_to_where_no_memory_is() -> None:
    error = report(exits.InternalError(1), ip=0xF000_0)

    assert error.kind == "wild jump"
    assert "no memory at 0xf0000" in error.cause


def test_an_interrupt_through_a_zero_vector_comes_before_what_it_led_to() -> None:
    with GuestMemory() as memory:
        memory.add_ram(0, 0x10000)
        memory.write(0x7C00, b"\xcd\x13")
        memory.write(0x7000, b"\x02\x7c\0\0\0\0")
        cpu: Any = FakeCPU(memory, real_mode(ip=0x1234, sp=0x7000))
        error = crash_of(cpu, exits.IoOut(0xE, 1, b"A"), lambda address: "")
    assert error.kind == "wild interrupt"
    assert error.cause == (
        "INT 0x13 at 0x7c00 went through a vector of zeros to address 0, and then: wild access: "
        "the guest wrote 41 to port 0xe, where there is no device, at 0x1234"
    )
    assert "no BIOS" in error.hint


def test_what_the_host_does_not_do_is_no_triple_fault_of_the_guests() -> None:
    with GuestMemory() as memory:
        memory.add_ram(0, 0x10000)
        cpu: Any = FakeCPU(memory, real_mode(ip=0x1000))
        error = crash_of(cpu, exits.Shutdown(), lambda address: "", limit="KVM does not do this")
    assert error.kind == "host limit"
    assert error.cause == "this host's KVM does not do this (tried just now), at 0x1000"


def test_a_triple_fault_in_real_mode() -> None:
    assert report(exits.Shutdown()).kind == "triple fault"


def test_a_triple_fault_that_resets_the_vcpu() -> None:
    """As kvm_amd does: nothing is told of the reset vector, which the guest never was at."""
    error = report(exits.Shutdown(), state=reset())

    assert error.kind == "triple fault"
    assert "its cause is not known" in error.cause
    assert "fff0" not in error.cause
    assert "on_exit=" in str(error.hint)


def test_other_exits_at_the_reset_vector_have_their_cause() -> None:
    assert "no memory at 0xfffffff0" in report(exits.InternalError(1), state=reset()).cause
