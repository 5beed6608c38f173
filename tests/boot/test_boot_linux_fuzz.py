"""Whatever a kernel's bytes are: an image or a LoadError, and no more memory than there is room."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from boot.elfs import HLT, PT_INTERP, PT_LOAD, Part, R, X, elf
from boot.hostile import placed
from boot.kernels import CODE, FIELDS, PACKERS, PT_NOTE, K, M, bzimage, note, packed, vmlinux
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.boot.image import Setup
from pykvm.boot.linux_image import version_of
from pykvm.boot.source import Source
from pykvm.errors import LoadError
from pykvm.memory import GuestMemory
from pykvm.tables import Hardware
from support.boot import load

EXAMPLES = settings(max_examples=100)
ROOM = 4 * M

KERNEL = vmlinux(paddr=2 * M)
XEN = note("Xen", 18, M.to_bytes(4, "little"))
SOUND = [
    bzimage(),
    KERNEL,
    elf(Part(HLT * 64), XEN, bits=32),
    *(packed(KERNEL, None, pack) for pack in PACKERS),
]
PROTOCOLS = st.sampled_from([None, "linux", "linux64", "linux32", "pvh"])
SETUPS = st.builds(
    Setup,
    append=st.sampled_from(["", "quiet", "x" * 3000]),
    initrd=st.sampled_from(
        [None, Source("rd", b""), Source("rd", bytes(M)), Source("r", bytes(ROOM))]
    ),
    hardware=st.sampled_from([None, Hardware()]),
)
EDGES = [
    edge
    for width in (8, 16, 31, 32, 63, 64)
    for edge in (1 << (width - 1), (1 << width) - 1, (1 << width) - 0x80)
]
hostile = st.one_of(
    st.sampled_from(EDGES),
    st.integers(0, 0x400),
    st.integers(0, (1 << 64) - 1),
    st.sampled_from([M, 2 * M, 3 * M, 2 * M - 1, 64 * K, len(CODE), len(CODE) + 1]),
)


@pytest.fixture(scope="module")
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(overcommit=True) as memory:
        memory.add_ram(0, ROOM)
        yield memory


def attempt(memory: GuestMemory, data: bytes, setup: Setup | None = None, **request: Any) -> str:
    """Load and place; returns how far it got, for the tests of this function."""
    tracemalloc.start()
    try:
        return _attempt(memory, data, setup, request)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # lz4 works in blocks of 8 MiB; the initrd is the caller's.
        assert peak < 4 * len(data) + 2 * ROOM + 10 * M


def _attempt(memory: GuestMemory, data: bytes, setup: Setup | None, request: dict[str, Any]) -> str:
    try:
        image = load(data, name="fuzz", room=ROOM, **request)
    except LoadError as error:
        assert str(error).startswith("fuzz: ")
        return "refused"
    version_of(image)
    return f"placed by {image.protocol}" if placed(memory, image, setup) else "does not fit"


def test_the_kernels_to_mutate_are_placed(memory: GuestMemory) -> None:
    assert [attempt(memory, data) for data in SOUND] == [
        "placed by linux",
        "placed by linux",
        "placed by pvh",
        *["placed by linux"] * len(PACKERS),
    ]
    assert attempt(memory, bzimage(), protocol="linux32") == "placed by linux32"
    assert attempt(memory, bzimage(init_size=1 << 31)) == "does not fit"
    assert attempt(memory, bzimage(version=0)) == "refused"


@EXAMPLES
@given(
    data=st.sampled_from(SOUND),
    changes=st.lists(
        st.tuples(st.integers(0, 0x2000), st.integers(0, 255)), min_size=1, max_size=8
    ),
    end=st.none() | st.integers(0, 0x2000),
    protocol=PROTOCOLS,
)
def test_sound_files_with_a_few_bytes_changed_or_the_end_cut_off(
    memory: GuestMemory,
    data: bytes,
    changes: list[tuple[int, int]],
    end: int | None,
    protocol: str | None,
) -> None:
    mutated = bytearray(data)
    for position, value in changes:
        mutated[position % len(mutated)] = value
    attempt(memory, bytes(mutated[:end]), protocol=protocol)


@EXAMPLES
@given(
    fields=st.dictionaries(st.sampled_from(list(FIELDS)), hostile),
    kernel=st.sampled_from([None, KERNEL]),
    protocol=PROTOCOLS,
    setup=SETUPS,
    address=st.none() | hostile,
)
def test_hostile_setup_headers(
    memory: GuestMemory,
    fields: dict[str, int],
    kernel: bytes | None,
    protocol: str | None,
    setup: Setup,
    address: int | None,
) -> None:
    cut = {name: value % (1 << FIELDS[name][1] * 8) for name, value in fields.items()}
    # A larger file would only take longer.
    cut["setup_sects"] = cut.get("setup_sects", 1) % 64
    data = bzimage(**cut) if kernel is None else packed(kernel, **cut)
    attempt(memory, data, setup, protocol=protocol, address=address)


@EXAMPLES
@given(
    pack=st.sampled_from(list(PACKERS)),
    noise=st.binary(max_size=64),
    position=st.integers(0, 200),
    content=st.sampled_from([KERNEL, bytes(5 * M), KERNEL + bytes(3 * M), b"\x7fELF", b""]),
)
def test_hostile_payloads(
    memory: GuestMemory, pack: str, noise: bytes, position: int, content: bytes
) -> None:
    payload = bytearray(PACKERS[pack](content))
    payload[position : position + len(noise)] = noise
    attempt(memory, packed(b"", bytes(payload), init_size=0xFFFF_FFFF, relocatable_kernel=1))


@EXAMPLES
@given(pack=st.sampled_from(list(PACKERS)), noise=st.binary(max_size=400))
def test_random_payloads(memory: GuestMemory, pack: str, noise: bytes) -> None:
    magic = PACKERS[pack](b"\x7fELF")[:6]
    attempt(memory, packed(b"", magic + noise, init_size=0xFFFF_FFFF))


@EXAMPLES
@given(
    segments=st.lists(
        st.builds(
            Part,
            data=st.sampled_from([HLT, HLT * 64, b""]),
            vaddr=hostile,
            paddr=hostile,
            flags=st.sampled_from([R, R | X]),
            type=st.sampled_from([PT_LOAD, PT_LOAD, PT_NOTE, PT_INTERP]),
            memsz=st.none() | hostile,
            filesz=st.none() | hostile,
            offset=st.none() | hostile,
            align=st.sampled_from([0, 8, 0x1000]),
        ),
        min_size=1,
        max_size=4,
    ),
    desc=st.binary(max_size=10) | hostile.map(lambda value: value.to_bytes(8, "little")),
    owner=st.sampled_from(["Xen", "Linux", "pykvm"]),
    entry=hostile,
    protocol=PROTOCOLS,
    setup=SETUPS,
)
def test_hostile_elf_kernels(
    memory: GuestMemory,
    segments: list[Part],
    desc: bytes,
    owner: str,
    entry: int,
    protocol: str | None,
    setup: Setup,
) -> None:
    kind = {"Xen": 18, "Linux": 0x101, "pykvm": 1}[owner]
    attempt(memory, elf(*segments, note(owner, kind, desc), entry=entry), setup, protocol=protocol)
