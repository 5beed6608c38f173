"""Completed instructions without KVM: what is written, injected, counted, refused."""

from __future__ import annotations

import random
import struct
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulate.encodings import encodings
from emulate.fake_vcpu import Bench
from pykvm import GuestExit
from pykvm.emulate import PATIENCE
from pykvm.emulate.fault import Fault
from pykvm.emulate.native import Native
from pykvm.emulate.table import method_of
from pykvm.emulate.units import unit_of
from pykvm.errors import GuestError
from pykvm.x86.decode import UndecodableError, decode
from pykvm.x86.registers import CR0, CR4, RFLAGS


def test_popcnt(bench: Bench) -> None:
    regs = bench.cpu.all.regs
    regs.rbx = 0xFF00FF
    assert bench.take(bytes.fromhex("f3480fb8c3"))
    assert (regs.rax, regs.rip) == (16, 0x1005)
    assert bench.cpu.taken == ["general"]
    assert bench.emulator.counts == {"popcnt": 1}


def test_16_bits_leave_the_rest_of_the_register(bench: Bench) -> None:
    regs = bench.cpu.all.regs
    regs.rax, regs.rbx = 0x1122_3344_5566_7788, 0
    bench.take(bytes.fromhex("66f30fb8c3"))
    assert regs.rax == 0x1122_3344_5566_0000
    bench.take(bytes.fromhex("f30fb8c3"))
    assert regs.rax == 0


def test_stac_and_clac(bench: Bench) -> None:
    regs = bench.cpu.all.regs
    bench.take(bytes.fromhex("0f01cb"))
    assert regs.rflags & RFLAGS.AC
    bench.take(bytes.fromhex("0f01ca"))
    assert not regs.rflags & RFLAGS.AC


def test_rdtscp_and_rdpid(bench: Bench) -> None:
    regs = bench.cpu.all.regs
    bench.take(bytes.fromhex("0f01f9"))
    assert (regs.rdx, regs.rax, regs.rcx) == (0x1234, 0x5678_9ABC, 3)
    bench.take(bytes.fromhex("f30fc7fb"))
    assert regs.rbx == 3


@pytest.mark.parametrize(("index", "value"), [(0, 7), (1, 2)])
def test_xgetbv(bench: Bench, index: int, value: int) -> None:
    bench.cpu.kvm.xsave[512] = 2
    regs = bench.cpu.all.regs
    regs.rcx = index
    bench.take(bytes.fromhex("0f01d0"))
    assert (regs.rdx, regs.rax) == (0, value)


def test_xsetbv(bench: Bench) -> None:
    regs = bench.cpu.all.regs
    regs.rax = 3
    bench.take(bytes.fromhex("0f01d1"))
    assert bench.cpu.kvm.xcr0 == 3


def test_invpcid_flushes_by_cr4_pge(bench: Bench) -> None:
    regs, sregs = bench.cpu.all.regs, bench.cpu.all.sregs
    regs.rax, regs.rdi = 2, 0x2000
    before = sregs.cr4
    bench.take(bytes.fromhex("660f388207"))
    assert bench.cpu.taken == ["sregs", "sregs", "general"]
    assert sregs.cr4 == before


@pytest.mark.parametrize("code", ["0f01c8", "0f01c9", "0f01fa", "0f01fb"])
def test_monitor_and_mwait_go_on(bench: Bench, code: str) -> None:
    bench.cpu.all.regs.rax = 0x2000
    assert bench.take(bytes.fromhex(code))
    assert bench.cpu.all.regs.rip == 0x1003


def test_cmpxchg16b(bench: Bench) -> None:
    regs = bench.cpu.all.regs
    bench.memory.write(0x2000, bytes(range(16)))
    regs.rdi, regs.rbx, regs.rcx = 0x2000, 1, 2
    bench.take(bytes.fromhex("480fc70f"))
    assert not regs.rflags & RFLAGS.ZF
    assert (regs.rax, regs.rdx) == (0x0706050403020100, 0x0F0E0D0C0B0A0908)
    bench.take(bytes.fromhex("480fc70f"))
    assert regs.rflags & RFLAGS.ZF
    assert (bench.memory.read_u64(0x2000), bench.memory.read_u64(0x2008)) == (1, 2)


