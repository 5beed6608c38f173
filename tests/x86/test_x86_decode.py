"""Instructions taken apart: exact cases, and lengths against a disassembler."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.x86.decode import (
    MAP_0F,
    MAP_0F3A,
    MAP_0F38,
    RIP,
    Address,
    UndecodableError,
    decode,
)

LENGTHS = [
    # what, bits, bytes
    ("popcnt rax, rbx", 64, "f3480fb8c3"),
    ("lock cmpxchg16b [rsp+8]", 64, "f0480fc74c2408"),
    ("xsave64 [rdi]", 64, "480fae27"),
    ("mov rax, imm64", 64, "48b81122334455667788"),
    ("mov eax, imm32", 64, "b811223344"),
    ("mov ax, imm16", 64, "66b81122"),
    ("test r/m8, imm8", 64, "f6c010"),
    ("not r/m8", 64, "f6d0"),
    ("test r/m64, imm32", 64, "48f7c010203040"),
    ("mov rax, [moffs64]", 64, "48a11122334455667788"),
    ("mov eax, [moffs32]", 32, "a111223344"),
    ("enter 16, 1", 64, "c8100001"),
    ("jz rel32", 64, "0f8400000000"),
    ("jz rel16", 16, "0f840000"),
    ("ret imm16", 64, "c21000"),
    ("call far ptr16:32", 32, "9a112233441000"),
    ("call far ptr16:16", 16, "9a11220000"),
    ("int 0x80", 64, "cd80"),
    ("pclmulqdq xmm0, xmm1, 0", 64, "660f3a44c100"),
    ("crc32 rax, rbx", 64, "f2480f38f0c3"),
    ("vmovdqu ymm0, [rdi]", 64, "c5fe6f07"),
    ("rorx rax, rbx, 5", 64, "c4e3fbf0c305"),
    ("les ax, [bx]", 16, "c407"),
    ("pop [rax]", 64, "8f00"),
    ("mov cr0, rax: ModRM without memory", 64, "0f2200"),
]


@pytest.mark.parametrize(("bits", "code"), [case[1:] for case in LENGTHS], ids=lambda v: str(v))
def test_length(bits: int, code: str) -> None:
    raw = bytes.fromhex(code)
    found = decode(raw + b"\xcc" * 15, bits)
    assert found.raw == raw
    assert found.length == len(raw)


def test_parts() -> None:
    found = decode(bytes.fromhex("f3 4d 0f b8 c3"), 64)
    assert (found.map, found.opcode, found.prefix) == (MAP_0F, 0xB8, 0xF3)
    assert (found.reg, found.rm, found.operand_bits, found.wide) == (8, 11, 64, True)
    assert found.memory is None


def test_the_last_repeat_prefix_wins_over_66() -> None:
    assert decode(bytes.fromhex("66 f2 f3 0f b8 c3"), 64).prefix == 0xF3
    assert decode(bytes.fromhex("f3 66 0f b8 c3"), 64).prefix == 0xF3
    assert decode(bytes.fromhex("66 0f b8 c3"), 64).prefix == 0x66


def test_rex_counts_only_right_before_the_opcode() -> None:
    assert not decode(bytes.fromhex("48 66 0f 6e c0"), 64).wide
    assert decode(bytes.fromhex("66 48 0f 6e c0"), 64).wide


def test_vex() -> None:
    andn = decode(bytes.fromhex("c4 42 a0 f2 c1"), 64)
    assert (andn.map, andn.opcode, andn.vex, andn.wide) == (MAP_0F38, 0xF2, 128, True)
    assert (andn.reg, andn.vvvv, andn.rm) == (8, 11, 9)
    short = decode(bytes.fromhex("c5 75 ef d2"), 64)
    assert (short.prefix, short.vex, short.reg, short.vvvv) == (0x66, 256, 10, 1)
    assert decode(bytes.fromhex("c4 e3 fb f0 c3 05"), 64).map == MAP_0F3A


@pytest.mark.parametrize(
    ("bits", "code", "expected"),
    [
        (64, "0fae07", Address("ds", 7, None, 1, 0, 64)),
        (64, "410fae45f8", Address("ds", 13, None, 1, -8, 64)),
        (64, "0fae6508", Address("ss", 5, None, 1, 8, 64)),
        (64, "0fae2d10000000", Address("ds", RIP, None, 1, 16, 64)),
        (64, "0fae2c2510000000", Address("ds", None, None, 1, 16, 64)),
        (64, "420fae6c9f04", Address("ds", 7, 11, 4, 4, 64)),
        (64, "640fae07", Address("fs", 7, None, 1, 0, 64)),
        (64, "2e0fae07", Address("ds", 7, None, 1, 0, 64)),
        (64, "670fae07", Address("ds", 7, None, 1, 0, 32)),
        (32, "0fae2d10000000", Address("ds", None, None, 1, 16, 32)),
        (32, "2e0fae07", Address("cs", 7, None, 1, 0, 32)),
        (32, "670fae07", Address("ds", 3, None, 1, 0, 16)),
        (16, "0fae02", Address("ss", 5, 6, 1, 0, 16)),
        (16, "0fae00", Address("ds", 3, 6, 1, 0, 16)),
        (16, "0fae061234", Address("ds", None, None, 1, 0x3412, 16)),
    ],
)
def test_addresses(bits: int, code: str, expected: Address) -> None:
    assert decode(bytes.fromhex(code), bits).memory == expected


def test_the_offset_of_an_address() -> None:
    registers = {7: 0xFFFF_FFFF_0000_0000, 11: 0x10}
    address = Address("ds", 7, 11, 4, -4, 64)
    assert address.offset(registers.__getitem__, 0) == 0xFFFF_FFFF_0000_003C
    assert address._replace(bits=32).offset(registers.__getitem__, 0) == 0x3C
    assert Address("ds", RIP, None, 1, 16, 64).offset(registers.__getitem__, 0x1007) == 0x1017


@pytest.mark.parametrize(
    "code", ["", "0f", "66", "48b8112233", "c5", "62f17c4858c1", "8fe97801c1", "f0c5fe6f07"]
)
def test_undecodable(code: str) -> None:
    with pytest.raises(UndecodableError):
        decode(bytes.fromhex(code), 64)


def test_no_instruction_is_longer_than_15_bytes() -> None:
    with pytest.raises(UndecodableError):
        decode(b"\x66" * 14 + b"\x0f\xae\x07", 64)


@given(st.binary(max_size=20), st.sampled_from([16, 32, 64]))
def test_any_bytes(code: bytes, bits: int) -> None:
    try:
        found = decode(code, bits)
    except UndecodableError:
        return
    assert 1 <= found.length <= 15
    assert code.startswith(found.raw)
    # What follows an instruction does not matter.
    assert decode(found.raw, bits) == found


_LINE = re.compile(r"\s*([0-9a-f]+):\t([0-9a-f ]+)\t(.*)")
# Instructions that objdump does not know, prefixes that it shows by themselves, FWAIT that it joins
# to what follows, and opcodes that only the i486 or VIA had.
_ODD = re.compile(
    r".*\(bad\)|.*\.byte|(.* )?(rex\S*|data16|addr16|addr32|lock|rep\S*|[c-gs]s)$|f\S"
)
_GONE = (b"\x0f\x24", b"\x0f\x26", b"\x9b", b"\x0f\xa6", b"\x0f\xa7")
_SLOT = 32


def disassembled(codes: list[bytes], bits: int, path: Path) -> list[tuple[int, str] | None]:
    """The length and the text of the first instruction of each, by objdump."""
    path.write_bytes(b"".join(code.ljust(_SLOT, b"\x90") for code in codes))
    machine = {64: "i386:x86-64", 32: "i386", 16: "i8086"}[bits]
    listing = subprocess.run(
        ["objdump", "-D", "-z", "-w", "-b", "binary", "-m", machine, str(path)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found: dict[int, tuple[int, str]] = {}
    for match in filter(None, map(_LINE.match, listing.splitlines())):
        found[int(match[1], 16)] = len(match[2].split()), match[3].strip()
    return [found.get(_SLOT * at) for at in range(len(codes))]


def random_code(source: random.Random, bits: int) -> bytes:
    prefixes = [b"", b"", b"\x66", b"\xf3", b"\xf2", b"\x67", b"\xf0", b"\x64"]
    rex = source.choice([b"", b"\x48", b"\x41", b"\x4f"]) if bits == 64 else b""
    opcode = source.choice([b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a", b"\xc5", b"\xc4"])
    if opcode in (b"\xc5", b"\xc4"):
        return opcode + source.randbytes(15)
    return (source.choice(prefixes) + rex + opcode + source.randbytes(15))[:16]


@pytest.mark.parametrize("bits", [64, 32, 16])
def test_lengths_against_objdump(bits: int, tmp_path: Path) -> None:
    if shutil.which("objdump") is None:
        pytest.skip("objdump is missing: install binutils")
    source = random.Random(bits)
    codes = [random_code(source, bits) for _ in range(3000)]
    compared, wrong = 0, []
    for code, expected in zip(codes, disassembled(codes, bits, tmp_path / "code"), strict=True):
        if expected is None or _ODD.match(expected[1]) or any(gone in code[:4] for gone in _GONE):
            continue
        try:
            length = decode(code, bits).length
        except UndecodableError as error:
            known = any(word in str(error) for word in ("EVEX", "XOP", "VEX forbids"))
            length = expected[0] if known else 0
        compared += 1
        if length != expected[0]:
            wrong.append((code.hex(), expected, length))
    assert wrong == []
    assert compared > 500
