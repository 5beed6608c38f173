"""What a machine is to be and to run: its options, checked, and the guest's files, read."""

from __future__ import annotations

from pykvm.boot import Module, RealAddress, Setup, load, protocol_of, source_of
from pykvm.clock import POLICIES
from pykvm.errors import ConfigError
from pykvm.irqchip import IRQCHIPS, check_irqchip
from pykvm.layout import HOLE_END, HOLE_START
from pykvm.memory import GuestMemory
from pykvm.memory.backing import PAGE_SIZE
from pykvm.memory.regions import ADDRESS_LIMIT
from pykvm.typed import TYPE_CHECKING
from pykvm.values import checks
from pykvm.values.frozen import NamedTuple
from pykvm.values.sizes import parse_size
from pykvm.x86.state import Mode

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from typing import Any

    from pykvm.boot import Image
    from pykvm.bus import Placement

    #: A file by its path, or its bytes.
    File = str | os.PathLike[str] | bytes

__all__ = ["Guest", "check_options", "memory_of", "read_guest"]

GIB = 1 << 30

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


def check_options(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of a `Machine`, numbers as int, if each is of a kind that it takes.

    What depends on others, on the guest or on the host is for those who use it.  Raises
    ConfigError.
    """
    checked = {name: _CHECKS[name](name, value) for name, value in options.items()}
    check_irqchip(options["irqchip"] or "user", options["clock"])
    return {**options, **{name: checked[name] for name in _NUMBERS}}


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
        from pykvm.quirks.kernel_options import add_workarounds

        append, remark = add_workarounds(append, vcpus)
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


def _mode(mode: Mode | str | None) -> Mode | None:
    return None if mode is None else Mode(mode)


def _check_mode(name: str, value: Any) -> None:
    if not isinstance(value, Mode):
        checks.one_of(name, value, [mode.value for mode in Mode])


def _check_file(name: str, value: Any) -> None:
    if not isinstance(value, (str, bytes, bytearray, memoryview)) and not hasattr(
        value, "__fspath__"
    ):
        raise checks.wrong(name, "a path or the bytes of a file", value)


def _check_memory(name: str, value: Any) -> None:
    if isinstance(value, GuestMemory):
        return
    size = parse_size(value) if isinstance(value, str) else checks.integer(name, value, hint=_UNITS)
    if not PAGE_SIZE <= size < ADDRESS_LIMIT or size % PAGE_SIZE:
        raise checks.wrong(
            name, f"{PAGE_SIZE} bytes at least, and a multiple of that", value, hint=_UNITS
        )


def _check_modules(name: str, value: Any) -> None:
    def check(each: str, module: Any) -> None:
        pair = module if isinstance(module, (tuple, list)) else ()
        if len(pair) != 2:
            raise checks.wrong(each, "a file and its command line", module)
        file, line = pair
        _check_file(f"{each}, the file,", file)
        checks.text(f"{each}, the command line,", line)

    if isinstance(value, (str, bytes)):
        raise checks.wrong(name, "a list of (file, command line)", value)
    checks.each(name, value, "a list of (file, command line)", check)


def _check_files(name: str, value: Any) -> None:
    try:
        files = dict(value)
    except (TypeError, ValueError):
        raise checks.wrong(name, "a dict of bytes by file name", value) from None
    for file, data in files.items():
        checks.text(f"a name in {name}", file)
        checks.buffer(f"{name}[{file!r}]", data)


_NUMBERS = ("vcpus", "load_address", "tsc_khz")

_UNITS = "write it with a unit: memory='64M'"

# How each option of `Machine` is looked at, whatever the others are.
_CHECKS: Mapping[str, checks.Check] = {
    "image": checks.optional(_check_file),
    "memory": _check_memory,
    "vcpus": checks.integer,
    "boot": checks.optional(checks.text),
    "mode": checks.optional(_check_mode),
    "load_address": checks.optional(lambda name, value: checks.unsigned(name, value, 64)),
    "entry": checks.optional(checks.text),
    "stack": checks.optional(checks.text),
    "append": checks.text,
    "append_only": checks.flag,
    "args": checks.words,
    "initrd": checks.optional(_check_file),
    "modules": _check_modules,
    "kernel": checks.optional(_check_file),
    "fw_cfg": checks.optional(_check_files),
    "devices": checks.optional(checks.iterable),
    "cpu": checks.text,
    "unclaimed": checks.choice(None, *UNCLAIMED),
    "irqchip": checks.choice(None, *IRQCHIPS),
    "clock": checks.choice(*POLICIES),
    "tsc_khz": checks.optional(lambda name, value: checks.integer(name, value, 1, 0xFFFF_FFFF)),
    "quirks": checks.choice(*QUIRKS),
    "emulate": checks.choice(*EMULATE),
}


def _real_address(text: str | None) -> RealAddress | None:
    return None if text is None else RealAddress.parse(text)
