"""Whatever the bytes: an image or a LoadError, never anything else, and never slowly."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from boot.elfs import (
    ET_DYN,
    HLT,
    PT_DYNAMIC,
    PT_INTERP,
    PT_LOAD,
    STT_NOTYPE,
    Part,
    R,
    Sym,
    W,
    X,
    dynamic,
    elf,
)
from boot.hostile import EXAMPLES, attempt, hostile
from hypothesis import given
from hypothesis import strategies as st

from pykvm.memory import GuestMemory
from pykvm.x86.state import Mode

RELA = struct.pack("<QQq", 0x1000, 8, 0x10) * 2
SOUND = [
    elf(
        Part(HLT * 64, 0x1000), Part(b"data", 0x2000, R | W, memsz=64), symbols=(Sym("f", 0x1000),)
    ),
    elf(Part(HLT * 64, 0x1000), bits=32, symbols=(Sym("f", 0x1000), Sym("g", 0x1008))),
    elf(
        Part(HLT * 16, 0),
        Part(bytes(8) + RELA, 0x1000, R | W),
        Part(
            dynamic((7, 0x1008), (8, len(RELA)), (9, 24), (17, 0x1008), (18, 16), (19, 16)),
            type=PT_DYNAMIC,
        ),
        type=ET_DYN,
        symbols=(Sym("f", 0), Sym("g", 8, type=STT_NOTYPE)),
    ),
    *(
        path.read_bytes()[: 1 << 16]
        for path in sorted(Path(__file__).parents[2].glob("guests/build/hello*.elf"))
    ),
]


@pytest.fixture(scope="module")
def memory() -> Any:
    with GuestMemory(overcommit=True) as memory:
        memory.add_ram(0, 0x3_0000)
        memory.add_ram(0x10_0000, 0x10_0000)
        yield memory


def test_the_files_to_mutate_are_placed(memory: GuestMemory) -> None:
    assert [attempt(memory, data) for data in SOUND[:3]] == ["placed"] * 3
    assert attempt(memory, elf(Part(vaddr=1 << 40))) == "does not fit"
    assert attempt(memory, b"\x7fELF") == "refused"


modes = st.sampled_from([None, *Mode])
addresses = st.none() | hostile


@EXAMPLES
@given(st.binary(max_size=200), modes, addresses)
def test_random_bytes(memory: GuestMemory, data: bytes, mode: Mode, address: int) -> None:
    attempt(memory, data, mode=mode, address=address)
    attempt(memory, b"\x7fELF" + data, mode=mode, address=address)


@EXAMPLES
@given(
    st.sampled_from(SOUND),
    st.lists(st.tuples(st.integers(0, 0x400), st.integers(0, 255)), min_size=1, max_size=8),
    st.none() | st.integers(0, 0x800),
    modes,
)
def test_sound_files_with_a_few_bytes_changed_or_the_end_cut_off(
    memory: GuestMemory, data: bytes, changes: list[tuple[int, int]], end: int, mode: Mode
) -> None:
    mutated = bytearray(data)
    for position, value in changes:
        mutated[position % len(mutated)] = value
    attempt(memory, bytes(mutated[:end]), mode=mode)


parts = st.builds(
    Part,
    data=st.sampled_from([HLT, HLT * 64, b"", dynamic((1, 1)), b"/lib/ld.so\0"]),
    vaddr=hostile,
    flags=st.sampled_from([0, R, R | X, R | W | X]),
    type=st.sampled_from([PT_LOAD, PT_LOAD, PT_LOAD, PT_DYNAMIC, PT_INTERP, 0]),
    paddr=st.none() | hostile,
    memsz=st.none() | hostile,
    filesz=st.none() | hostile,
    offset=st.none() | hostile,
    align=st.sampled_from([0, 1, 0x1000, 3, 1 << 63]),
)


def fit(bits: int, part: Part) -> Part:
    """The part with its numbers cut to what a 32-bit file can hold."""
    cut = [value % (1 << bits) if isinstance(value, int) else value for value in part]
    return Part._make(cut)


@EXAMPLES
@given(
    bits=st.sampled_from([32, 64]),
    kind=st.sampled_from([2, ET_DYN]),
    parts=st.lists(parts, min_size=1, max_size=4),
    entry=st.none() | hostile,
    address=addresses,
    mode=modes,
)
def test_hostile_program_headers(
    memory: GuestMemory,
    bits: int,
    kind: int,
    parts: list[Part],
    entry: int | None,
    address: int | None,
    mode: Mode | None,
) -> None:
    entry = None if entry is None else entry % (1 << bits)
    data = elf(*(fit(bits, part) for part in parts), bits=bits, type=kind, entry=entry)
    attempt(memory, data, address=address, mode=mode)


# The fields of the ELF header, by their widths in bits.
FIELDS = {
    **dict.fromkeys(["ei_class", "ei_data", "ei_version"], 8),
    **dict.fromkeys(["e_type", "e_machine", "e_phentsize", "e_phnum"], 16),
    **dict.fromkeys(["e_shentsize", "e_shnum"], 16),
    **dict.fromkeys(ADDRESSES := ["e_entry", "e_phoff", "e_shoff"], 64),
}


@EXAMPLES
@given(st.sampled_from([32, 64]), st.dictionaries(st.sampled_from(list(FIELDS)), hostile))
def test_hostile_headers(memory: GuestMemory, bits: int, fields: dict[str, int]) -> None:
    widths = {name: bits if name in ADDRESSES else FIELDS[name] for name in fields}
    cut = {name: value % (1 << widths[name]) for name, value in fields.items()}
    attempt(memory, elf(Part(HLT * 16, 0x1000), bits=bits, symbols=(Sym("f", 0x1000),), **cut))


tags = st.sampled_from([1, 2, 7, 8, 9, 17, 18, 19, 20, 23, 35, 36, 37])
near = st.sampled_from([0, 8, 16, 24, 48, 0xFFF, 0x1000, 0x1008, 0x1010])


@EXAMPLES
@given(
    bits=st.sampled_from([32, 64]),
    entries=st.lists(st.tuples(tags, near | hostile), max_size=10),
    words=st.lists(near | hostile, min_size=1, max_size=16),
)
def test_hostile_relocations(
    memory: GuestMemory, bits: int, entries: list[tuple[int, int]], words: list[int]
) -> None:
    size = bits // 8
    data = b"".join((word % (1 << bits)).to_bytes(size, "little") for word in words)
    section = dynamic(*((tag, value % (1 << bits)) for tag, value in entries), bits=bits)
    file = elf(
        Part(HLT * 16, 0),
        Part(data, 0x1000, R | W),
        Part(section, type=PT_DYNAMIC),
        type=ET_DYN,
        bits=bits,
    )
    attempt(memory, file)


@EXAMPLES
@given(st.binary(max_size=400), st.data())
def test_hostile_sections(memory: GuestMemory, noise: bytes, data: st.DataObject) -> None:
    file = bytearray(SOUND[0] + noise)
    start = struct.unpack_from("<Q", file, 0x28)[0]
    for _ in range(data.draw(st.integers(1, 4))):
        offset = start + data.draw(st.integers(0, len(SOUND[0]) - start - 8))
        struct.pack_into("<Q", file, offset, data.draw(hostile))
    attempt(memory, bytes(file))
