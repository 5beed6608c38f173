"""Learnt instructions, done by the core; the kvm_run page and guest memory are the test's."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pykvm._core import ffi, lib
from pykvm.emulate.native import Native
from pykvm.emulate.table import method_of
from pykvm.memory.pages import Pages
from pykvm.x86.decode import decode
from pykvm.x86.registers import CR0, CR4, EFER, RFLAGS

IMMEDIATE_EXIT, PAYLOAD, SYNC = 1, 32, 304
MEMORY = 0x10_000
PML4, PDPT, PD, PT = 0x1000, 0x2000, 0x3000, 0x4000
CODE, DATA, ROM = 0x8000, 0xA000, 0xF_0000
P, W, U, A, D = 1, 2, 4, 0x20, 0x40
ALL = P | W | A | D
ONE, TWO = struct.pack("<4f", 1, 1, 1, 1), struct.pack("<4f", 2, 2, 2, 2)
ADDPS = "0f58c1"


class Vcpu:
    """A vCPU in 64-bit code of ring 0, at an instruction that KVM refused."""

    def __init__(self) -> None:
        self.page = bytearray(0x1000)
        self.memory = bytearray(MEMORY)
        self._handles = ffi.from_buffer(self.page), ffi.from_buffer(self.memory)
        self.address = ffi.cast("char *", self._handles[0])
        self.sync = ffi.cast("struct kvm_sync_regs *", self.address + SYNC)
        self.native = Native()
        self.core = self.native.core
        self.regions = ffi.new("struct pykvm_region[1]")
        self.regions[0].size = MEMORY
        self.regions[0].host = ffi.cast("uint8_t *", self._handles[1])
        self.pages = Pages(int(ffi.cast("uintptr_t", self._handles[1])), MEMORY)
        self.regions[0].pages = self.pages.core
        self.core.regions, self.core.region_count = self.regions, 1
        self.state = ffi.buffer(self.core.state, 4096)
        self.state[0:2], self.state[24:26] = b"\x7f\x03", b"\x80\x1f"
        self.state[160:176], self.state[176:192], self.state[512:513] = ONE, TWO, b"\x02"
        sregs, self.regs = self.sync.sregs, self.sync.regs
        sregs.cr0, sregs.cr3 = CR0.PE | CR0.PG, PML4
        sregs.cr4, sregs.efer, sregs.cs.l = CR4.PAE | CR4.OSFXSR, EFER.LMA, 1
        self.sregs = sregs
        self.regs.rip, self.regs.rflags = CODE, 2
        for table, target in ((PML4, PDPT), (PDPT, PD), (PD, PT)):
            self.put(table, (target | ALL | U).to_bytes(8, "little"))
        for page in range(0, MEMORY, 0x1000):
            self.map(page, ALL)

    def close(self) -> None:
        self.native.close()
        for handle in self._handles:
            ffi.release(handle)

    def map(self, page: int, rights: int) -> None:
        self.put(PT + page // 0x1000 * 8, (page | rights).to_bytes(8, "little"))

    def put(self, address: int, content: bytes) -> None:
        self.memory[address : address + len(content)] = content

    def code(self, *instructions: str, at: int = CODE) -> None:
        """Instructions one after the other, of which the core has learnt each."""
        state = bytes(self.state)  # trying new code takes it
        for text in instructions:
            raw = bytes.fromhex(text)
            plan = method_of(decode(raw, 64))
            assert plan.unit is not None
            self.put(at, raw)
            self.native.place(plan.instruction, plan.unit)
            refused: Any = SimpleNamespace(instruction=plan.instruction)
            self.native.learn(refused, plan.unit, plan.name, at)
            at += len(raw)
        self.state[:] = state

    def steps(self) -> int:
        """As after the exit at RIP."""
        rip = self.regs.rip
        told = bytes(self.memory[rip : min(rip + 15, (rip | 0xFFF) + 1)])
        struct.pack_into("<IIQB15s", self.page, PAYLOAD, 1, 3, 1, len(told), told)
        done: int = lib.pykvm_native_steps(self.core, self.address)
        return done

    def xmm(self, number: int) -> bytes:
        return bytes(self.state[160 + 16 * number : 176 + 16 * number])


@pytest.fixture
def vcpu() -> Iterator[Vcpu]:
    made = Vcpu()
    yield made
    made.close()


def test_learnt_instructions_run_one_after_the_other(vcpu: Vcpu) -> None:
    vcpu.code(ADDPS, ADDPS, "0f59c1")
    assert vcpu.steps() == 3
    assert vcpu.xmm(0) == struct.pack("<4f", 10, 10, 10, 10)
    assert vcpu.regs.rip == CODE + 9
    assert vcpu.native.counts() == {"addps": 2, "mulps": 1}
    # Nothing was learnt after them.
    assert vcpu.steps() == 0


def test_registers_and_flags(vcpu: Vcpu) -> None:
    regs = vcpu.regs
    regs.r15, regs.rsp, regs.rax, regs.rflags = 1 << 40, 7, 5, 2 | RFLAGS.OF | RFLAGS.DF | RFLAGS.RF
    vcpu.code("f3440f2cf9", "f3480f2ac4", "0f2ec1")  # cvttss2si r15d, cvtsi2ss rsp, ucomiss
    assert vcpu.steps() == 3
    assert (regs.r15, regs.rsp, regs.rax) == (2, 7, 5)
    assert struct.unpack("<f", vcpu.xmm(0)[:4]) == (7.0,)
    assert regs.rflags == 2 | RFLAGS.DF


def test_operands_in_memory(vcpu: Vcpu) -> None:
    regs, sregs = vcpu.regs, vcpu.sregs
    regs.rdi, regs.rcx, sregs.gs.base = DATA, 2, DATA - 0x100
    vcpu.put(DATA + 0x20, TWO)
    vcpu.put(DATA + 0x40, ONE)
    end = CODE + 28
    vcpu.code(
        "0f58448f18",  # addps xmm0, [rdi + 4 * rcx + 24]
        "0f588720000000",  # addps xmm0, [rdi + 32]
        "650f58042540010000",  # addps xmm0, gs:[0x140]
        "0f5805" + (DATA + 0x40 - end).to_bytes(4, "little").hex(),  # addps xmm0, [rip + ...]
        "0f1107",  # movups [rdi], xmm0
    )
    assert vcpu.steps() == 5
    assert bytes(vcpu.memory[DATA : DATA + 16]) == struct.pack("<4f", 7, 7, 7, 7)
    assert (vcpu.pages.core.dirty[0], DATA // 0x1000) == (1 << 10, 10)


@pytest.mark.parametrize(
    ("rights", "cr4", "dpl", "load", "store"),
    [
        (ALL, 0, 0, 1, 1),
        (P | A | D, 0, 0, 1, 0),
        (P | W | A, 0, 0, 1, 0),
        (P | W | D, 0, 0, 0, 0),
        (W | A | D, 0, 0, 0, 0),
        (ALL | U, 0, 3, 1, 1),
        (ALL, 0, 3, 0, 0),
        (ALL | U, CR4.SMAP, 0, 0, 0),
        (ALL | U, 0, 0, 1, 1),
        (ALL, CR4.SMAP, 0, 1, 1),
    ],
)
def test_rights_that_need_a_closer_look(
    vcpu: Vcpu, rights: int, cr4: int, dpl: int, load: int, store: int
) -> None:
    vcpu.map(DATA, rights)
    vcpu.sregs.cr4 |= cr4
    vcpu.sregs.ss.dpl = dpl
    vcpu.regs.rdi = DATA
    for code, expected in (("0f5807", load), ("0f1107", store)):
        vcpu.code(code)
        vcpu.regs.rip = CODE
        before = bytes(vcpu.memory)
        assert vcpu.steps() == expected
        assert (vcpu.regs.rip == CODE) == (not expected)
        assert expected or bytes(vcpu.memory) == before


@pytest.mark.parametrize("address", [DATA + 8, DATA + 0xFF8, ROM, 1 << 47, 1 << 62])
def test_addresses_that_need_a_closer_look(vcpu: Vcpu, address: int) -> None:
    """Misaligned, across pages, no RAM, not canonical."""
    vcpu.code("0f5807")
    vcpu.regs.rdi = address
    assert vcpu.steps() == 0
    assert vcpu.regs.rip == CODE


def test_changed_code_is_not_taken_for_what_was_learnt(vcpu: Vcpu) -> None:
    vcpu.code(ADDPS, ADDPS)
    vcpu.put(CODE + 3, bytes.fromhex("0f5cc1"))
    assert vcpu.steps() == 1
    vcpu.regs.rip = CODE + 3
    assert vcpu.steps() == 0


def test_a_breakpoint_is_left_to_kvm(vcpu: Vcpu) -> None:
    vcpu.code(ADDPS, ADDPS)
    vcpu.core.breakpoints[0], vcpu.core.breakpoint_count = CODE + 3, 1
    assert vcpu.steps() == 1


def test_a_kick_ends_a_row_of_learnt_instructions(vcpu: Vcpu) -> None:
    vcpu.code(ADDPS, ADDPS)
    vcpu.page[IMMEDIATE_EXIT] = 1
    assert vcpu.steps() == 1


def test_the_next_page_is_fetched_by_kvm(vcpu: Vcpu) -> None:
    """Only a fetch shows whether it may be executed."""
    vcpu.code(ADDPS, ADDPS, at=CODE + 0xFFD)
    vcpu.regs.rip = CODE + 0xFFD
    assert vcpu.steps() == 1
    assert vcpu.regs.rip == CODE + 0x1000


@pytest.mark.parametrize(("name", "bits"), [("cr0", CR0.TS), ("cr0", CR0.EM), ("cr4", CR4.OSFXSR)])
def test_what_is_switched_off_raises_in_python(vcpu: Vcpu, name: str, bits: int) -> None:
    vcpu.code(ADDPS)
    setattr(vcpu.sregs, name, getattr(vcpu.sregs, name) ^ bits)
    assert vcpu.steps() == 0


@pytest.mark.parametrize(
    ("code", "offset", "value"),
    [
        (ADDPS, 24, b"\x80\x1e"),  # MXCSR: underflow is not masked
        ("d9e8", 0, b"\x7e\x03"),  # FCW: invalid is not masked
        ("d9e8", 2, b"\x80\x80"),  # FSW: an exception is pending
    ],
)
def test_instructions_that_may_raise_go_to_python(
    vcpu: Vcpu, code: str, offset: int, value: bytes
) -> None:
    vcpu.code(code)
    vcpu.state[offset : offset + 2] = value
    before = bytes(vcpu.state)
    assert vcpu.steps() == 0
    assert bytes(vcpu.state) == before


def test_flags_and_places_of_x87(vcpu: Vcpu) -> None:
    """Old flags stay, and FOP, FIP and FDP are the guest's."""
    vcpu.state[2:4], vcpu.state[512:513] = b"\x10\0", b"\x03"
    vcpu.code("dd4708")
    vcpu.regs.rdi = DATA
    assert vcpu.steps() == 1
    assert bytes(vcpu.state[2:4]) == b"\x10\x38"
    assert bytes(vcpu.state[6:24]) == struct.pack("<HQQ", 0x547, CODE, DATA + 8)


def test_entries_give_way_and_their_counts_stay(vcpu: Vcpu) -> None:
    vcpu.code(ADDPS)
    assert vcpu.steps() == 1
    vcpu.code("0f59c1", at=CODE + lib.PYKVM_LEARNT)
    vcpu.regs.rip = CODE
    assert vcpu.steps() == 0
    assert vcpu.native.counts() == {"addps": 1}