def test_cmpxchg16b_of_a_device(bench: Bench) -> None:
    regs = bench.cpu.all.regs
    regs.rdi = 0xD000_0000
    bench.take(bytes.fromhex("480fc70f"))
    assert bench.devices.log == [
        ("read", 0xD000_0000, 8),
        ("read", 0xD000_0008, 8),
        ("write", 0xD000_0000, 8),
        ("write", 0xD000_0008, 8),
    ]
    assert regs.rax == 0x1111_1111_1111_1111


def test_int3_is_a_trap(bench: Bench) -> None:
    events = bench.cpu.all.events
    bench.take(b"\xcc")
    assert (events.exception.injected, events.exception.nr) == (1, 3)
    assert not events.exception.has_error_code
    assert bench.cpu.all.regs.rip == 0x1001
    assert bench.cpu.taken == ["general", "events"]


def test_int_n_is_a_software_interrupt(bench: Bench) -> None:
    interrupt = bench.cpu.all.events.interrupt
    bench.take(b"\xcd\x80")
    assert (interrupt.injected, interrupt.soft, interrupt.nr) == (1, 1, 0x80)
    assert not bench.cpu.all.events.exception.injected
    assert bench.cpu.all.regs.rip == 0x1002


@pytest.mark.parametrize("overflow", [False, True])
def test_into(bench: Bench, overflow: bool) -> None:
    bench.cpu.all.sregs.cs.l = 0
    bench.cpu.all.sregs.cs.db = 1
    bench.cpu.all.regs.rflags |= RFLAGS.OF if overflow else 0
    assert bench.take(b"\xce")
    assert bench.cpu.all.events.exception.injected == overflow
    assert bench.cpu.all.regs.rip == 0x1001


def test_a_fault_stays_on_the_instruction_and_sets_rf(bench: Bench) -> None:
    bench.cpu.all.sregs.cr0 |= CR0.TS
    bench.take(bytes.fromhex("0f58c1"))
    exception = bench.cpu.all.events.exception
    assert (exception.injected, exception.nr, exception.has_error_code) == (1, 7, 0)
    assert bench.cpu.all.regs.rip == 0x1000
    assert bench.cpu.all.regs.rflags & RFLAGS.RF


def test_no_error_code_in_real_mode(bench: Bench) -> None:
    bench.cpu.all.sregs.cr0 &= ~CR0.PE
    bench.cpu.all.sregs.ds.limit = 0xFFFF
    bench.cpu.all.regs.rbx = 0xFFFF
    bench.take(bytes.fromhex("f30fb807"))
    exception = bench.cpu.all.events.exception
    assert (exception.nr, exception.has_error_code) == (13, 0)


def test_completing_clears_rf_and_the_shadow(bench: Bench) -> None:
    bench.cpu.all.regs.rflags |= RFLAGS.RF
    bench.cpu.all.events.interrupt.shadow = 1
    bench.take(bytes.fromhex("0f01ca"))
    assert not bench.cpu.all.regs.rflags & RFLAGS.RF
    assert bench.cpu.all.events.interrupt.shadow == 0
    assert "events" in bench.cpu.taken


def test_a_step_after_the_instruction(bench: Bench) -> None:
    bench.cpu.all.regs.rflags |= RFLAGS.TF
    bench.take(bytes.fromhex("0f01ca"))
    assert bench.cpu.all.events.exception.nr == 1
    assert bench.cpu.kvm.dr6 & 1 << 14


