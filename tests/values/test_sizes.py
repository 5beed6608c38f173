"""Sizes in and out of text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import ConfigError
from pykvm.values.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("0x1000", 4096),
        ("0XfF", 255),
        ("1k", 1024),
        ("1K", 1024),
        ("1KB", 1024),
        ("1KiB", 1024),
        ("64M", 64 << 20),
        (" 64 M ", 64 << 20),
        ("2g", 2 << 30),
        ("3T", 3 << 40),
        ("1P", 1 << 50),
        ("0.5K", 512),
        ("1.5GiB", 3 << 29),
        ("512 bytes", 512),
        ("512B", 512),
        ("1_000", 1000),
        (12345, 12345),
    ],
)
def test_parse_size(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "M",
        "64X",
        "64MM",
        "1.5",
        "0.3K",
        "1.",
        ".K",
        "1e3",
        "0x",
        "0xZ",
        "six",
        "1 2",
        "1M2",
        "٣",
    ],
)
def test_not_a_size(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize("text", ["-1", "-64M", -4096])
def test_negative_sizes(text: str | int) -> None:
    with pytest.raises(ConfigError, match="negative"):
        parse_size(text)


@given(st.text(max_size=12))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        assert parse_size(text) >= 0
    except ConfigError as error:
        assert text.strip() in str(error) or repr(text) in str(error)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (64 << 20, "64 MiB"),
        ((64 << 20) + 4096, "64.0 MiB"),
        (1 << 50, "1 PiB"),
        (5 << 60, "5120 PiB"),
    ],
)
def test_format_size(size: int, text: str) -> None:
    assert format_size(size) == text


@given(number=st.integers(1, 1023), power=st.integers(0, 5))
def test_a_formatted_whole_size_parses_back(number: int, power: int) -> None:
    size = number << (10 * power)
    assert parse_size(format_size(size)) == size
