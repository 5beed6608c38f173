"""The setup header of a Linux kernel: what a bzImage and its loader tell each other.

Source: Linux, Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header" and "Details of Header
Fields"; the fields keep their names.
"""

from __future__ import annotations

from struct import Struct

from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple

if TYPE_CHECKING:
    from pykvm.boot.source import Source

__all__ = [
    "HEADER_OFFSET",
    "LOADED_HIGH",
    "OLDEST_VERSION",
    "XLF_KERNEL_64",
    "SetupHeader",
    "kernel_version",
    "later_fields",
    "missing_header",
    "protected_mode_code",
    "read_setup_header",
]

# The header starts here, in the file as in the zero page.
HEADER_OFFSET = 0x1F1
SECTOR = 512
PARAGRAPH = 16
DEFAULT_SETUP_SECTS = 4

BOOT_FLAG = 0xAA55
HDRS = 0x53726448
LOADED_HIGH = 1 << 0
XLF_KERNEL_64 = 1 << 0

# Before, a kernel did not say how long its command line may be.
OLDEST_VERSION = 0x206

_BOOT_FLAG_OFFSET = 0x1FE
_HDRS_OFFSET = 0x202
_OLDEST_END = 0x23C
_LONGEST_VERSION = 128
# In the zero page something else follows there.
_ZERO_PAGE_END = 0x290

_LAYOUT = Struct("<BHIHHHHHIHIHHBBHIIIIHBBIIIBBHIIQIIQQIII")


class SetupHeader(NamedTuple):
    """`struct setup_header`; a field that the kernel's version does not have is 0."""

    setup_sects: int = 0
    root_flags: int = 0
    syssize: int = 0
    ram_size: int = 0
    vid_mode: int = 0
    root_dev: int = 0
    boot_flag: int = BOOT_FLAG
    jump: int = 0
    header: int = HDRS
    version: int = OLDEST_VERSION
    realmode_swtch: int = 0
    start_sys_seg: int = 0
    kernel_version: int = 0
    type_of_loader: int = 0
    loadflags: int = LOADED_HIGH
    setup_move_size: int = 0
    code32_start: int = 0
    ramdisk_image: int = 0
    ramdisk_size: int = 0
    bootsect_kludge: int = 0
    heap_end_ptr: int = 0
    ext_loader_ver: int = 0
    ext_loader_type: int = 0
    cmd_line_ptr: int = 0
    initrd_addr_max: int = 0
    kernel_alignment: int = 0
    relocatable_kernel: int = 0
    min_alignment: int = 0
    xloadflags: int = 0
    cmdline_size: int = 0
    hardware_subarch: int = 0
    hardware_subarch_data: int = 0
    payload_offset: int = 0
    payload_length: int = 0
    setup_data: int = 0
    pref_address: int = 0
    init_size: int = 0
    handover_offset: int = 0
    kernel_info_offset: int = 0

    @property
    def setup_size(self) -> int:
        """The bytes of boot sector and 16-bit setup code; the protected-mode code follows them."""
        return ((self.setup_sects or DEFAULT_SETUP_SECTS) + 1) * SECTOR

    @property
    def version_text(self) -> str:
        """The version of the protocol as the documentation writes it: 0x20f is "2.15"."""
        return _version_text(self.version)

    def pack(self) -> bytes:
        """The header's bytes, as they stand in the file and in the zero page."""
        return _LAYOUT.pack(*self)


def _version_text(version: int) -> str:
    return f"{version >> 8}.{version & 0xFF:02}"


# In which version of the protocol a field appeared.
_SINCE = {
    "initrd_addr_max": 0x203,
    "kernel_alignment": 0x205,
    "relocatable_kernel": 0x205,
    "cmdline_size": 0x206,
    "hardware_subarch": 0x207,
    "hardware_subarch_data": 0x207,
    "payload_offset": 0x208,
    "payload_length": 0x208,
    "setup_data": 0x209,
    "pref_address": 0x20A,
    "init_size": 0x20A,
    "min_alignment": 0x20A,
    "handover_offset": 0x20B,
    "xloadflags": 0x20C,
    "kernel_info_offset": 0x20F,
}


