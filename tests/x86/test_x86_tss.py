"""Task state segments against SDM 3A figures 8-2 (32-bit), 8-10 (16-bit) and 8-11 (64-bit)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import ConfigError
from pykvm.x86.tss import decode_tss, tss16, tss32, tss64

if TYPE_CHECKING:
    from collections.abc import Callable

OFFSETS_16 = {
    "link": 0, "sp0": 2, "ss0": 4, "sp2": 10, "ss2": 12, "ip": 14, "flags": 16, "ax": 18, "bx": 24,
    "di": 32, "es": 34, "cs": 36, "ss": 38, "ds": 40, "ldt": 42,
}  # fmt: skip
OFFSETS_32 = {
    "link": 0, "esp0": 4, "ss0": 8, "esp2": 20, "ss2": 24, "cr3": 28, "eip": 32, "eflags": 36,
    "eax": 40, "ebx": 52, "edi": 68, "es": 72, "cs": 76, "ds": 84, "gs": 92, "ldt": 96, "trap": 100,
}  # fmt: skip
OFFSETS_64 = {"rsp0": 4, "rsp1": 12, "rsp2": 20, "ist1": 36, "ist2": 44, "ist7": 84}


@pytest.mark.parametrize(("name", "offset"), OFFSETS_16.items())
def test_fields_of_a_16_bit_tss(name: str, offset: int) -> None:
    image = tss16(**{name: 0xA55A})
    assert len(image) == 44
    assert image == bytes(offset) + b"\x5a\xa5" + bytes(42 - offset)


@pytest.mark.parametrize(("name", "offset"), OFFSETS_32.items())
def test_fields_of_a_32_bit_tss(name: str, offset: int) -> None:
    fields: dict[str, Any] = {name: 0xA55A}
    image = tss32(**fields)
    assert len(image) == 104
    assert image == bytes(offset) + b"\x5a\xa5" + bytes(100 - offset) + b"\x68\0"


@pytest.mark.parametrize(("name", "offset"), OFFSETS_64.items())
def test_fields_of_a_64_bit_tss(name: str, offset: int) -> None:
    fields: dict[str, Any] = {name: 0x1122_3344_5566_7788}
    image = tss64(**fields)
    assert len(image) == 104
    assert (
        image == bytes(offset) + bytes.fromhex("8877665544332211") + bytes(94 - offset) + b"\x68\0"
    )


def test_without_ports_the_bitmap_lies_beyond_the_limit_so_that_all_are_denied() -> None:
    assert decode_tss(tss64(), 64)["io_map_base"] == len(tss64()) == 104


@given(ports=st.sets(st.integers(0, 0xFFFF), min_size=1, max_size=8))
@pytest.mark.parametrize("build", [tss32, tss64])
def test_the_bitmap_allows_the_ports_given_and_no_other(
    build: Callable[..., bytes], ports: set[int]
) -> None:
    image = build(ports=ports)
    bits = decode_tss(image, 64)["io_map_base"]
    covered = (len(image) - bits) * 8
    allowed = {port for port in range(covered) if not image[bits + port // 8] >> port % 8 & 1}

    assert allowed == ports
    assert image[-1] == 0xFF


def test_a_decoded_tss_names_every_field() -> None:
    fields = decode_tss(tss32(esp0=0x9000, ss0=0x18, eflags=2, trap=1), 32)
    assert {name: value for name, value in fields.items() if value} == {
        "esp0": 0x9000,
        "ss0": 0x18,
        "eflags": 2,
        "trap": 1,
        "io_map_base": 104,
    }


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: tss64(esp0=1), "no field 'esp0'"),
        (lambda: tss64(rsp0=1 << 64), "does not fit"),
        (lambda: tss16(sp0=0x10000), "does not fit"),
        (lambda: tss64(ports=[0x10000]), "no port 0x10000"),
        (lambda: tss64(ports=[-1]), "no port -0x1"),
        (lambda: decode_tss(bytes(104), 8), "a TSS of 8 bits"),
        (lambda: decode_tss(bytes(103), 64), "a 64-bit TSS has 104 bytes, not 103"),
    ],
)
def test_what_does_not_fit_is_named(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()