def test_the_same_fault_for_ever_is_no_progress(bench: Bench) -> None:
    bench.cpu.all.sregs.cr0 |= CR0.TS
    bench.cpu.all.regs.rflags |= RFLAGS.RF
    for _ in range(PATIENCE):
        assert bench.take(bytes.fromhex("0f58c1"))
    with pytest.raises(GuestError, match=r"addps at 0x1000 raised exception 7") as caught:
        bench.take(bytes.fromhex("0f58c1"))
    assert caught.value.kind == "no progress"


def test_an_exit_in_between_is_progress(bench: Bench) -> None:
    bench.cpu.all.sregs.cr0 |= CR0.TS
    for _ in range(2 * PATIENCE):
        assert bench.take(bytes.fromhex("0f58c1"))
        bench.cpu.core.exits[2] += 1


class Ends:
    """A device that ends the run."""

    def read(self, address: int, size: int) -> int:
        raise GuestExit(9)

    def write(self, address: int, size: int, value: int) -> None:
        raise GuestExit(9)


@pytest.mark.parametrize("code", ["f3480fb807", "660f6f07", "c5fa6f07"])
def test_what_a_device_raises_comes_after_the_instruction(bench: Bench, code: str) -> None:
    bench.emulator._devices = Ends()
    bench.cpu.all.regs.rdi = 0xD000_0000
    raw = bytes.fromhex(code)
    with pytest.raises(GuestExit):
        bench.take(raw)
    assert bench.cpu.all.regs.rip == 0x1000 + len(raw)
    assert bench.cpu.taken[-1] == "general"


class NoDevice:
    """Where no device is."""

    def read(self, address: int, size: int) -> int:
        raise GuestError("wild access", "here")

    def write(self, address: int, size: int, value: int) -> None:
        raise GuestError("wild access", "here")


@pytest.mark.parametrize("code", ["f3480fb807", "660f6f07", "660f7f07", "c5fa6f07"])
def test_a_wild_access_leaves_everything_as_it_was(bench: Bench, code: str) -> None:
    bench.emulator._devices = NoDevice()
    bench.cpu.all.regs.rdi = 0xD000_0000
    with pytest.raises(GuestError):
        bench.take(bytes.fromhex(code))
    assert bench.cpu.all.regs.rip == 0x1000
    assert bench.cpu.taken == []


def test_ten_pages_of_devices_are_too_many_for_none(bench: Bench) -> None:
    """A window is free again after each instruction."""
    for page in range(20):
        bench.cpu.all.regs.rdi = 0xD000_0000 + 0x1000 * page
        assert bench.take(bytes.fromhex("660f6f07"))


def vector(bench: Bench, number: int) -> int:
    start = 160 + 16 * number
    return int.from_bytes(bench.cpu.kvm.xsave[start : start + 16], "little")


def test_state_goes_in_and_comes_out(bench: Bench) -> None:
    bench.cpu.kvm.xsave[160:192] = bytes(range(32))
    bench.cpu.kvm.xsave[512] = 3
    before = bytes(bench.cpu.kvm.xsave)
    assert bench.take(bytes.fromhex("660fefc1"))
    assert vector(bench, 0) == int.from_bytes(bytes(range(16)), "little") ^ int.from_bytes(
        bytes(range(16, 32)), "little"
    )
    after = bench.cpu.kvm.xsave
    assert after[176:512] == before[176:512]
    assert after[512] & 2 == 2
    assert after[520:576] == before[520:576]


def test_code_that_changes_in_place_is_seen(bench: Bench) -> None:
    regs = bench.cpu.all.regs
    bench.cpu.kvm.xsave[160:176] = b"\1" * 16
    bench.cpu.kvm.xsave[512] = 2
    for code, expected in (("660ffec0", 0x02), ("660fefc0", 0), ("660ffec0", 0)):
        regs.rip = 0x1000
        assert bench.take(bytes.fromhex(code))
        assert vector(bench, 0) & 0xFF == expected


