"""What instructions are called, how they are rewritten, and where code ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from emulate.fake_vcpu import Bench
from pykvm.emulate.native import rewritten
from pykvm.emulate.spelling import name_of, spellings
from pykvm.emulate.table import OPERATIONS, method_of
from pykvm.emulate.units import unit_of
from pykvm.exits import InternalError
from pykvm.x86.decode import UndecodableError, decode


@pytest.mark.parametrize(
    ("code", "bits", "expected"),
    [
        ("660fefc1", 64, "660fefc1"),
        ("66450fef7c8f08", 64, "66440fef3df7ff0000"),  # [r15 + 4 * rcx + 8]: the scratch area
        ("66490f6ef4", 64, "66480f6ef0"),  # movq xmm6, r12: RAX
        ("f2440f2cf9", 64, "f20f2cc1"),  # cvttsd2si r15d: EAX
        ("660f3a16e302", 32, "660f3a16e002"),
        ("2e67d907", 32, "d905faff0000"),
        ("c5f558d2", 64, "c4e17558d2"),
        ("c44275b8c9", 64, "c44275b8c9"),
        ("c4a17558140f", 64, "c4e17558 15f7ff0000"),
    ],
)
def test_instructions_are_rewritten(code: str, bits: int, expected: str) -> None:
    instruction = decode(bytes.fromhex(code), bits)
    unit = unit_of(instruction)
    assert unit is not None
    assert rewritten(instruction, unit, 0x1_0000) == bytes.fromhex(expected) + b"\xc3"


def matching_code(spelling: str) -> Iterator[bytes]:
    """Encodings that a spelling of the table should be found for."""
    *opcode, last = spelling.removeprefix("vex ").split()
    kind = last if last in ("m", "r") else ""
    words = opcode if kind else [*opcode, last]
    digits = [int(word[1]) for word in words if word[0] == "/"] or range(8)
    modrm = words.pop() if len(words) > 1 and words[-2][0] == "/" else ""
    raw = bytes.fromhex("".join(word for word in words if word[0] != "/"))
    for digit in digits:
        for form in {"m": (0x07,), "r": (0xC7,)}.get(kind, (0x07, 0xC7)):
            yield raw + (bytes.fromhex(modrm) or bytes([form | digit << 3])) + bytes(8)


def test_every_spelling_in_the_table_is_one_that_is_looked_up() -> None:
    """No entry that nothing could ever match."""
    for spelling in OPERATIONS:
        if not spelling.startswith("vex"):
            found: list[str] = []
            for code in matching_code(spelling):
                with suppress(UndecodableError):
                    found += spellings(decode(code, 32))
            assert spelling in found


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("0f01ca", "clac"),
        ("f20f58c1", "addsd"),
        ("660ffec1", "paddd"),
        ("d9e8", "fld1"),
        ("db07", "fild"),
        ("d9fa", "fsqrt"),
        ("ded9", "fcompp"),
        ("dec1", "faddp"),
        ("c5f458d3", "vaddps"),
        ("d9e2", "d9 /4"),
        ("480fae27", "xsave"),
        ("c4e2e0f2c1", "andn"),
        ("0f38c9c1", "0f 38 c9"),
    ],
)
def test_names(code: str, name: str) -> None:
    instruction = decode(bytes.fromhex(code), 64)
    assert method_of(instruction).name == name
    if method_of(instruction).operation is None:
        assert name_of(instruction) == name


def refuse(bench: Bench, told: bytes) -> bool:
    """As if KVM had refused an instruction and told these bytes of it."""
    raw = bytes([len(told)]) + told.ljust(15, b"\0")
    words = int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little")
    cpu: Any = bench.cpu
    return bench.emulator.take(cpu, InternalError(1, (1, *words)))


@pytest.mark.parametrize("told", [0, 1, 2, 3, 4])
def test_the_rest_of_an_instruction_is_fetched(bench: Bench, told: int) -> None:
    code = bytes.fromhex("f3480fb8c3")
    regs = bench.cpu.all.regs
    regs.rip, regs.rbx = 0x2000 - told, 0xFF
    bench.memory.write(regs.rip, code)
    assert refuse(bench, code[:told])
    assert (regs.rax, regs.rip) == (8, 0x2005 - told)


def test_no_instruction_is_longer_than_15_bytes(bench: Bench) -> None:
    bench.memory.write(0x1000, b"\x66" * 15 + b"\x9b")
    assert refuse(bench, b"\x66" * 15)
    assert bench.cpu.all.events.exception.nr == 13


def test_code_ends_with_its_segment(bench: Bench) -> None:
    sregs = bench.cpu.all.sregs
    sregs.cs.l, sregs.cs.db, sregs.cs.limit = 0, 1, 0x1001
    bench.memory.write(0x1000, bytes.fromhex("f30fb8c3"))
    assert refuse(bench, bytes.fromhex("f30f"))
    assert bench.cpu.all.events.exception.nr == 13


def test_bytes_outside_memory_are_not_made_up(bench: Bench) -> None:
    bench.cpu.all.regs.rip = 0x10_0000 - 2
    assert not refuse(bench, bytes.fromhex("f30f"))
