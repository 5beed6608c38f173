"""Code of 32 and 16 bits: what 64-bit code has too, and what is gone from there."""

from __future__ import annotations

import pytest

from emulate.cases import ALL, Case, comparable, identity, operands
from emulate.facts import require_processor
from emulate.rig import DATA, DATA_SIZE, Rig
from pykvm import Mode
from pykvm.x86 import descriptors
from pykvm.x86.descriptors import decode_segment, flat_gdt
from pykvm.x86.registers import CR4, RFLAGS
from pykvm.x86.state import CpuState, SegmentRegister
from support.guest import MakeGuest

pytestmark = pytest.mark.kvm

REX = range(0x40, 0x50)
# Encodings that mean the same in 32-bit code: no REX, in VEX neither W nor high registers, and
# addresses in RDI alone.
COMMON = [
    case
    for case in ALL
    if case.group in ("sse", "mmx", "x87", "sse4", "aes", "movbe", "avx", "bmi")
    and not any(byte in REX for byte in case.code[:3])
    and case.name not in ("rip relative", "fs segment", "sib", "vzeroupper", "vzeroall")
    and not (case.code[0] == 0xC4 and (case.code[1] & 0xE0 != 0xE0 or case.code[2] & 0x80))
]
BASE = 0x1010


def compatibility(state: CpuState) -> None:
    """32-bit code of ring 3 in long mode."""
    image = flat_gdt().image
    selector = descriptors.USER_CODE32
    state.cs = SegmentRegister.load(decode_segment(image, selector), selector)


def with_base(state: CpuState) -> None:
    """The same, with a data segment that begins elsewhere."""
    compatibility(state)
    state.ds.base = BASE
    state.rdi -= BASE


def test_many_instructions_are_tried_in_32_bit_code() -> None:
    assert len(COMMON) > 150


@pytest.mark.parametrize("case", COMMON, ids=identity)
def test_32_bit_code_does_what_64_bit_code_does(rig: Rig, case: Case) -> None:
    require_processor(case)
    given = operands(rig, 1, group=case.group)
    registers = {name: value & 0xFFFF_FFFF for name, value in given.registers.items()}
    registers = {name: value for name, value in registers.items() if name[1] not in "189"}
    given = given._replace(registers=registers)
    native = comparable(rig.run(case.code, 3, **given._asdict()), case)
    for setup in (compatibility, with_base):
        shift = BASE if setup is with_base else 0
        moved = {**registers, "rdi": registers["rdi"]}
        options = given._replace(registers={})._asdict()

        def prepare(
            state: CpuState,
            moved: dict[str, int] = moved,
            change: object = setup,
        ) -> None:
            for name, value in moved.items():
                setattr(state, name, value)
            assert callable(change)
            change(state)

        ours = comparable(rig.run(case.code, 3, setup=prepare, forced=True, **options), case)
        changed = {**native.registers, "rdi": native.registers["rdi"] - shift}
        assert ours == native._replace(registers=changed), setup.__name__


REAL = """
    BB 00 06         mov bx, 0x600
    0F 10 07         movups xmm0, [bx]
    66 0F FE C0      paddd xmm0, xmm0
    0F 11 47 20      movups [bx + 0x20], xmm0
    F3 0F B8 07      popcnt ax, [bx]
    E6 F4            out 0xf4, al
    F4               hlt
"""


def test_real_mode_with_segments(guest: MakeGuest) -> None:
    machine = guest(REAL)
    state = machine.vcpus[0].state
    state.cr4 |= CR4.OSFXSR
    state.ds.selector, state.ds.base = 0x100, 0x1000
    machine.vcpus[0].state = state
    machine.memory.write(0x1600, bytes(range(16)))
    assert machine.run(timeout=10).exit_code == 1
    expected = [int.from_bytes(bytes(range(at, at + 4)), "little") * 2 for at in range(0, 16, 4)]
    found = [machine.memory.read_u32(0x1620 + at) for at in range(0, 16, 4)]
    assert found == expected


def test_beyond_the_limit_of_a_segment(guest: MakeGuest) -> None:
    machine = guest("""
        31 C0                        xor ax, ax
        8E D8                        mov ds, ax
        C7 06 34 00 00 06            mov word [13 * 4], 0x600
        C7 06 36 00 00 00            mov word [13 * 4 + 2], 0
        BB FF FF                     mov bx, 0xffff
        F3 0F B8 07                  popcnt ax, [bx]
    """)
    machine.memory.write(0x600, bytes.fromhex("b00de6f4"))
    assert machine.run(timeout=10).exit_code == 13


@pytest.mark.parametrize(
    ("opcode", "rax", "flags", "result", "flags_after"),
    [
        # 79 + 35 = 114: AL is AE, AF clear.
        ("27", 0xAE, 0, 0x14, RFLAGS.CF | RFLAGS.AF | RFLAGS.PF),
        # 09 + 09 = 18: AL is 12, AF set.
        ("27", 0x12, RFLAGS.AF, 0x18, RFLAGS.AF | RFLAGS.PF),
        # 35 - 47 = -12: AL is EE with a borrow.
        ("2f", 0xEE, RFLAGS.CF | RFLAGS.AF, 0x88, RFLAGS.CF | RFLAGS.AF | RFLAGS.PF | RFLAGS.SF),
        ("2f", 0x03, RFLAGS.AF, 0xFD, RFLAGS.CF | RFLAGS.AF | RFLAGS.SF),
        ("37", 0x000B, 0, 0x0101, RFLAGS.CF | RFLAGS.AF),
        ("37", 0x1105, 0, 0x1105, 0),
        ("3f", 0x02FE, RFLAGS.AF, 0x0108, RFLAGS.CF | RFLAGS.AF),
        ("3f", 0x0205, 0, 0x0205, 0),
    ],
)
def test_decimal_adjustment(
    rig: Rig, opcode: str, rax: int, flags: int, result: int, flags_after: int
) -> None:
    outcome = rig.run(
        bytes.fromhex(opcode), 3, registers={"rax": rax}, flags=flags, setup=compatibility,
        forced=True,
    )  # fmt: skip
    defined = RFLAGS.CF | RFLAGS.AF
    if opcode in ("27", "2f"):
        defined |= RFLAGS.PF | RFLAGS.SF | RFLAGS.ZF
    assert outcome.registers["rax"] == result
    assert outcome.flags & defined == flags_after


@pytest.mark.parametrize("opcode", ["27", "2f", "37", "3f"])
def test_decimal_adjustment_is_gone_from_64_bit_code(rig: Rig, opcode: str) -> None:
    assert rig.run(bytes.fromhex(opcode), 3, forced=True).exception == (6, 0, 0)


@pytest.mark.parametrize(
    ("index", "inside"), [(-5, True), (10, True), (0, True), (-6, False), (11, False)]
)
def test_bound(rig: Rig, index: int, inside: bool) -> None:
    bounds = (-5).to_bytes(4, "little", signed=True) + (10).to_bytes(4, "little")
    outcome = rig.run(
        bytes.fromhex("6207"), 3, registers={"rax": index & 0xFFFF_FFFF, "rdi": DATA},
        data=bounds.ljust(DATA_SIZE, b"\0"), setup=compatibility, forced=True,
    )  # fmt: skip
    assert outcome.exception == (None if inside else (5, 0, 0))


def test_into_in_protected_mode_is_not_64_bit_code(guest: MakeGuest) -> None:
    machine = guest("CE    into", mode=Mode.LONG)
    assert machine.run(timeout=10).error is not None
