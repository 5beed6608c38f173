"""Boot sectors by their content; where a real-mode image starts and which stack it has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from boot.elfs import elf

from pykvm import boot
from pykvm.boot.real_start import RealAddress
from pykvm.errors import ConfigError, LoadError
from pykvm.memory import GuestMemory
from pykvm.x86.state import Mode
from support.boot import load

M = 1 << 20
CODE = b"\xf4"
SECTOR = CODE.ljust(510, b"\0") + b"\x55\xaa"


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(overcommit=True) as memory:
        memory.add_ram(0, M)
        yield memory


class TestBootSector:
    @pytest.mark.parametrize("name", ["disk", "floppy.img", "boot.bin"])
    def test_known_by_its_content(self, name: str) -> None:
        image = load(SECTOR, name=name)
        assert image[:5] == (name, "bootsector", "bootsector", Mode.REAL, 0x7C00)

    def test_the_sectors_after_the_first_stay_out(self, memory: GuestMemory) -> None:
        image = load(SECTOR + b"second".ljust(512, b"\0"))
        assert [segment.data for segment in image.segments] == [SECTOR]
        boot.place(image, memory)
        assert memory.find(b"second") is None

    def test_state(self, memory: GuestMemory) -> None:
        state = boot.place(load(SECTOR), memory).state
        assert (state.cs.selector, state.rip, state.rdx) == (0, 0x7C00, 0x80)
        assert (state.ss.selector, state.rsp) == (0, 0x7C00)

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (SECTOR + b"x", "has 513 bytes, not whole sectors of 512"),
            (SECTOR[:-1] + b"\xab", "has 55 ab at 510, not 55 aa"),
            (SECTOR + b"\xeb\x66HdrS".ljust(512, b"\0"), "is a Linux kernel (HdrS at 0x202)"),
        ],
    )
    def test_a_refusal_says_why_it_is_no_boot_sector(self, data: bytes, reason: str) -> None:
        with pytest.raises(LoadError) as caught:
            load(data, protocol="bootsector")
        assert f"no bootsector image: {reason}" in caught.value.message

    @pytest.mark.parametrize("asked", [{"mode": Mode.REAL}, {"address": 0x7C00}])
    def test_a_mode_or_an_address_makes_it_a_flat_image(self, asked: dict[str, Any]) -> None:
        image = load(SECTOR * 2, **asked)
        assert (image.protocol, len(image.segments[0].data)) == ("flat", 1024)
        assert load(SECTOR, protocol="bootsector", **asked).protocol == "bootsector"


class TestRealAddress:
    @pytest.mark.parametrize(
        ("text", "address"),
        [
            ("07C0:0000", (0x7C0, 0)),
            ("0:7c00", (0, 0x7C00)),
            ("0x9000:0xfffe", (0x9000, 0xFFFE)),
            ("ffff:ffff", (0xFFFF, 0xFFFF)),
        ],
    )
    def test_parse(self, text: str, address: tuple[int, int]) -> None:
        assert RealAddress.parse(text) == address

    @pytest.mark.parametrize("text", ["", "7c00", "0:1:2", "10000:0", "0:-1", "g:0", "0:"])
    def test_wrong_real_mode_addresses_are_refused(self, text: str) -> None:
        with pytest.raises(ConfigError, match="is no real-mode address: SEGMENT:OFFSET"):
            RealAddress.parse(text)


class TestStart:
    def test_entry(self, memory: GuestMemory) -> None:
        image = load(bytes(0x20) + CODE, entry=RealAddress(0x7C0, 0x20))
        assert (image.kind, image.entry) == ("flat", 0x7C20)
        state = boot.place(image, memory).state
        assert (state.cs.selector, state.rip, state.linear_rip) == (0x7C0, 0x20, 0x7C20)
        assert (state.ds.selector, state.es.base) == (0x7C0, 0x7C00)

    def test_stack(self, memory: GuestMemory) -> None:
        entry = boot.place(load(CODE, stack=RealAddress(0x9000, 0xFFFE)), memory)
        assert (entry.state.ss.selector, entry.state.rsp) == (0x9000, 0xFFFE)
        assert [place.name for place in entry.layout] == ["image"]

    def test_a_stack_at_the_top_of_its_segment(self, memory: GuestMemory) -> None:
        image = load(CODE, stack=RealAddress(0xF000, 0))
        assert boot.place(image, memory).state.rsp == 0
        with pytest.raises(LoadError, match="stack at f001:0000 goes to 0x10000e, where no RAM"):
            boot.place(load(CODE, stack=RealAddress(0xF001, 0)), memory)

    def test_of_a_boot_sector(self, memory: GuestMemory) -> None:
        image = load(SECTOR, entry=RealAddress(0x7C0, 0), stack=RealAddress(0, 0x7000))
        state = boot.place(image, memory).state
        assert image.protocol == "bootsector"
        assert (state.cs.selector, state.rip, state.rsp, state.rdx) == (0x7C0, 0, 0x7000, 0x80)

    @pytest.mark.parametrize("entry", [RealAddress(0x7C0, 1), RealAddress(0, 0x7BFF)])
    def test_an_entry_outside_the_image(self, entry: RealAddress) -> None:
        with pytest.raises(LoadError, match=r"outside the image \(0x7c00-0x7c01\)"):
            load(CODE, entry=entry)

    def test_is_for_real_mode(self) -> None:
        with pytest.raises(LoadError, match="starts in long mode: an entry or a stack as SEGMENT"):
            load(CODE, mode=Mode.LONG, stack=RealAddress(0, 0x7C00))
        with pytest.raises(LoadError, match="is of kind elf: an entry or a stack as SEGMENT:OFF"):
            load(elf(), entry=RealAddress(0, 0))
