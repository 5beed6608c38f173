"""Firmware images: known by size and reset vector, mapped under 4 GiB, shadowed under 1 MiB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from boot.elfs import elf
from boot.kernels import bzimage
from boot.multiboots import header1
from hypothesis import given
from hypothesis import strategies as st

from pykvm import boot
from pykvm.boot.image import Module, Setup
from pykvm.boot.source import Source
from pykvm.errors import LoadError
from pykvm.memory import GuestMemory
from pykvm.x86.entry import reset
from pykvm.x86.state import Mode
from support.boot import load

K, M, G = 1 << 10, 1 << 20, 1 << 30
JUMP = bytes.fromhex("ea 5b e0 00 f0")
# 96b582de-1fb2-45f7-baea-a366c55a082d
OVMF_TABLE_END = "de82b596 b21f f745 baeaa366c55a082d"


def bios(size: int = 64 * K, vector: bytes = JUMP) -> bytes:
    """An image in which each 4 KiB page has its number, from the end, in its first two bytes."""
    image = bytearray(size)
    for page in range(0, size, 4096):
        image[page : page + 2] = ((size - page) // 4096).to_bytes(2, "little")
    image[size - 16 : size - 16 + len(vector)] = vector
    return bytes(image)


class TestRecognised:
    @pytest.mark.parametrize("size", [64 * K, 128 * K, 192 * K, 256 * K, 16 * M])
    @pytest.mark.parametrize("name", ["bios.bin", "bios"])
    def test_by_size_and_reset_vector(self, size: int, name: str) -> None:
        image = load(bios(size), name=name)
        assert image[:5] == (name, "firmware", "firmware", Mode.REAL, 4 * G - 16)
        (segment,) = image.segments
        assert (segment.address, segment.size, segment.writable) == (4 * G - size, size, False)

    @pytest.mark.parametrize(
        "vector",
        [
            "ea 5b e0 00 f0",  # jmp f000:e05b
            "e9 0d 00",  # jmp 0000, past the end of the segment
            "eb c8",  # jmp ffba
            "90 90 e9 00 f0",  # nop; nop; jmp efe5
            "fa fc e9 0b f8 ff ff",  # cli; cld; jmp f800: U-Boot
            "0f 20 c0 a8 01 74 05 e9 28 ff",  # mov eax, cr0; test al, 1; jz; jmp: OVMF
            "0f 09 e9 00 f0",  # wbinvd; jmp eff5: EDK II
            "66 89 c5 66 e9 00 f0 ff ff",  # mov ebp, eax; jmp eff9
            "b0 01 e6 80 eb c8",  # mov al, 1; out 0x80, al; jmp ffbe
        ],
    )
    def test_by_code_that_jumps_away(self, vector: str) -> None:
        assert load(bios(vector=bytes.fromhex(vector))).protocol == "firmware"

    @pytest.mark.parametrize(
        "vector",
        [
            "ea 5b e0 00 07",  # jmp 0700:e05b, which is not the image
            "ea 5b e0 00 e0",  # jmp e000:e05b, below a shadow of 64 KiB
            "90 90 90 90 90 90 90 90 90 90 90 90 90 90 e9 00",  # cut off
            "fa f4 e9 00 f0",  # cli; hlt; jmp
            "e8 00 f0",  # call
            "ff ff ff ff",
        ],
    )
    def test_not_by_a_reset_vector_that_does_not_jump_into_the_image(self, vector: str) -> None:
        with pytest.raises(LoadError, match="no jump stands at the reset vector"):
            load(bios(vector=bytes.fromhex(vector)), name="bios.rom")

    @pytest.mark.parametrize("mark", [(0x28, b"_FVH"), (-48, bytes.fromhex(OVMF_TABLE_END))])
    def test_uefi_has_any_number_of_pages(self, mark: tuple[int, bytes]) -> None:
        image = bytearray(bios(68 * K))
        at = mark[0] % len(image)
        with pytest.raises(LoadError, match="not a multiple of 64 KiB"):
            load(bytes(image), name="bios.rom")
        image[at : at + len(mark[1])] = mark[1]
        assert load(bytes(image)).protocol == "firmware"
        with pytest.raises(LoadError, match="not a multiple of 64 KiB"):
            load(bytes(512) + bytes(image), name="bios.rom")

    def test_a_kernel_is_not_firmware(self) -> None:
        for kernel, protocol in ((bzimage(), "linux"), (elf(), "elf")):
            file = kernel[:1024] + bios()[len(kernel[:1024]) :]
            assert load(file).protocol == protocol
            assert load(file, protocol="firmware").protocol == "firmware"

    def test_a_multiboot_header_counts_unless_the_jump_leads_to_code(self) -> None:
        # As in U-Boot's ROM, which boot loaders may load at 4 GiB less its size.
        header = header1(1 << 16, 4 * G - 64 * K, 4 * G - 64 * K, 0, 0, 4 * G - 64 * K + 32)
        image = bytearray(bios())
        image[: len(header)] = header
        assert load(bytes(image)).protocol == "multiboot"
        image[0xE05B:0xE05F] = b"\xfa\xfc\x31\xc0"
        assert load(bytes(image)).protocol == "firmware"

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (bios(vector=b"\xf4"), "no jump stands at the reset vector.*, but f4 00 00 00 00"),
            (bios(vector=b"\x90" * 16), "but 90 90 90 90 90"),
            (bios() + b"\0", "0x10001 bytes are not a multiple of 64 KiB up to 16 MiB"),
            (JUMP.ljust(16), "0x10 bytes are not a multiple of 64 KiB"),
            (bios(16 * M + 64 * K), "up to 16 MiB"),
        ],
    )
    def test_a_refusal_says_what_is_missing(self, data: bytes, reason: str) -> None:
        with pytest.raises(LoadError, match=reason):
            load(data, name="bios.rom")

    @pytest.mark.parametrize("request_", [{"mode": Mode.REAL}, {"address": 0x7C00}])
    def test_a_mode_or_an_address_makes_it_flat(self, request_: dict[str, Any]) -> None:
        assert load(bios(), **request_).protocol == "flat"

    def test_by_name_whatever_the_reset_vector(self) -> None:
        image = load(bios(vector=b"\xf4"), protocol="firmware")
        assert image.protocol == "firmware"

    @pytest.mark.parametrize(
        ("data", "request_", "message"),
        [
            (
                bytes(1000),
                {},
                r"1000 \(0x3e8\) bytes are not a multiple of 4 KiB\npad it in front to 65536",
            ),
            (bytes(64 * K - 1), {}, "not a multiple of 4 KiB"),
            (bytes(16 * M + 64 * K), {}, "16.1 MiB, and there is room for 16 MiB"),
            (bios(), {"mode": Mode.LONG}, "no mode or address can be given"),
            (bios(), {"address": 0}, "no mode or address can be given"),
        ],
    )
    def test_insisting_does_not_make_firmware_of_everything(
        self, data: bytes, request_: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(LoadError, match=message):
            load(data, protocol="firmware", **request_)


class TestPlaced:
    @pytest.mark.parametrize(
        ("size", "shadow"), [(64 * K, 64 * K), (128 * K, 128 * K), (256 * K, 128 * K)]
    )
    def test_rom_below_4_gib_and_its_end_below_1_mib(
        self, memory: GuestMemory, size: int, shadow: int
    ) -> None:
        data = bios(size)
        entry = boot.place(load(data), memory)
        rom = memory.region_at(4 * G - size)
        assert rom is not None
        assert rom.readonly
        assert (rom.start, rom.end) == (4 * G - size, 4 * G)
        assert memory.read(4 * G - size, size) == data
        assert memory.read(M - shadow, shadow) == data[-shadow:]
        assert memory.read(M - shadow - 16, 16) == bytes(16)
        assert [str(place) for place in entry.layout] == [
            f"shadow ({M - shadow:#x}-0x100000)",
            f"firmware ({4 * G - size:#x}-0x100000000)",
        ]

    def test_the_shadow_can_be_written(self, memory: GuestMemory) -> None:
        boot.place(load(bios()), memory)
        memory.write(M - 64 * K, b"written")

    def test_registers_are_as_after_reset(self, memory: GuestMemory) -> None:
        assert boot.place(load(bios()), memory).state == reset()

    @pytest.mark.parametrize("ram", [(0, 640 * K), (M, M), (0, M - 4 * K)])
    def test_a_shadow_needs_ram(self, ram: tuple[int, int]) -> None:
        with GuestMemory() as memory:
            memory.add_ram(*ram)
            with pytest.raises(LoadError, match=r"shadow \(0xf0000-0x100000\) lies outside"):
                boot.place(load(bios()), memory)
            assert len(memory.regions) == 1

    def test_a_read_only_first_mib_is_no_place_for_it(self) -> None:
        with GuestMemory() as memory:
            memory.add_rom(0, bytes(M))
            with pytest.raises(LoadError, match="shadow"):
                boot.place(load(bios()), memory)

    def test_memory_below_4_gib_that_is_taken(self, memory: GuestMemory) -> None:
        memory.add_ram(4 * G - 8 * K, 4 * K, name="mine")
        with pytest.raises(LoadError, match="firmware 0xffff0000-0x100000000 overlaps mine"):
            boot.place(load(bios(), name="b"), memory)
        assert memory.read(M - 4096, 4096) == bytes(4096)

    @pytest.mark.parametrize(
        ("setup", "message"),
        [
            (Setup(append="quiet"), "a command line is given, but no kernel"),
            (Setup(initrd=Source("i", b"x")), "an initrd is given, but no kernel"),
            (Setup(args=("a",)), "arguments are given"),
            (Setup(modules=(Module(Source("m", b"x")),)), "modules are given"),
        ],
    )
    def test_kernel_options_without_a_kernel_are_refused(
        self, memory: GuestMemory, setup: Setup, message: str
    ) -> None:
        with pytest.raises(LoadError, match=message):
            boot.place(load(bios()), memory, setup)
        assert len(memory.regions) == 1


def test_the_guest_is_firmware_by_itself(guests: Path) -> None:
    image = load(guests / "firmware.bin")
    assert (image.protocol, image.segments[0].size) == ("firmware", 64 * K)


# Of what reset vectors are made.
PIECES = [
    bytes.fromhex(code) for code in ("90", "fa", "0f09", "66", "89c5", "eb", "e9", "ea", "00f0")
]


@given(
    size=st.sampled_from([0, 1, 15, 16, 64 * K - 1, 64 * K, 64 * K + 1, 68 * K, 128 * K]),
    vector=st.binary(max_size=16) | st.lists(st.sampled_from(PIECES)).map(b"".join),
    insist=st.booleans(),
    uefi=st.booleans(),
)
def test_any_bytes_are_firmware_or_refused(
    size: int, vector: bytes, insist: bool, uefi: bool
) -> None:
    data, vector = bytearray(size), vector[:16]
    if uefi and size > 0x2C:
        data[0x28:0x2C] = b"_FVH"
    if size >= 16:
        data[size - 16 : size - 16 + len(vector)] = vector
    try:
        image = load(bytes(data), name="fuzz", protocol="firmware" if insist else None)
    except LoadError as error:
        assert str(error).startswith("fuzz: ")
        return
    assert size
    assert size % (4 * K if uefi or insist else 64 * K) == 0
    with GuestMemory() as memory:
        memory.add_ram(0, M)
        boot.place(image, memory)
        assert memory.read(4 * G - size, size) == data