def missing_header(source: Source) -> str | None:
    """Return what a setup header has and this file has not, None if the file has one.

    A boot sector has the boot flag too; "HdrS" after it makes it Linux's.
    """
    flag = bytes(source.part(_BOOT_FLAG_OFFSET, 2))
    if int.from_bytes(flag, "little") != BOOT_FLAG:
        return f"no boot flag {BOOT_FLAG:#x} at {_BOOT_FLAG_OFFSET:#x}"
    if bytes(source.part(_HDRS_OFFSET, 4)) != HDRS.to_bytes(4, "little"):
        return f"no 'HdrS' at {_HDRS_OFFSET:#x}"
    return None


def read_setup_header(source: Source, *, oldest: int = OLDEST_VERSION) -> SetupHeader:
    """Read the header of a file that has one, and check what does not depend on a machine.

    `oldest` is the first version of the protocol that the caller speaks.

    Raises LoadError for a version that pykvm does not boot, a zImage, and fields that contradict
    each other or the file's size.
    """
    raw = bytes(source.part(HEADER_OFFSET, _LAYOUT.size))
    header = SetupHeader(*_LAYOUT.unpack(raw.ljust(_LAYOUT.size, b"\0")))
    if header.version < oldest:
        raise source.error(
            f"speaks version {header.version_text} of the Linux boot protocol (version "
            f"{header.version:#x}); pykvm speaks {_version_text(oldest)} and later",
            hint="boot a newer kernel: Linux 2.6.22 speaks 2.06",
        )
    if len(source) < _OLDEST_END:
        raise source.error(
            f"setup header is truncated: the file has {len(source)} bytes, {_OLDEST_END} are needed"
        )
    header = header._replace(
        **{name: 0 for name, version in _SINCE.items() if header.version < version}
    )
    if not header.loadflags & LOADED_HIGH:
        raise source.error(
            f"is a zImage (loadflags {header.loadflags:#x} without LOADED_HIGH), which is loaded "
            "below 1 MiB",
            hint="build a bzImage: make bzImage",
        )
    _check_alignment(source, header)
    return header


def protected_mode_code(source: Source, header: SetupHeader) -> memoryview:
    """Return the part of a bzImage that is loaded: after the setup code, `syssize` paragraphs.

    Raises LoadError if the file ends before.
    """
    # The last paragraph need not be whole.
    code = source.part(header.setup_size, header.syssize * PARAGRAPH)
    if not header.syssize or len(code) <= (header.syssize - 1) * PARAGRAPH:
        raise source.error(
            f"has {max(len(source) - header.setup_size, 0):#x} bytes after its setup code "
            f"(setup_sects {header.setup_sects}), but the kernel has "
            f"{header.syssize * PARAGRAPH:#x} (syssize {header.syssize:#x})",
            hint="the file is truncated or damaged: copy or build it again",
        )
    return code


def kernel_version(source: Source, header: SetupHeader) -> str:
    """Return the text that `kernel_version` points to, as `file` prints it; "" if there is none."""
    start = header.kernel_version + SECTOR
    if not header.kernel_version or start >= header.setup_size:
        return ""
    text = bytes(source.part(start, min(_LONGEST_VERSION, header.setup_size - start)))
    return text.partition(b"\0")[0].decode("ascii", "replace")


def later_fields(source: Source) -> bytes:
    """Return the header's bytes after the fields that are known here: a loader copies them too.

    The short jump at its start leads past the end of the header.
    """
    start = HEADER_OFFSET + _LAYOUT.size
    end = min(_HDRS_OFFSET + source.part(_HDRS_OFFSET - 1, 1)[0], _ZERO_PAGE_END)
    return bytes(source.part(start, max(end - start, 0)))


def _check_alignment(source: Source, header: SetupHeader) -> None:
    alignment = header.kernel_alignment
    if header.relocatable_kernel and (not alignment or alignment & (alignment - 1)):
        raise source.error(
            f"is relocatable, with an alignment (kernel_alignment) of {alignment:#x}: "
            "not a power of two"
        )
