"""The same instruction on the processor and by pykvm leaves the same registers, flags and memory.

The processor runs it in ring 3 of 64-bit code, which KVM leaves to it on every host.  pykvm runs it
there too, and in ring 0 wherever KVM refuses it.
"""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulate.cases import ALL, NOT_IN_RING_0, Case, Operands, comparable, identity, operands
from emulate.facts import SIMD_EXCEPTIONS, X87_EXCEPTIONS, fact_of, require_processor
from emulate.rig import DATA, Rig
from pykvm.x86.registers import CR4
from support.host import ask, require_host

pytestmark = pytest.mark.kvm


def test_the_table_is_read_whole() -> None:
    assert len(ALL) > 240
    assert all(case.code for case in ALL)


def compare(rig: Rig, case: Case, given: Operands) -> None:
    options = given._asdict()
    native = comparable(rig.run(case.code, 3, **options), case)
    before = rig.completed
    ours = comparable(rig.run(case.code, 3, forced=True, **options), case)
    assert rig.completed == before + 1
    assert ours == native, f"{case.name}: forced, in ring 3"
    if case.group in NOT_IN_RING_0:
        return
    inner = comparable(rig.run(case.code, 0, **options), case)
    assert inner == native, f"{case.name}: in ring 0"


@pytest.mark.parametrize("case", ALL, ids=identity)
def test_same_as_the_processor(rig: Rig, case: Case) -> None:
    require_processor(case)
    for seed in range(4):
        compare(rig, case, operands(rig, seed, group=case.group))


@given(st.data())
@settings(max_examples=60)
def test_same_with_any_operands(rig: Rig, data: st.DataObject) -> None:
    """Integer instructions, with registers and vectors of any contents."""
    exact = [
        case
        for case in ALL
        if case.group in ("bmi", "adx", "movbe", "avx", "avx2")
        and not ((fact := fact_of(case)) and ask(fact))
    ]
    case = data.draw(st.sampled_from(exact))
    require_host(f"processor-has-{case.group}")
    given = operands(rig, data.draw(st.integers(0, 1000)), group=case.group)
    number = st.one_of(
        st.sampled_from([0, 1, 1 << 63, (1 << 64) - 1]), st.integers(0, (1 << 64) - 1)
    )
    registers = {name: data.draw(number) for name in ("rax", "rbx", "rcx", "rdx")}
    compare(rig, case, given._replace(registers=given.registers | registers))


EDGES = [0, 1, 31, 32, 63, 64, 127, 255, 256, 1 << 31, 1 << 63, (1 << 64) - 1, 0x3F20, 0x4000]


SCALAR = [
    case
    for case in ALL
    if case.group in ("bmi", "adx") or case.name.startswith(("popcnt", "crc32"))
]


@pytest.mark.parametrize("case", SCALAR, ids=identity)
def test_edges_of_operands(rig: Rig, case: Case) -> None:
    """Counts, indices and masks at and beyond the width of the operands, in 32 and 64 bits."""
    require_processor(case)
    narrow = case.code
    if case.code[0] == 0xC4:
        narrow = bytes([*case.code[:2], case.code[2] ^ 0x80, *case.code[3:]])  # VEX.W
    for code in {case.code, narrow}:
        for first in EDGES:
            second = EDGES[(EDGES.index(first) * 5 + 3) % len(EDGES)]
            found = operands(rig, 1, group=case.group)
            values = {"rax": second, "rbx": first, "rcx": first, "rdx": (1 << 64) - 1}
            compare(
                rig,
                case._replace(code=code),
                found._replace(registers=found.registers | values, flags=0x8D5),
            )


ALL_MASKED = 0x1F80  # MXCSR
UNMASKED = ["0f5ec1", "0f51c1", "0f5807", "f30f2dc1", "f20f5ac1", "c5f45ed3", "c4e27d13d1"]


@pytest.mark.parametrize("code", UNMASKED)
@pytest.mark.parametrize("masks", [0x1F80, 0x1F00, 0x1E80, 0x1D80, 0x1B80, 0x1780, 0x0F80, 0])
@pytest.mark.parametrize("values", ["zeros", "infinite", "tiny", "inexact"])
def test_simd_exceptions_as_the_processor_raises_them(
    rig: Rig, code: str, masks: int, values: str
) -> None:
    """The same result and flags, or #XM, flags and no result."""
    require_host("processor-has-avx")
    require_host("processor-has-f16c")
    if masks != ALL_MASKED:
        require_host(SIMD_EXCEPTIONS)
    first, second = {
        "zeros": (0.0, 0.0),
        "infinite": (1.0, 0.0),
        "tiny": (1.2e-38, 3e38),
        "inexact": (1.0, 3.0),
    }[values]
    image = bytearray(rig.pristine)
    image[160:416] = struct.pack("<4f", *[first] * 4) + struct.pack("<4f", *[second] * 4) * 15
    image[24:28] = masks.to_bytes(4, "little")
    image[512] = 7
    options: dict[str, Any] = {
        "registers": {"rdi": DATA},
        "data": struct.pack("<4f", *[second] * 4),
        "xsave": bytes(image),
        "cr4": CR4.OSXMMEXCPT,
    }
    native = rig.run(bytes.fromhex(code), 3, **options)
    forced = rig.run(bytes.fromhex(code), 3, forced=True, **options)
    assert forced == native


ALL_MASKED_X87 = 0x37F  # FCW


@pytest.mark.parametrize("code", ["d9e8", "d837", "d9fa", "d8c1", "dd1f", "db1f", "d9c0"])
@pytest.mark.parametrize("control", [0x37F, 0x37E, 0x37B, 0x35F])
@pytest.mark.parametrize("tags", [0x80, 0xFF, 0])
def test_x87_exceptions_as_the_processor_raises_them(
    rig: Rig, code: str, control: int, tags: int
) -> None:
    """Invalid (a full or an empty stack), divide by zero, precision; masked and not."""
    if control != ALL_MASKED_X87:
        require_host(X87_EXCEPTIONS)
    image = bytearray(rig.pristine)
    image[0:6] = struct.pack("<HHBB", control, 0x3800, tags, 0)
    image[32:42] = bytes.fromhex("abaaaaaaaaaaaaaafdbf")  # -1/3
    image[512] = 3
    options: dict[str, Any] = {"registers": {"rdi": DATA}, "data": bytes(64), "xsave": bytes(image)}
    native = rig.run(bytes.fromhex(code), 3, **options)
    forced = rig.run(bytes.fromhex(code), 3, forced=True, **options)
    assert forced == native