def test_code_at_the_end_of_a_page_and_of_the_address_space(bench: Bench) -> None:
    regs = bench.cpu.all.regs
    for rip in (0x1FFE, 0xFFFF_FFFF_FFFF_FFFC, 0x7FFF_FFFF_FFFE, 0x1FFF, 0x7FFF_0000):
        regs.rip = rip
        assert bench.take(bytes.fromhex("660fefc0"))
        assert regs.rip == (rip + 4) & (1 << 64) - 1


ONES = struct.pack("<4f", 1, 1, 1, 1)


@pytest.mark.parametrize(
    ("mxcsr", "cr4", "vector_", "after"),
    [
        (0x1F80, CR4.OSXMMEXCPT, None, 0x1F84),  # masked: a flag
        (0x1D80, CR4.OSXMMEXCPT, 19, 0x1D84),  # divide by zero is unmasked: #XM
        (0x1D80, 0, 6, 0x1D84),  # without OSXMMEXCPT #UD
        (0x1F20, CR4.OSXMMEXCPT, None, 0x1F24),  # another one is; old flags stay
    ],
)
def test_simd_exceptions(
    bench: Bench, mxcsr: int, cr4: int, vector_: int | None, after: int
) -> None:
    """DIVPS of ones by zeros (SDM 1 11.5.2)."""
    bench.cpu.all.sregs.cr4 |= cr4
    state = bench.cpu.kvm.xsave
    state[160:176], state[24:26], state[512] = ONES, mxcsr.to_bytes(2, "little"), 2
    assert bench.take(bytes.fromhex("0f5ec1"))
    exception = bench.cpu.all.events.exception
    assert (exception.nr if exception.injected else None) == vector_
    assert int.from_bytes(state[24:26], "little") == after
    assert (bytes(state[160:176]) == ONES) == (vector_ is not None)
    assert bench.cpu.all.regs.rip == (0x1000 if vector_ else 0x1003)


@pytest.mark.parametrize(
    ("control", "status", "top"),
    [
        (0x37F, 0x3804, 0x7FFF),  # masked: infinity
        (0x37B, 0xB884, 0x3FFF),  # not masked: no result, and #MF is due
    ],
)
def test_x87_exceptions(bench: Bench, control: int, status: int, top: int) -> None:
    """FDIV of 1 by an 0 in memory; the exception waits for the next instruction (SDM 1 8.6)."""
    state = bench.cpu.kvm.xsave
    state[0:2], state[2:4], state[4], state[512] = control.to_bytes(2, "little"), b"\0\x38", 0x80, 1
    state[32:42] = bytes.fromhex("0000000000000080ff3f")
    regs = bench.cpu.all.regs
    regs.rdi = 0x2000
    assert bench.take(bytes.fromhex("d837"))
    assert int.from_bytes(state[0:2], "little") == control
    assert int.from_bytes(state[2:4], "little") == status
    assert int.from_bytes(state[40:42], "little") == top
    assert (regs.rip, bench.cpu.all.events.exception.injected) == (0x1002, 0)
    assert bench.take(bytes.fromhex("d9e8"))
    exception = bench.cpu.all.events.exception
    assert (exception.nr if exception.injected else None) == (None if control == 0x37F else 16)


def test_x87_has_where_the_guest_was(bench: Bench) -> None:
    """FOP, FIP and FDP are the guest's, not those of the code that ran here."""
    regs = bench.cpu.all.regs
    regs.rdi = 0x2000
    assert bench.take(bytes.fromhex("dd4708"))
    state = bench.cpu.kvm.xsave
    assert bytes(state[6:24]) == (0x547).to_bytes(2, "little") + struct.pack("<QQ", 0x1000, 0x2008)
    assert bench.take(bytes.fromhex("660fefc0"))
    assert bytes(state[8:24]) == struct.pack("<QQ", 0x1000, 0x2008)


