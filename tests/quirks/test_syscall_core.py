"""What the core makes of the breakpoint on the #PF handler: a SYSCALL or not; without KVM.

The vCPU is a kvm_run page and guest memory that the test fills in.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pykvm._core import ffi, lib
from pykvm.x86.registers import CR4, DR6, EFER, RFLAGS

DEBUG, SHUTDOWN, HLT = 4, 8, 5  # KVM_EXIT_*
REASON, PAYLOAD, VALID, DIRTY, SYNC = 8, 32, 288, 296, 304
REGS, SREGS = 1, 2

MEMORY = 0x10000
PML4, PDPT, PD, PT, PML5 = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000
STACK, NEXT, CODE = 0x8000, 0x6000, 0x9000
# Where the page tables put them: two pages side by side are not in memory.
STACK_VA, CODE_VA = 0xFFFF_8880_0000_0000, 0xFFFF_8880_0000_2000
RSP = STACK_VA + 0x100

LSTAR, HANDLER = 0xFFFF_FFFF_8100_0000, CODE_VA
FMASK = RFLAGS.TF | RFLAGS.IF | RFLAGS.DF | RFLAGS.IOPL | RFLAGS.NT | RFLAGS.AC
FLAGS = 2 | RFLAGS.RF | RFLAGS.ZF
USER_RSP = 0x7FFF_0000
NOP = b"\x90"


class Vcpu:
    """A vCPU at the breakpoint, with the frame of a SYSCALL on its stack."""

    def __init__(self) -> None:
        self.page = bytearray(0x3000)
        self.memory = bytearray(MEMORY)
        self._handles = ffi.from_buffer(self.page), ffi.from_buffer(self.memory)
        self.address = ffi.cast("char *", self._handles[0])
        self.sync = ffi.cast("struct kvm_sync_regs *", self.address + SYNC)
        self.regions = ffi.new("struct pykvm_region[1]")
        self.regions[0].size = MEMORY
        self.regions[0].host = ffi.cast("uint8_t *", self._handles[1])
        self.core = ffi.new("struct pykvm_syscall *")
        self.core.regions, self.core.region_count = self.regions, 1
        self.core.handler, self.core.lstar, self.core.fmask, self.core.cs = (
            HANDLER,
            LSTAR,
            FMASK,
            0x10,
        )
        self.map_pages()
        self.put(CODE, NOP)
        self.frame()
        self.exit(DEBUG)
        sregs = self.sync.sregs
        sregs.efer = EFER.SCE | EFER.LME | EFER.LMA | EFER.NXE
        sregs.cr2, sregs.cr3, sregs.cr4 = LSTAR, PML4 | 0x18, CR4.PAE
        self.sync.regs.rsp, self.sync.regs.rip = RSP, HANDLER
        self.sync.regs.rflags = 2
        sregs.cs.selector, sregs.ss.selector = 0x10, 0

    def close(self) -> None:
        for handle in self._handles:
            ffi.release(handle)

    def map_pages(self) -> None:
        index = [STACK_VA >> shift & 511 for shift in (39, 30, 21, 12)]
        for table, slot, target in (
            (PML4, index[0], PDPT), (PDPT, index[1], PD), (PD, index[2], PT),
            (PT, index[3], STACK), (PT, index[3] + 1, NEXT), (PT, index[3] + 2, CODE),
            (PML5, STACK_VA >> 48 & 511, PML4),
        ):  # fmt: skip
            self.put(table + 8 * slot, (target | 3).to_bytes(8, "little"))

    def put(self, address: int, content: bytes) -> None:
        self.memory[address : address + len(content)] = content

    def frame(self, **fields: int) -> None:
        names = ("error", "rip", "cs", "rflags", "rsp", "ss")
        values = dict(zip(names, (0x15, LSTAR, 0x33, FLAGS, USER_RSP, 0x2B), strict=True)) | fields
        self.put(STACK + RSP % 0x1000, struct.pack("<6Q", *values.values()))

    def exit(
        self, reason: int, *, pc: int = HANDLER, dr6: int = DR6.B0, exception: int = 1
    ) -> None:
        struct.pack_into("<I", self.page, REASON, reason)
        struct.pack_into("<IIQQQ", self.page, PAYLOAD, exception, 0, pc, dr6, 0)
        struct.pack_into("<QQ", self.page, VALID, REGS | SREGS, 0)

    def work_around(self) -> int:
        done: int = lib.pykvm_work_around_syscall(self.core, self.address)
        return done

    @property
    def dirty(self) -> int:
        found: int = struct.unpack_from("<Q", self.page, DIRTY)[0]
        return found


@pytest.fixture
def vcpu() -> Iterator[Vcpu]:
    made = Vcpu()
    yield made
    made.close()


def in_ring_0(vcpu: Vcpu) -> bool:
    regs, sregs = vcpu.sync.regs, vcpu.sync.sregs
    return (regs.rip, regs.rsp, sregs.cs.selector, sregs.ss.selector) == (
        LSTAR, USER_RSP, 0x10, 0x18,
    )  # fmt: skip


def test_syscall_enters_ring_0(vcpu: Vcpu) -> None:
    assert vcpu.work_around() == 1

    assert in_ring_0(vcpu)
    assert vcpu.dirty == REGS | SREGS
    assert vcpu.sync.regs.rflags == FLAGS & ~RFLAGS.RF
    cs, ss = vcpu.sync.sregs.cs, vcpu.sync.sregs.ss
    flat = (0, 0xFFFF_FFFF, 1, 0, 1, 1, 0)
    assert [
        (each.base, each.limit, each.present, each.dpl, each.s, each.g, each.unusable)
        for each in (cs, ss)
    ] == [flat, flat]
    assert (cs.type, cs.l, cs.db, ss.type, ss.l, ss.db) == (0xB, 1, 0, 0x3, 0, 1)
    assert (vcpu.core.worked_around, vcpu.core.passed_on) == (1, 0)


def test_interrupts_of_the_past_are_not_injected_again(vcpu: Vcpu) -> None:
    """KVM adds each one to kvm_sregs.interrupt_bitmap in the page and takes none out."""
    end = SYNC + ffi.sizeof("struct kvm_regs") + ffi.sizeof("struct kvm_sregs")
    vcpu.page[end - 32 : end] = b"\xff" * 32
    vcpu.work_around()
    assert in_ring_0(vcpu)
    assert vcpu.page[end - 32 : end] == bytes(32)


@pytest.mark.parametrize("error", [0x04, 0x05, 0x14, 0x15])
def test_whether_the_page_is_there_and_fetches_are_told_does_not_matter(
    vcpu: Vcpu, error: int
) -> None:
    vcpu.frame(error=error)
    vcpu.work_around()
    assert in_ring_0(vcpu)


def test_five_level_paging(vcpu: Vcpu) -> None:
    vcpu.sync.sregs.cr3 = PML5
    vcpu.sync.sregs.cr4 |= CR4.LA57
    vcpu.work_around()
    assert in_ring_0(vcpu)


def test_a_large_page(vcpu: Vcpu) -> None:
    # The first 2 MiB, from the address that the stack has in the page.
    vcpu.put(PD + 8 * (STACK_VA >> 21 & 511), (0x83).to_bytes(8, "little"))
    vcpu.sync.regs.rsp = STACK_VA + STACK + RSP % 0x1000
    vcpu.work_around()
    assert in_ring_0(vcpu)


def test_a_frame_across_two_pages(vcpu: Vcpu) -> None:
    frame = bytes(vcpu.memory[STACK + RSP % 0x1000 :][:48])
    vcpu.put(STACK + 0x1000 - 16, frame[:16])
    vcpu.put(NEXT, frame[16:])
    vcpu.sync.regs.rsp = STACK_VA + 0x1000 - 16
    vcpu.work_around()
    assert in_ring_0(vcpu)


FORGED = {
    "data read": {"error": 0x05, "rip": 0x40_0000},
    "a write": {"error": 0x07},
    "reserved bits": {"error": 0x1D},
    "by ring 0": {"error": 0x10, "cs": 0x10},
    "elsewhere": {"rip": LSTAR + 2},
    "in ring 0": {"cs": 0x10},
    # A jump to LSTAR: ring 3 cannot clear IF, and SYSCALL would have.
    "flags not masked": {"rflags": FLAGS | RFLAGS.IF},
    "a single step": {"rflags": FLAGS | RFLAGS.TF},
}


@pytest.mark.parametrize("fields", FORGED.values(), ids=FORGED)
def test_other_page_faults_are_let_through(vcpu: Vcpu, fields: dict[str, int]) -> None:
    vcpu.frame(**fields)
    assert vcpu.work_around() == 1

    assert not in_ring_0(vcpu)
    assert vcpu.dirty == REGS
    assert vcpu.sync.regs.rip == HANDLER + len(NOP)
    assert vcpu.sync.regs.rsp == RSP
    assert (vcpu.core.worked_around, vcpu.core.passed_on) == (0, 1)


def test_cr2_elsewhere_is_let_through(vcpu: Vcpu) -> None:
    vcpu.sync.sregs.cr2 = 0x1000
    vcpu.work_around()
    assert not in_ring_0(vcpu)


@pytest.mark.parametrize("missing", [EFER.SCE, EFER.LMA])
def test_without_syscall_enabled_it_is_let_through(vcpu: Vcpu, missing: int) -> None:
    vcpu.sync.sregs.efer &= ~missing
    vcpu.work_around()
    assert not in_ring_0(vcpu)


def test_without_lstar_it_is_no_syscall(vcpu: Vcpu) -> None:
    vcpu.core.lstar = vcpu.sync.sregs.cr2 = 0
    vcpu.frame(rip=0)
    vcpu.work_around()
    assert not in_ring_0(vcpu)
    assert vcpu.core.worked_around == 0


@pytest.mark.parametrize("rsp", [0, STACK_VA - 8, STACK_VA + 0x3000 - 8, 1 << 47, (1 << 64) - 8])
def test_a_stack_that_is_not_there(vcpu: Vcpu, rsp: int) -> None:
    vcpu.sync.regs.rsp = rsp
    assert vcpu.work_around() == 1
    assert vcpu.core.passed_on == 1


BEGINNINGS = {
    "endbr64": ("F3 0F 1E FA", 0),
    "clac": ("0F 01 CA", RFLAGS.AC),
    "cld": ("FC", RFLAGS.DF),
    "nop": ("90", 0),
    "66 nop": ("66 90", 0),
    "nopl (%rax)": ("0F 1F 00", 0),
    "nopl 0(%rax)": ("0F 1F 40 00", 0),
    "nopl 0(%rax,%rax)": ("0F 1F 44 00 00", 0),
    "nopw 0(%rax,%rax)": ("66 0F 1F 44 00 00", 0),
    "nopl 0L(%rax)": ("0F 1F 80 00 00 00 00", 0),
    "nopl 0L(%rax,%rax)": ("0F 1F 84 00 00 00 00 00", 0),
}


@pytest.mark.parametrize(("code", "cleared"), BEGINNINGS.values(), ids=BEGINNINGS)
def test_the_first_instruction_of_a_handler_is_executed(
    vcpu: Vcpu, code: str, cleared: int
) -> None:
    before = 2 | RFLAGS.AC | RFLAGS.DF
    vcpu.put(CODE, bytes.fromhex(code))
    vcpu.sync.regs.rflags = before
    vcpu.frame(rip=0x1000)

    assert vcpu.work_around() == 1
    assert vcpu.sync.regs.rip == HANDLER + len(bytes.fromhex(code))
    assert vcpu.sync.regs.rflags == before & ~cleared


@pytest.mark.parametrize(
    "code", ["6A 0E", "50", "E9 00 00 00 00", "0F 1F C0", "F3 90", "66 66 66 66"]
)
def test_other_first_instructions_are_left_to_a_single_step(vcpu: Vcpu, code: str) -> None:
    vcpu.put(CODE, bytes.fromhex(code))
    vcpu.frame(rip=0x1000)
    assert vcpu.work_around() == 0
    assert (vcpu.dirty, vcpu.sync.regs.rip, vcpu.core.passed_on) == (0, HANDLER, 0)


def test_where_others_wait_too_they_get_what_is_no_syscall(vcpu: Vcpu) -> None:
    vcpu.core.shared = 1
    vcpu.frame(rip=0x1000)
    assert (vcpu.work_around(), vcpu.dirty) == (0, 0)
    vcpu.frame()
    assert vcpu.work_around() == 1
    assert in_ring_0(vcpu)


def test_other_exits_are_passed_on(vcpu: Vcpu) -> None:
    before = bytes(vcpu.page[SYNC:])
    for reason, fields in (
        (HLT, {}),
        (DEBUG, {"pc": HANDLER + 1}),
        (DEBUG, {"dr6": DR6.BS}),
        (DEBUG, {"exception": 3}),
    ):
        vcpu.exit(reason, **fields)
        assert vcpu.work_around() == 0
    vcpu.exit(DEBUG)
    struct.pack_into("<Q", vcpu.page, VALID, REGS)
    assert vcpu.work_around() == 0
    vcpu.exit(DEBUG, pc=0)
    vcpu.core.handler = 0
    assert vcpu.work_around() == 0
    assert bytes(vcpu.page[SYNC:]) == before


class TestWithoutAnIdt:
    """The page fault came to a triple fault."""

    @pytest.fixture
    def vcpu(self, vcpu: Vcpu) -> Vcpu:
        vcpu.exit(SHUTDOWN)
        vcpu.core.handler = 0
        vcpu.sync.sregs.ss.dpl = 3
        vcpu.sync.regs.rip, vcpu.sync.regs.rsp = LSTAR, USER_RSP
        return vcpu

    def test_syscall_enters_ring_0(self, vcpu: Vcpu) -> None:
        assert vcpu.work_around() == 1
        assert in_ring_0(vcpu)
        assert vcpu.dirty == REGS | SREGS

    def test_ring_0_dies(self, vcpu: Vcpu) -> None:
        vcpu.sync.sregs.ss.dpl = 0
        assert vcpu.work_around() == 0
        assert vcpu.dirty == 0

    def test_ring_3_that_has_jumped_there_dies(self, vcpu: Vcpu) -> None:
        vcpu.sync.regs.rflags |= RFLAGS.IF
        assert vcpu.work_around() == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.data())
def test_no_state_of_a_guest_leads_out_of_its_memory(data: st.DataObject) -> None:
    """Page tables, stack and registers at random: nothing crashes."""
    vcpu = Vcpu()
    word = st.integers(0, (1 << 64) - 1)
    address = st.one_of(word, st.integers(0, 2 * MEMORY))
    for table in data.draw(st.lists(st.sampled_from([PML4, PDPT, PD, PT, PML5]), max_size=4)):
        entry = data.draw(address) | data.draw(st.sampled_from([1, 0x81, 3, 0]))
        vcpu.memory[table : table + 0x1000] = (entry % (1 << 64)).to_bytes(8, "little") * 512
    vcpu.sync.sregs.cr3 = data.draw(address)
    vcpu.sync.sregs.cr4 |= data.draw(st.sampled_from([0, CR4.LA57]))
    vcpu.sync.regs.rsp, vcpu.sync.regs.rip = data.draw(word), data.draw(word)
    vcpu.work_around()
    buffer: Any = ffi.new("uint8_t[]", 64)
    for _ in range(4):
        lib.pykvm_read_guest(vcpu.core, vcpu.address, data.draw(word), buffer, 64)
    vcpu.close()
