"""What a machine is to be and to run: its options, checked, and the guest's files, read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm.boot import Module, RealAddress, Setup, load, protocol_of, source_of
from pykvm.chipset import check_chipset
from pykvm.errors import ConfigError
from pykvm.frozen import NamedTuple
from pykvm.memory import GuestMemory
from pykvm.sizes import parse_size
from pykvm.x86.state import Mode

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from pykvm.boot import Image
    from pykvm.bus import Placement

    #: A file by its path, or its bytes.
    File = str | os.PathLike[str] | bytes

__all__ = ["Guest", "check_choices", "memory_of", "read_guest"]

GIB = 1 << 30
# Where a PC keeps its devices: RAM beyond the first 3 GiB goes on above 4 GiB.
HOLE_START = 3 * GIB
HOLE_END = 4 * GIB

UNCLAIMED = ("stop", "float")
QUIRKS = ("auto", "on", "off")
EMULATE = ("auto", "off")


class Guest(NamedTuple):
    """What is to run: a guest file, if there is one, what it is to find, and remarks on that."""

    image: Image | None
    setup: Setup
    remarks: tuple[str, ...] = ()

    @property
    def is_pc(self) -> bool:
        """Whether it expects a PC around it."""
        return self.image is not None and protocol_of(self.image).PC

    @property
    def follows_firmware(self) -> bool:
        """Whether it expects a PC that firmware has set up."""
        return self.image is not None and self.is_pc and self.image.protocol != "firmware"

    @property
    def is_linux(self) -> bool:
        """Whether it is a Linux kernel."""
        return self.image is not None and self.image.kind == "linux"

    def irqchip(self, clock: str) -> str:
        """Where it has its interrupts if nobody says: for Linux, where they cost least.

        Time that is to be skipped is time in software.
        """
        return "kernel" if self.is_linux and clock != "warp" else "user"

    def devices(self) -> list[Placement]:
        """The devices it gets if nobody says."""
        if self.image is not None and self.image.protocol == "firmware":
            from pykvm.devices.pc import firmware_devices

            return firmware_devices()
        from pykvm.devices import standard_devices

        if not self.is_pc:
            return standard_devices()
        from pykvm.devices.pc import pc_devices

        return [*standard_devices(), *pc_devices()]


def check_choices(
    *, irqchip: str | None, clock: str, unclaimed: str | None, quirks: str, emulate: str
) -> None:
    """Raise ConfigError unless each of these words is one that there is."""
    check_chipset(irqchip or "user", clock)
    _one_of("unclaimed", unclaimed, (None, *UNCLAIMED))
    _one_of("quirks", quirks, QUIRKS)
    _one_of("emulate", emulate, EMULATE)


def read_guest(
    image: File | None,
    *,
    memory: int | str | GuestMemory,
    vcpus: int,
    boot: str | None,
    mode: Mode | str | None,
    load_address: int | None,
    entry: str | None,
    stack: str | None,
    append: str,
    append_only: bool,
    args: Sequence[str],
    initrd: File | None,
    modules: Sequence[tuple[File, str]],
    kernel: File | None,
) -> Guest:
    """Read the guest's files; the options are as `Machine` has them.

    Raises LoadError for a file that is no guest, ConfigError for options that make no sense or do
    not go together.
    """
    for_images = (boot, mode, load_address is not None, entry, stack)
    if image is None and any((*for_images, append, args, initrd, modules, kernel)):
        raise ConfigError(
            "boot, mode, load_address, entry, stack, append, args, initrd, modules and kernel "
            "go with an image"
        )
    if image is None:
        return Guest(None, Setup())
    loaded = load(
        image,
        mode=_mode(mode),
        address=load_address,
        protocol=boot,
        room=_size(memory),
        entry=_real_address(entry),
        stack=_real_address(stack),
    )
    if kernel is not None and loaded.protocol != "firmware":
        raise ConfigError(
            "kernel= is for firmware to boot, and the image is none",
            hint="a kernel without firmware is the image itself",
        )
    remark = ""
    if loaded.kind == "linux" and not append_only:
        from pykvm.quirks.kernel_options import spare

        append, remark = spare(append, vcpus)
    setup = Setup(
        append=append,
        args=tuple(args),
        initrd=None if initrd is None else source_of(initrd, nameless="initrd"),
        modules=tuple(
            Module(source_of(file, nameless=f"module {number}"), line)
            for number, (file, line) in enumerate(modules)
        ),
        kernel=None if kernel is None else source_of(kernel, nameless="kernel"),
    )
    return Guest(loaded, setup, (remark,) if remark else ())


def memory_of(memory: int | str | GuestMemory) -> GuestMemory:
    """The memory itself, or RAM of that size, in two pieces around a PC's hole below 4 GiB.

    Raises ConfigError for a size that is none, HostError if there is too little here.
    """
    if isinstance(memory, GuestMemory):
        return memory
    amount = _size(memory)
    ram = GuestMemory()
    try:
        ram.add_ram(0, min(amount, HOLE_START))
        if amount > HOLE_START:
            ram.add_ram(HOLE_END, amount - HOLE_START, name="ram above 4G")
    except BaseException:
        ram.close()
        raise
    return ram


def _size(memory: int | str | GuestMemory) -> int:
    if isinstance(memory, GuestMemory):
        return sum(region.end - region.start for region in memory.regions)
    return parse_size(memory) if isinstance(memory, str) else memory


def _one_of(name: str, value: object, choice: Sequence[object]) -> None:
    if value not in choice:
        words = ", ".join(str(word) for word in choice if word is not None)
        raise ConfigError(f"{name} is one of {words}, not {value!r}")


def _mode(mode: Mode | str | None) -> Mode | None:
    if mode is None or isinstance(mode, Mode):
        return mode
    try:
        return Mode(mode)
    except ValueError:
        names = ", ".join(known.value for known in Mode)
        raise ConfigError(f"mode is one of {names}, not {mode!r}") from None


def _real_address(text: str | None) -> RealAddress | None:
    return None if text is None else RealAddress.parse(text)
