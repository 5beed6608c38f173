"""Symbols in a file beside the guest: vmlinux, or System.map."""

from __future__ import annotations

from pathlib import Path

import pytest

from pykvm import ConfigError, LoadError, Machine, Mode
from pykvm.boot.symbol_files import symbols_of
from pykvm.boot.symbols import Symbol, Symbols

MAP = b"""\
0000000000000000 D __per_cpu_start
0000000000000000 D fixed_percpu_data
0000000000001000 D cpu_debug_store
0000000000020018 D __per_cpu_end
0000000000000fff A some_number
ffffffff81000000 T _stext
ffffffff81000000 t local_twin
ffffffff81000080 W weak_one
ffffffff81000100 T start_kernel
ffffffff81000200 B _end
"""


def test_a_map_names_addresses() -> None:
    symbols = symbols_of(MAP)
    assert symbols["start_kernel"] == 0xFFFFFFFF81000100
    assert symbols.describe(0xFFFFFFFF81000110) == "start_kernel+0x10"
    assert symbols.describe(0xFFFFFFFF8100007F) == "_stext+0x7f"
    assert symbols.describe(0xFFFFFFFF81000084) == "weak_one+0x4"


@pytest.mark.parametrize("address", [0, 4, 0xFFF, 0x1000, 0x20018, 0x1FFFF, 0xFFFFFFFF80FFFFFF])
def test_per_cpu_variables_and_numbers_are_no_places(address: int) -> None:
    """A zero on a stack is not fixed_percpu_data."""
    assert symbols_of(MAP).find(address) is None


def test_past_the_last_symbol_nothing_is_named() -> None:
    assert symbols_of(MAP).find(0xFFFFFFFF81000200) == ("_end", 0)
    assert symbols_of(MAP).find(0xFFFFFFFF81000201) is None


def test_a_per_cpu_variable_still_has_its_number() -> None:
    assert symbols_of(MAP)["cpu_debug_store"] == 0x1000


def test_a_kernel_for_one_processor_has_them_in_memory() -> None:
    where = 0xFFFFFFFF81000000
    symbols = Symbols(
        lambda: [Symbol("__per_cpu_start", where), Symbol("__per_cpu_end", where + 0x100)]
    )
    assert symbols.find(where) == ("__per_cpu_start", 0)


def test_an_offset_moves_places_and_no_numbers() -> None:
    symbols = symbols_of(MAP, offset=0x1E000000)
    assert symbols["start_kernel"] == 0xFFFFFFFF9F000100
    assert symbols["some_number"] == 0xFFF
    assert symbols["cpu_debug_store"] == 0x1000
    assert symbols.find(0x1E000000) is None
    assert symbols_of(MAP, offset=-0x1000000)["_stext"] == 0xFFFFFFFF80000000


def test_an_offset_beyond_64_bits_leaves_none() -> None:
    assert "_stext" not in symbols_of(MAP, offset=1 << 63)


def test_lines_that_are_none_are_left_out() -> None:
    text = b"1000 T main\n\nnonsense\nzz T bad\n2000 TT worse\n3000 T tail [module]\n"
    assert dict(symbols_of(text)) == {"main": 0x1000, "tail": 0x3000}


def test_a_line_without_end_costs_nothing() -> None:
    symbols = symbols_of(b"1000 T main\n2000 T " + b"a" * 10_000_000)
    assert max(map(len, symbols)) <= 4096


@pytest.mark.parametrize("data", [b"hello\n", b"\x00" * 64, b"T main\n", b"12 34 56\n"])
def test_what_is_neither_is_refused(data: bytes) -> None:
    with pytest.raises(LoadError, match=r"neither an ELF file nor a System\.map"):
        symbols_of(data)


def test_an_elf_file(guests: Path) -> None:
    symbols = symbols_of(guests / "hello.elf")
    assert symbols.describe(symbols["main"]) == "main"
    moved = symbols_of(guests / "hello.elf", offset=0x1000)
    assert moved["main"] == symbols["main"] + 0x1000


@pytest.mark.kvm
def test_a_machine_uses_them() -> None:
    with Machine(
        b"\xf4", mode=Mode.REAL, load_address=0x7C00, symbols=b"7c00 T boot\n", memory="1M"
    ) as machine:
        assert machine.symbols["boot"] == 0x7C00
        assert machine.symbol_at(0x7C00) == "boot"


@pytest.mark.kvm
def test_they_go_with_an_image() -> None:
    with pytest.raises(ConfigError, match="symbols go with an image"):
        Machine(symbols=MAP)