@pytest.mark.parametrize("code", ["d9e2", "0f13c1", "660f2bc1", "0f5007", "0f7207", "660f72d8"])
def test_a_form_that_there_is_not_is_undefined(bench: Bench, code: str) -> None:
    """By the table, or found by trying; again and again."""
    for _ in range(2):
        assert bench.take(bytes.fromhex(code.ljust(8, "1")))
        assert bench.cpu.all.events.exception.nr == 6
        assert bench.cpu.all.regs.rip == 0x1000


def test_no_instruction_that_runs_here_does_more_than_compute() -> None:
    """Each of them, tried in a process of its own, comes to its end or is not there."""
    native = Native()
    tried = 0
    for code in encodings():
        with suppress(UndecodableError):
            instruction = decode(code, 64)
            unit = method_of(instruction).unit
            if unit is None or unit.undefined:
                continue
            tried += 1
            with suppress(Fault):
                native.place(instruction, unit)
    assert tried > 2000


@pytest.mark.parametrize(
    "code",
    [
        *("f4", "e680", "0f05", "0f22c0", "0f30", "cf", "0f01d8", "90"),
        *("0ff7c1", "660ff7c1", "c5f9f7c1"),  # MASKMOVQ and its siblings store by RDI
        *("c4e2f9920c0f", "c4e27190040f"),  # gathers
        *("c4e2712c07", "c4e2718c07"),  # masked moves, which do not touch all of the operand
        *("d92f", "d927", "dd27", "dd37", "d937", "0fae17", "9b"),  # control words
    ],
)
def test_what_does_more_than_compute_does_not_run_here(code: str) -> None:
    assert unit_of(decode(bytes.fromhex(code), 64)) is None


_BYTES = st.one_of(
    st.binary(min_size=1, max_size=15),
    st.builds(
        lambda prefix, head, tail: prefix + head + tail,
        st.sampled_from([b"", b"\x66", b"\xf3", b"\xf2", b"\x67", b"\x64", b"\x48", b"\x66\x48"]),
        st.sampled_from(
            [b"\x0f", b"\x0f\x38", b"\x0f\x3a", b"\xc5", b"\xc4\xe2", b"\xd9", b"\xdd"]
        ),
        st.binary(min_size=2, max_size=10),
    ),
)


@given(
    code=_BYTES, seed=st.integers(0, 1 << 32), mode=st.sampled_from(["long", "32", "16", "real"])
)
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_instruction_in_any_state(bench: Bench, code: bytes, seed: int, mode: str) -> None:
    """Nothing but a yes, a no, or a GuestError comes of it; our own memory stays as it is."""
    source = random.Random(seed)
    registers = bench.cpu.all
    sregs, regs = registers.sregs, registers.regs
    for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "rip"):
        value = source.choice([source.getrandbits(64), source.randrange(0x10_0000), 0xD000_0000])
        setattr(regs, name, value)
    regs.rflags = source.getrandbits(22) & ~RFLAGS.VM | 2
    sregs.cr0 = source.getrandbits(32) & ~CR0.PE | (mode != "real") * CR0.PE
    sregs.cr3, sregs.cr4 = source.getrandbits(40), source.getrandbits(23)
    sregs.efer = 0xD00 if mode == "long" else 0
    sregs.cs.l, sregs.cs.db = mode == "long", mode == "32"
    for name in ("cs", "ds", "es", "fs", "gs", "ss", "ldt"):
        segment = getattr(sregs, name)
        segment.base, segment.limit = source.getrandbits(48), source.getrandbits(32)
        segment.type, segment.dpl = source.randrange(16), source.randrange(4)
        segment.unusable, segment.present = source.randrange(2), source.randrange(2)
    sregs.gdt.base, sregs.idt.base = source.getrandbits(64), source.getrandbits(20)
    sregs.gdt.limit, sregs.idt.limit = source.getrandbits(16), source.getrandbits(16)
    bench.cpu.kvm.xsave[:512] = source.randbytes(512)
    bench.cpu.kvm.xsave[26:32] = b"\0\0\xff\xff\0\0"
    with suppress(GuestError):
        bench.take(code)
    assert len(bench.memory.regions) == 1
