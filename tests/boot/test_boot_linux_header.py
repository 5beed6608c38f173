"""The setup header: what is read of it, and what is refused, field by field."""

from __future__ import annotations

import pytest
from boot.elfs import HLT, Part, elf
from boot.kernels import CODE, M, bzimage, field, packed, versioned, vmlinux

from pykvm.boot.linux_header import later_fields, protected_mode_code, read_setup_header
from pykvm.boot.linux_image import version_of
from pykvm.boot.source import Source
from pykvm.errors import LoadError
from pykvm.x86.state import Mode
from support.boot import load


def source(data: bytes) -> Source:
    return Source("k", data)


def refusal(data: bytes, protocol: str = "linux64") -> str:
    with pytest.raises(LoadError) as caught:
        load(data, name="k", protocol=protocol)
    return str(caught.value)


def test_every_field_is_where_it_is() -> None:
    data = bzimage(
        **{
            name: number
            for number, name in enumerate(
                ("vid_mode", "ramdisk_image", "ramdisk_size", "cmd_line_ptr", "cmdline_size",
                 "hardware_subarch", "payload_offset", "payload_length", "setup_data", "init_size",
                 "kernel_info_offset"),
                0x10,
            )
        }
    )  # fmt: skip
    header = read_setup_header(source(data))
    for name in header._fields:
        if name in ("vid_mode", "init_size", "kernel_info_offset", "version", "xloadflags"):
            assert getattr(header, name) == field(data, name)
    assert header.pack() == data[0x1F1 : 0x1F1 + len(header.pack())]
    assert len(header.pack()) == 0x26C - 0x1F1


def test_recognised_by_its_magic_and_not_by_a_boot_sectors() -> None:
    assert load(bzimage(), name="k").kind == "linux"
    with pytest.raises(LoadError, match=r"no linux image: no 'HdrS' at 0x202, and no ELF file"):
        load(bzimage(header=0), name="k", protocol="linux")
    assert load(bzimage(header=0), name="k").kind == "bootsector"
    with pytest.raises(LoadError, match=r"no linux image: no boot flag 0xaa55 at 0x1fe, and no"):
        load(bzimage(boot_flag=0), name="k")
    assert load(bzimage(header=0), name="k", mode=Mode.REAL).kind == "flat"


@pytest.mark.parametrize(("version", "text"), [(0x205, "2.05"), (0x200, "2.00"), (0, "0.00")])
def test_versions_before_2_06_are_refused(version: int, text: str) -> None:
    assert refusal(bzimage(version=version)).startswith(
        f"k: speaks version {text} of the Linux boot protocol (version {version:#x}); "
        "pykvm speaks 2.06 and later"
    )
    load(bzimage(version=0x206), protocol="linux32")


def test_a_field_that_the_version_does_not_have_is_not_read() -> None:
    old = read_setup_header(source(bzimage(version=0x206, init_size=5 * M, payload_length=4)))
    assert (old.init_size, old.payload_length, old.xloadflags, old.pref_address) == (0, 0, 0, 0)
    assert old.cmdline_size == 2047
    assert read_setup_header(source(bzimage(version=0x20A))).init_size == 64 << 10
    assert read_setup_header(source(bzimage(version=0x20B))).xloadflags == 0
    assert read_setup_header(source(bzimage(version=0x20C))).xloadflags == 1


def test_no_setup_sectors_means_four() -> None:
    data = bzimage(setup_sects=0)
    header = read_setup_header(source(data))
    assert header.setup_size == 5 * 512
    assert protected_mode_code(source(data), header) == CODE


def test_a_zimage_is_refused() -> None:
    assert "is a zImage (loadflags 0x80 without LOADED_HIGH)" in refusal(bzimage(loadflags=0x80))


def test_the_file_ends_before_the_kernel() -> None:
    size = len(bzimage())
    assert refusal(bzimage()[: size - 16]) == (
        "k: has 0xff0 bytes after its setup code (setup_sects 1), but the kernel has 0x1000 "
        "(syssize 0x100)\nthe file is truncated or damaged: copy or build it again"
    )
    assert "has 0x0 bytes after" in refusal(bzimage()[:0x300])
    assert "syssize 0x0" in refusal(bzimage(syssize=0))
    # The last paragraph of old kernels is not filled up.
    load(bzimage()[: size - 15], protocol="linux64")


def test_what_follows_the_kernel_is_no_part_of_it() -> None:
    image = load(bzimage() + b"signature", protocol="linux64")
    assert [len(segment.data) for segment in image.segments] == [len(CODE)]


def test_a_truncated_header() -> None:
    assert refusal(bzimage()[:0x20A]) == (
        "k: setup header is truncated: the file has 522 bytes, 572 are needed"
    )


@pytest.mark.parametrize("alignment", [0, 3, 0x1800])
def test_an_alignment_is_a_power_of_two(alignment: int) -> None:
    data = bzimage(relocatable_kernel=1, kernel_alignment=alignment)
    assert f"an alignment (kernel_alignment) of {alignment:#x}" in refusal(data)
    load(bzimage(kernel_alignment=alignment), protocol="linux64")


def test_later_fields_are_kept() -> None:
    data = bytearray(bzimage(jump=0x6EEB))
    data[0x26C:0x272] = b"later!"
    assert later_fields(source(bytes(data))) == b"late"
    data[0x201] = 0xFF
    assert len(later_fields(source(bytes(data)))) == 0x290 - 0x26C
    data[0x201] = 0
    assert later_fields(source(bytes(data))) == b""


@pytest.mark.parametrize(
    ("version", "kind"),
    [
        (b"6.1.0-37-amd64 (debian-kernel@lists.debian.org) #1 SMP Debian 6.1.140-1", "linux"),
        (b"5.10.0-rc1 (@) #7", "linux"),
        (b"2.6.22 (me@here) #1", "linux"),
        (b"Memtest86+ v6.10", "bzimage"),
        (b"1.0.0+git-20190125.36a4c85-5.1", "bzimage"),
        (b"", "bzimage"),
    ],
)
@pytest.mark.parametrize("protocol", ["linux", "linux64", "linux32"])
def test_linux_is_known_by_how_it_writes_its_version(
    version: bytes, kind: str, protocol: str
) -> None:
    image = load(versioned(bzimage(), version), protocol=protocol)
    assert (image.kind, image.protocol) == (kind, protocol)
    assert load(bzimage(kernel_version=0), protocol=protocol).kind == "bzimage"


def test_a_kernel_without_a_version_is_linux_if_what_is_packed_in_it_is() -> None:
    assert load(packed(vmlinux(), kernel_version=0)).kind == "linux"
    other = elf(Part(HLT * 64, 16 * M))
    assert load(versioned(packed(other), b"mine")).kind == "elf64"
    assert load(packed(other)).kind == "linux"


@pytest.mark.parametrize(
    ("pointer", "text"),
    [(0x100, "6.1.0 (me@here)"), (0, ""), (0x200, ""), (0xFFFF, "")],
)
def test_the_kernels_version(pointer: int, text: str) -> None:
    data = bytearray(bzimage(kernel_version=pointer))
    data[0x300:0x310] = b"6.1.0 (me@here)\0"
    assert version_of(load(bytes(data), protocol="linux64")) == text
