"""Descriptors, gates and tables against bytes from the manuals and from Linux.

SDM 3A figure 3-8 (segment descriptor), 6-2 and 6-8 (gates), 8-4 (64-bit TSS descriptor).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import ConfigError
from pykvm.x86 import descriptors
from pykvm.x86.descriptors import (
    Gate,
    SegmentDescriptor,
    call_gate,
    code,
    data,
    decode_gate,
    decode_segment,
    flat_gdt,
    gdt,
    idt,
    interrupt_gate,
    ivt,
    ldt,
    task_gate,
    trap_gate,
    tss,
)

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("descriptor", "value"),
    [
        # arch/x86/kernel/cpu/common.c, gdt_page: DESC_CODE32, _CODE64, _DATA64, and for ring 3.
        (code(32), 0x00CF_9B00_0000_FFFF),
        (code(64), 0x00AF_9B00_0000_FFFF),
        (data(32), 0x00CF_9300_0000_FFFF),
        (code(32, dpl=3), 0x00CF_FB00_0000_FFFF),
        (code(64, dpl=3), 0x00AF_FB00_0000_FFFF),
        (data(32, dpl=3), 0x00CF_F300_0000_FFFF),
        # arch/x86/realmode/rm/reboot.S, the 16-bit segments that lead back to real mode.
        (code(16), 0x0000_9B00_0000_FFFF),
        (data(16), 0x0000_9300_0000_FFFF),
        (data(16, base=0x100), 0x0000_9300_0100_FFFF),
        # Every bit of the base and the limit at its place.
        (data(32, base=0x1234_5678, limit=0xABCDE), 0x124A_9334_5678_BCDE),
        (code(32, accessed=False, readable=False, conforming=True), 0x00CF_9C00_0000_FFFF),
        (data(32, writable=False, expand_down=True, limit=0xFFF), 0x0040_9500_0000_0FFF),
        (ldt(0x8000, 0x17, long=False), 0x0000_8200_8000_0017),
        (tss(0x8000, bits=32), 0x0000_8900_8000_0067),
        (tss(0x8000, 0x2B, bits=16, busy=True), 0x0000_8300_8000_002B),
        (tss(0, 0xF_FFFF + 0x1000, bits=32, dpl=3), 0x0080_E900_0000_0100),
    ],
)
def test_segment_descriptor(descriptor: SegmentDescriptor, value: int) -> None:
    assert descriptor.encode().hex() == value.to_bytes(8, "little").hex()
    assert SegmentDescriptor.decode(value.to_bytes(8, "little")) == descriptor


def test_a_long_tss_descriptor_has_the_high_half_of_the_base_in_its_second_slot() -> None:
    raw = tss(0xFFFF_FE12_3456_7000, 0x206F, busy=True).encode()

    assert raw[:8].hex(" ") == "6f 20 00 70 56 8b 00 34"
    assert raw[8:].hex(" ") == "12 fe ff ff 00 00 00 00"


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        # SDM 3A figure 6-8: offset 15:0, selector, IST, type and P, offset 31:16, offset 63:32.
        (
            interrupt_gate(0x10, 0xFFFF_FFFF_8012_3456, ist=5),
            "56 34 10 00 05 8e 12 80 ff ff ff ff 00 00 00 00",
        ),
        (trap_gate(0x10, 0x10_0000, dpl=3), "00 00 10 00 00 ef 10 00 00 00 00 00 00 00 00 00"),
        (call_gate(0x33, 0x1_2345_6789), "89 67 33 00 00 8c 45 23 01 00 00 00 00 00 00 00"),
        # SDM 3A figure 6-2: 32 and 16-bit gates, and the task gate.
        (interrupt_gate(0x08, 0xC010_0000, bits=32), "00 00 08 00 00 8e 10 c0"),
        (trap_gate(0x08, 0xC010_1234, bits=32, dpl=3), "34 12 08 00 00 ef 10 c0"),
        (interrupt_gate(0x48, 0x1234, bits=16), "34 12 48 00 00 86 00 00"),
        (trap_gate(0x48, 0x1234, bits=16), "34 12 48 00 00 87 00 00"),
        (task_gate(0x28), "00 00 28 00 00 85 00 00"),
        # SDM 3A figure 5-8: a call gate copies up to 31 parameters.
        (call_gate(0x08, 0x1000, bits=32, dpl=3, parameters=31), "00 10 08 00 1f ec 00 00"),
        (call_gate(0x48, 0x1000, bits=16, parameters=2), "00 10 48 00 02 84 00 00"),
    ],
)
def test_gate(gate: Gate, expected: str) -> None:
    raw = gate.encode()
    assert raw.hex(" ") == expected
    assert Gate.decode(raw, long=len(raw) == 16) == gate


@given(
    base=st.integers(0, 2**32 - 1),
    limit=st.integers(0, 0xFFFFF),
    g=st.integers(0, 1),
    type=st.integers(0, 15),
    bits=st.tuples(*[st.integers(0, 1)] * 5),
    dpl=st.integers(0, 3),
)
def test_any_segment_descriptor_survives_encoding(
    base: int, limit: int, g: int, type: int, bits: tuple[int, ...], dpl: int
) -> None:
    s, present, avl, long_code, db = bits
    limit = limit << 12 | 0xFFF if g else limit
    descriptor = SegmentDescriptor(base, limit, type, s, dpl, present, avl, long_code, db, g)

    assert SegmentDescriptor.decode(descriptor.encode()) == descriptor


@given(raw=st.binary(min_size=8, max_size=8))
def test_any_eight_bytes_are_a_segment_descriptor(raw: bytes) -> None:
    assert SegmentDescriptor.decode(raw).encode() == raw


@given(base=st.integers(0, 2**64 - 1), type=st.sampled_from([2, 9, 11]), dpl=st.integers(0, 3))
def test_any_long_system_descriptor_survives_encoding(base: int, type: int, dpl: int) -> None:
    descriptor = SegmentDescriptor(base, 0x67, type, s=0, dpl=dpl, long=True)

    assert SegmentDescriptor.decode(descriptor.encode(), long=True) == descriptor


@given(
    offset=st.integers(0, 2**64 - 1),
    selector=st.integers(0, 0xFFFF),
    type=st.sampled_from([0xC, 0xE, 0xF]),
    dpl=st.integers(0, 3),
    present=st.integers(0, 1),
    ist=st.integers(0, 7),
)
def test_any_long_gate_survives_encoding(
    offset: int, selector: int, type: int, dpl: int, present: int, ist: int
) -> None:
    gate = Gate(selector, offset, type, dpl, present, ist, long=True)

    assert Gate.decode(gate.encode(), long=True) == gate


def test_a_gdt_is_its_entries_in_order_and_none_an_empty_slot() -> None:
    image = gdt([None, code(64), tss(0x5000), data(32)])

    assert len(image) == 8 + 8 + 16 + 8
    assert image[:8] == bytes(8)
    assert decode_segment(image, 0x08).kind == "code64"
    assert decode_segment(image, 0x10, long=True) == tss(0x5000)
    assert decode_segment(image, 0x20 | 3).kind == "data32"


def test_an_idt_has_absent_gates_where_none_is_given() -> None:
    image = idt({14: interrupt_gate(0x10, 0x1234)})

    assert len(image) == 256 * 16
    assert decode_gate(image, 14) == interrupt_gate(0x10, 0x1234)
    assert not decode_gate(image, 13).present


def test_a_32_bit_idt_has_slots_of_eight_bytes() -> None:
    image = idt({1: trap_gate(8, 0x1234, bits=32), 8: task_gate(0x28)}, bits=32, vectors=9)

    assert len(image) == 9 * 8
    assert decode_gate(image, 1, bits=32) == trap_gate(8, 0x1234, bits=32)
    assert decode_gate(image, 8, bits=32) == task_gate(0x28)


def test_an_ivt_holds_offset_then_segment() -> None:
    image = ivt({0x10: (0xC000, 0x0003), 0xFF: (0xF000, 0xFF53)})

    assert len(image) == 1024
    assert image[0x40:0x44].hex() == "030000c0"
    assert image[-4:].hex() == "53ff00f0"
    assert image.count(0) == 1024 - 5


def test_the_flat_gdt_fits_syscall_and_sysret() -> None:
    # SDM 3A 5.8.8: SYSCALL takes SS = CS + 8; SYSRET takes CS = base + 16 and SS = base + 8.
    image = flat_gdt(0x5000).image
    base = descriptors.USER_CODE32

    assert descriptors.DATA - descriptors.CODE64 == 8
    assert (descriptors.USER_DATA - base, descriptors.USER_CODE64 - base) == (8, 16)
    kinds = {
        selector: (decode_segment(image, selector).kind, decode_segment(image, selector).dpl)
        for selector in range(0x08, 0x38, 8)
    }
    assert kinds == {
        0x08: ("code32", 0),
        0x10: ("code64", 0),
        0x18: ("data32", 0),
        0x20: ("code32", 3),
        0x28: ("data32", 3),
        0x30: ("code64", 3),
    }


def test_the_flat_gdts_16_bit_segments_suit_the_way_back_to_real_mode() -> None:
    # SDM 3A 10.9.2: a limit of 64 KiB, byte granular, writable, base 0, before CR0.PE is cleared.
    image = flat_gdt().image

    assert decode_segment(image, descriptors.CODE16) == code(16)
    assert decode_segment(image, descriptors.DATA16) == data(16)
    assert code(16).limit == data(16).limit == 0xFFFF


def test_the_flat_gdts_tss_reads_as_a_32_bit_one_too() -> None:
    image = flat_gdt(0x7654_3000).image

    assert decode_segment(image, descriptors.TSS, long=True) == tss(0x7654_3000, busy=True)
    assert decode_segment(image, descriptors.TSS) == tss(0x7654_3000, bits=32, busy=True)


@pytest.mark.parametrize(
    ("descriptor", "text"),
    [
        (code(64), "code64 base=0 limit=ffffffff dpl=0 readable accessed"),
        (
            code(16, dpl=3, conforming=True),
            "code16 base=0 limit=ffff dpl=3 readable conforming accessed",
        ),
        (
            data(32, expand_down=True, accessed=False),
            "data32 base=0 limit=ffffffff dpl=0 writable down",
        ),
        (tss(0x10, busy=True), "tss64 busy base=10 limit=67 dpl=0"),
        (ldt(0x10, 7), "ldt base=10 limit=7 dpl=0"),
        (
            code(32)._replace(present=0),
            "code32 base=0 limit=ffffffff dpl=0 readable accessed absent",
        ),
        (interrupt_gate(8, 0x1234, ist=2), "interrupt gate 64 0008:1234 dpl=0 ist=2"),
        (call_gate(8, 0x1234, bits=16, parameters=3), "call gate 16 0008:1234 dpl=0 parameters=3"),
        (Gate.decode(bytes(8)), "no gate (type 0) 0000:0 dpl=0 absent"),
        (Gate.decode(task_gate(8).encode() + bytes(8), long=True), "no gate (type 5) 0008:0 dpl=0"),
    ],
)
def test_descriptors_read_well(descriptor: SegmentDescriptor | Gate, text: str) -> None:
    assert str(descriptor) == text


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: data(32, base=1 << 32).encode(), "base 0x100000000 does not fit 32 bits"),
        (lambda: data(32, limit=1 << 20).encode(), "0x100000 does not end at a 4 KiB boundary"),
        (lambda: data(32, limit=(1 << 33) - 1).encode(), "limit 0x1fffff does not fit 20 bits"),
        (lambda: data(32, dpl=4).encode(), "dpl 0x4 does not fit 2 bits"),
        (lambda: code(64)._replace(long=True).encode(), "only a system descriptor"),
        (lambda: code(8), "a segment of 8 bits: choose from 16, 32, 64"),
        (lambda: data(64), "a segment of 64 bits: choose from 16, 32"),
        (lambda: tss(0, bits=8), "a TSS of 8 bits"),
        (lambda: interrupt_gate(8, 1 << 32, bits=32).encode(), "offset 0x1\\w+ does not fit 32"),
        (lambda: interrupt_gate(8, 0, bits=32, ist=1).encode(), "ist 0x1 does not fit 0 bits"),
        (lambda: call_gate(8, 0, parameters=1).encode(), "parameters 0x1 does not fit 0 bits"),
        (lambda: Gate(8, 0, 9).encode(), "no 32-bit gate of type 9"),
        (lambda: Gate(8, 0, 5, long=True).encode(), "no 64-bit gate of type 5"),
        (lambda: idt({256: interrupt_gate(8, 0)}), "vector 256 is outside an IDT of 256"),
        (lambda: idt({0: interrupt_gate(8, 0)}, bits=32), "gate 64 does not fit a 32-bit IDT"),
        (lambda: ivt({256: (0, 0)}), "vector 0x100 does not fit 8 bits"),
        (lambda: decode_segment(bytes(16), 0x10), "the table ends within a descriptor: 0 of 8"),
        (lambda: decode_segment(flat_gdt().image[:0x40], 0x38, long=True), "8 of 16 bytes"),
        (lambda: decode_gate(bytes(16 * 3), 3), "0 of 16 bytes"),
        (lambda: flat_gdt(-1), "base -0x1 does not fit 64 bits"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()
