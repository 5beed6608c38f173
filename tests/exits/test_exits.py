"""Every exit, decoded from the bytes of a kvm_run page as the kernel lays them out."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm import exits
from pykvm.errors import ConfigError, StateError
from pykvm.exits import Exit, RunPage, decode
from pykvm.kvm import ExitReason

DATA = 4096


def page(reason: int, layout: str = "", *values: Any, data: bytes = b"") -> RunPage:
    """A kvm_run page with `reason` and, in its union, `values`; `data` is in the next page."""
    raw = bytearray(3 * 4096)
    struct.pack_into("<I", raw, 8, reason)
    struct.pack_into("<" + layout, raw, 32, *values)
    raw[DATA : DATA + len(data)] = data
    return RunPage(memoryview(raw))


# The union of struct kvm_run, <linux/kvm.h>; explicit padding as the compiler places it.
CASES: list[tuple[Exit, RunPage]] = [
    (exits.Unknown(7), page(0, "Q", 7)),
    (exits.ExceptionExit(14, 2), page(1, "II", 14, 2)),
    (exits.IoIn(0x3F8, 1), page(2, "BBHIQ", 0, 1, 0x3F8, 1, DATA)),
    (exits.IoIn(0x60, 2, 3), page(2, "BBHIQ", 0, 2, 0x60, 3, DATA)),
    (exits.IoOut(0x80, 4, b"abcd"), page(2, "BBHIQ", 1, 4, 0x80, 1, DATA, data=b"abcd")),
    (exits.IoOut(0x80, 1, b"abc"), page(2, "BBHIQ", 1, 1, 0x80, 3, DATA, data=b"abc")),
    (
        exits.Hypercall(12, (1, 2, 3, 4, 5, 6), 1),
        page(3, "7Q Q Q", 12, 1, 2, 3, 4, 5, 6, 0, 1),
    ),
    (exits.Debug(3, 0x1000, 0x4000, 0x400), page(4, "I4xQQQ", 3, 0x1000, 0x4000, 0x400)),
    (exits.Hlt(), page(5)),
    (exits.MmioRead(0xD0000000, 4), page(6, "Q8sIB", 0xD0000000, b"", 4, 0)),
    (exits.MmioWrite(0xD0000000, b"\1\2"), page(6, "Q8sIB", 0xD0000000, b"\1\2\3", 2, 1)),
    (exits.IrqWindowOpen(), page(7)),
    (exits.Shutdown(), page(8)),
    (exits.FailEntry(0x80000021, 3), page(9, "QI", 0x80000021, 3)),
    (exits.Interrupted(), page(10)),
    (exits.SetTpr(), page(11)),
    (exits.TprAccess(0x1000, True), page(12, "QI", 0x1000, 1)),
    (exits.Nmi(), page(16)),
    (exits.InternalError(3, (5, 6)), page(17, "IIQQ", 3, 2, 5, 6)),
    (exits.SystemEvent(2, (9,)), page(24, "IIQ", 2, 1, 9)),
    (exits.IoapicEoi(0x31), page(26, "B", 0x31)),
    (exits.Hyperv(2, bytes(range(32))), page(27, "I4x32s", 2, bytes(range(32)))),
    (exits.RdMsr(0xC0000080, 1), page(29, "B7xIIQ", 0, 1, 0xC0000080, 0)),
    (exits.WrMsr(0x10, 99, 4), page(30, "B7xIIQ", 0, 4, 0x10, 99)),
    (exits.DirtyRingFull(), page(31)),
    (exits.BusLock(), page(33)),
    (exits.Notify(1), page(37, "I", 1)),
    (exits.MemoryFault(8, 0x5000, 0x1000), page(39, "QQQ", 8, 0x5000, 0x1000)),
]


@pytest.mark.parametrize(("expected", "run"), CASES, ids=lambda value: type(value).__name__)
def test_decode(expected: Exit, run: RunPage) -> None:
    exit = decode(run)

    assert exit == expected
    assert type(exit) is type(expected)
    assert run.current is exit
    # What it prints is what makes it.
    assert eval(repr(exit), vars(exits)) == exit


# Exit reasons of <linux/kvm.h> that no x86 machine of ours can meet.
ELSEWHERE = {
    *("KVM_EXIT_S390_SIEIC", "KVM_EXIT_S390_RESET", "KVM_EXIT_S390_UCONTROL"),
    *("KVM_EXIT_S390_TSCH", "KVM_EXIT_S390_STSI", "KVM_EXIT_DCR", "KVM_EXIT_OSI"),
    *("KVM_EXIT_PAPR_HCALL", "KVM_EXIT_WATCHDOG", "KVM_EXIT_EPR", "KVM_EXIT_ARM_NISV"),
    *("KVM_EXIT_AP_RESET_HOLD", "KVM_EXIT_RISCV_SBI", "KVM_EXIT_RISCV_CSR"),
    *("KVM_EXIT_LOONGARCH_IOCSR", "KVM_EXIT_XEN", "KVM_EXIT_TDX", "KVM_EXIT_SNP_REQ_CERTS"),
}


def test_every_x86_reason_has_a_class() -> None:
    covered = {cls.reason for cls in exits.EXITS}
    missing = {member.name for member in ExitReason if member.value not in covered}
    assert missing <= ELSEWHERE


def test_every_class_is_frozen_slotted_and_tried_above() -> None:
    assert {type(exit) for exit, _ in CASES} == set(exits.EXITS)
    for exit, _ in CASES:
        assert not hasattr(exit, "__dict__")
        for name in type(exit).__fields__:
            with pytest.raises(AttributeError):
                setattr(exit, name, 1)
        assert hash(exit) == hash(exit)


def test_reasons_of_the_future_are_kept() -> None:
    exit = decode(page(77, "QQ", 1, 2))

    assert isinstance(exit, exits.UnknownReason)
    assert exit.number == 77
    assert exit.payload[:16] == struct.pack("<QQ", 1, 2)
    assert len(exit.payload) == 256


@given(st.binary(min_size=296, max_size=296), st.integers(0, 2**32 - 1))
def test_no_page_is_beyond_decoding(raw: bytes, reason: int) -> None:
    whole = bytearray(4096 * 3)
    whole[: len(raw)] = raw
    # The kernel's own: where the data of port I/O lies, and at most a page of it.
    struct.pack_into("<II", whole, 8, reason % 64, 0)
    if reason % 64 == 2:
        struct.pack_into("<BBHIQ", whole, 32, raw[32] & 1, 1, 0x80, raw[33] or 1, DATA)
    if reason % 64 == 6:
        struct.pack_into("<I", whole, 48, raw[48] % 9)
    assert repr(decode(RunPage(memoryview(whole))))


def test_matching() -> None:
    match decode(page(2, "BBHIQ", 1, 1, 0x80, 1, DATA, data=b"A")):
        case exits.IoOut(port=0x80, data=data):
            assert data == b"A"
        case other:
            raise AssertionError(other)
    match exits.MmioWrite(5, b"\1"):
        case exits.MmioWrite(address, data):
            assert (address, data) == (5, b"\1")


def test_answers_land_where_the_kernel_looks() -> None:
    run = page(2, "BBHIQ", 0, 2, 0x60, 2, DATA)
    read = decode(run)
    assert bytes(run.view[DATA : DATA + 4]) == b"\xff\xff\xff\xff"
    assert isinstance(read, exits.IoIn)
    read.answer(b"abcd")
    assert bytes(run.view[DATA : DATA + 4]) == b"abcd"
    read.answer(0x31323334)
    assert bytes(run.view[DATA : DATA + 4]) == b"4321"

    run = page(6, "Q8sIB", 0xD0000000, b"", 4, 0)
    load = decode(run)
    assert isinstance(load, exits.MmioRead)
    assert bytes(run.view[40:48]) == b"\xff" * 8
    load.answer(0x01020304)
    assert bytes(run.view[40:44]) == b"\4\3\2\1"

    run = page(29, "B7xIIQ", 0, 1, 0x10, 0)
    rdmsr = decode(run)
    assert isinstance(rdmsr, exits.RdMsr)
    assert run.view[32] == 1, "unanswered means #GP"
    rdmsr.answer(77)
    assert (run.view[32], run.view[48]) == (0, 77)
    rdmsr.fail()
    assert run.view[32] == 1

    run = page(30, "B7xIIQ", 0, 1, 0x10, 5)
    wrmsr = decode(run)
    assert isinstance(wrmsr, exits.WrMsr)
    wrmsr.accept()
    assert run.view[32] == 0
    wrmsr.fail()
    assert run.view[32] == 1

    run = page(3, "7Q", 12, 1, 2, 3, 4, 5, 6)
    call = decode(run)
    assert isinstance(call, exits.Hypercall)
    call.answer(-1)
    assert bytes(run.view[32 + 56 : 32 + 64]) == b"\xff" * 8


def test_the_result_of_a_hypercall_follows_its_arguments() -> None:
    """struct kvm_run, hypercall: __u64 nr, args[6], ret."""
    assert struct.calcsize("<Q6Q") == 56


@pytest.mark.parametrize("answer", [-1, 256, b"", b"ab"])
def test_answers_that_do_not_fit(answer: int | bytes) -> None:
    read = decode(page(2, "BBHIQ", 0, 1, 0x60, 1, DATA))
    assert isinstance(read, exits.IoIn)
    with pytest.raises(ConfigError, match="port 0x60"):
        read.answer(answer)
    load = decode(page(6, "Q8sIB", 0xD0000000, b"", 1, 0))
    assert isinstance(load, exits.MmioRead)
    with pytest.raises(ConfigError, match="0xd0000000"):
        load.answer(answer)


def test_exits_without_an_answer() -> None:
    with pytest.raises(StateError, match="not made by a vCPU"):
        exits.IoIn(0x60, 1).answer(1)
    run = page(2, "BBHIQ", 0, 1, 0x60, 1, DATA)
    old = decode(run)
    decode(run)
    assert isinstance(old, exits.IoIn)
    with pytest.raises(StateError, match="is over"):
        old.answer(1)


def test_the_refused_instruction() -> None:
    """struct emulation_failure: u64 flags, u8 insn_size, u8 insn_bytes[15], from ndata on."""
    code = bytes.fromhex("f30fb8c390909090909090909090 90")
    run = page(17, "IIQB15s", 1, 3, 1, 15, code)
    error = decode(run)

    assert isinstance(error, exits.InternalError)
    assert error.instruction == code
    assert exits.InternalError(1, (0, 5, 6)).instruction == b"", "no flag, no bytes"
    assert exits.InternalError(2, (1, 5, 6)).instruction == b""


def test_values_of_string_output() -> None:
    assert exits.IoOut(0x80, 2, b"\1\2\3\4").values == (0x201, 0x403)
    assert exits.IoOut(0x80, 2, b"\1\2").value == 0x201
