"""AML terms, against encodings worked out by hand from the specification."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.tables import aml


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (1, "01"),
        (2, "0a 02"),
        (0xFF, "0a ff"),
        (0x100, "0b 00 01"),
        (0xFFFF, "0b ff ff"),
        (0x10000, "0c 00 00 01 00"),
        (1 << 32, "0e 00 00 00 00 01 00 00 00"),
        ((1 << 64) - 1, "0e ff ff ff ff ff ff ff ff"),
    ],
)
def test_integers(value: int, encoded: str) -> None:
    assert aml.integer(value) == bytes.fromhex(encoded)


@pytest.mark.parametrize(
    ("id", "encoded"),
    [("PNP0303", "0c 41 d0 03 03"), ("PNP0C0F", "0c 41 d0 0c 0f"), ("PNP0000", "0b 41 d0")],
)
def test_eisa_ids(id: str, encoded: str) -> None:
    assert aml.eisa_id(id) == bytes.fromhex(encoded)


def test_names_and_strings() -> None:
    assert aml.name("_HID", aml.string("ACPI0007")) == b"\x08_HID\x0dACPI0007\0"
    assert aml.scope("\\_SB") == b"\x10\x06\\_SB_"
    assert aml.device("RTC") == b"\x5b\x82\x05RTC_"


def test_resources() -> None:
    template = aml.resource_template(aml.io_ports(0x3F8, 8), aml.irq(4))
    assert template == bytes.fromhex("""
        11 10 0a 0d
        47 01 f8 03 f8 03 01 08
        22 10 00
        79 00
    """)


def package_length(data: bytes) -> tuple[int, int]:
    """What a PkgLength says, and how many bytes it takes (ACPI 6.5, 20.2.4)."""
    extra = data[0] >> 6
    if extra == 0:
        return data[0] & 0x3F, 1
    return data[0] & 0xF | int.from_bytes(data[1 : 1 + extra], "little") << 4, 1 + extra


@given(
    st.one_of(
        st.integers(0, 300), st.integers(4050, 4150), st.sampled_from([1 << 20, (1 << 20) - 8])
    )
)
def test_lengths_count_themselves(size: int) -> None:
    encoded = aml.scope("\\", bytes(size))
    length, used = package_length(encoded[1:])
    assert 1 + length == len(encoded)
    below = [1 << 6, 1 << 12, 1 << 20, 1 << 28]
    assert length < below[used - 1]
    assert used == 1 or length > below[used - 2], "a byte less would not have done"
