"""The guest of a machine: its files, read, and what it expects around it."""

from __future__ import annotations

from pykvm.boot import Module, Request, Setup, load, place, protocol_of, source_of
from pykvm.errors import ConfigError
from pykvm.layout import HOLE_END, HOLE_START
from pykvm.memory import GuestMemory
from pykvm.typed import TYPE_CHECKING
from pykvm.values.frozen import NamedTuple
from pykvm.values.spelling import option
from pykvm.x86.state import Mode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pykvm.boot import Entry, Image
    from pykvm.boot.real_start import RealAddress
    from pykvm.boot.symbols import Symbols
    from pykvm.bus import Placement
    from pykvm.devices.fw_cfg import Contents
    from pykvm.machine.board import Board
    from pykvm.machine.config import MachineConfig

__all__ = ["Guest", "may_meet_quirks", "memory_of", "read_guest"]

# LIDT begins so (SDM 2A, LGDT/LIDT), followed by a ModRM byte with 3 in its middle.
_LIDT = b"\x0f\x01"
_LIDT_EXTENSION = 3
# The number of the MSR IA32_LSTAR, as a constant in code.
_LSTAR = (0xC0000082).to_bytes(4, "little")


class Guest(NamedTuple):
    """What is to run: a guest file, if there is one, what it is to find, and remarks on that."""

    config: MachineConfig
    image: Image | None
    setup: Setup
    remarks: tuple[str, ...] = ()
    #: Those of a file beside it.
    symbols: Symbols | None = None
    #: What its fw_cfg holds, if it comes from a saved snapshot.
    contents: Contents | None = None

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

    @property
    def irqchip(self) -> str:
        """Where its interrupts come from: by default, for Linux, where they cost least.

        Time that is to be skipped is time in software.
        """
        config = self.config
        by_default = "kernel" if self.is_linux and config.clock != "warp" else "user"
        return config.irqchip or by_default

    @property
    def open_bus(self) -> bool:
        """Whether unclaimed accesses find an open bus: the default for what probes for devices."""
        unclaimed = self.config.unclaimed
        return self.is_pc if unclaimed is None else unclaimed == "open-bus"

    @property
    def wants_workarounds(self) -> bool:
        """Whether quirks of this host's KVM are worked around: by default if it may meet them."""
        wanted = self.config.quirks
        return wanted == "on" or (wanted == "auto" and may_meet_quirks(self.image))

    def devices(self) -> Iterable[Placement]:
        """The devices it gets."""
        if self.config.devices is not None:
            return self.config.devices
        if self.image is not None and self.image.protocol == "firmware":
            from pykvm.devices.pc import firmware_devices

            return firmware_devices()
        from pykvm.devices import standard_devices

        if not self.is_pc:
            return standard_devices()
        from pykvm.devices.pc import pc_devices

        return [*standard_devices(), *pc_devices()]

    def place_on(self, board: Board) -> Entry | None:
        """Put the guest, and the tables that describe the board, into its memory.

        Returns how the guest starts, None if there is no image.
        """
        setup, entry = self.setup, None
        if self.is_pc or "fw-cfg" in board.devices:
            setup = setup._replace(hardware=board.hardware())
        if self.image is not None:
            entry = place(self.image, board.memory, setup)
            if self.symbols is not None:
                entry = entry._replace(symbols=self.symbols)
            board.vcpus[0].put(entry.state)
        if self.follows_firmware:
            board.set_memory_types()
        board.populate_fw_cfg(setup, self.config.fw_cfg or {})
        return entry

    def stand_on(self, board: Board, entry: Entry | None) -> Entry | None:
        """As `place_on`, on a board whose memory holds the guest already."""
        if self.contents is not None:
            contents = self.contents
            for device in board.devices.values():
                if hasattr(device, "contents"):
                    device.contents = lambda: contents
            return entry
        hardware = board.hardware() if self.is_pc or "fw-cfg" in board.devices else None
        board.populate_fw_cfg(self.setup._replace(hardware=hardware), self.config.fw_cfg or {})
        return entry


def read_guest(config: MachineConfig) -> Guest:
    """Read the guest's files.

    Raises LoadError for a file that is no guest, ConfigError for options that it does not take.
    """
    if config.image is None:
        return Guest(config, None, Setup())
    image = load(
        config.image,
        Request(
            mode=None if config.mode is None else Mode(config.mode),
            address=config.load_address,
            protocol=config.boot,
            room=config.ram,
            entry=_real_address(config.entry),
            stack=_real_address(config.stack),
        ),
    )
    if config.kernel is not None and image.protocol != "firmware":
        raise ConfigError(
            f"{option('kernel')} is for firmware to boot, and the guest file is none",
            hint="a kernel without firmware is the guest file itself",
        )
    append, remark = config.append, ""
    if image.kind == "linux" and not config.append_only:
        from pykvm.quirks.kernel_options import add_workarounds

        append, remark = add_workarounds(append, config.vcpus)
    setup = Setup(
        append=append,
        args=tuple(config.args),
        initrd=None if config.initrd is None else source_of(config.initrd, nameless="initrd"),
        modules=tuple(
            Module(source_of(file, nameless=f"module {number}"), line)
            for number, (file, line) in enumerate(config.modules)
        ),
        kernel=None if config.kernel is None else source_of(config.kernel, nameless="kernel"),
    )
    symbols = None
    if config.symbols is not None:
        from pykvm.boot.symbol_files import symbols_of

        symbols = symbols_of(config.symbols, offset=config.symbols_offset)
    return Guest(config, image, setup, (remark,) if remark else (), symbols)


def _real_address(text: str | None) -> RealAddress | None:
    if text is None:
        return None
    from pykvm.boot.real_start import RealAddress

    return RealAddress.parse(text)


def memory_of(config: MachineConfig) -> GuestMemory:
    """Its memory, or RAM of that size, in two pieces around a PC's hole below 4 GiB.

    Raises HostError if there is too little here.
    """
    if isinstance(config.memory, GuestMemory):
        return config.memory
    amount = config.ram
    ram = GuestMemory()
    try:
        ram.add_ram(0, min(amount, HOLE_START))
        if amount > HOLE_START:
            ram.add_ram(HOLE_END, amount - HOLE_START, name="ram above 4G")
    except BaseException:
        ram.close()
        raise
    return ram


def may_meet_quirks(image: Image | None) -> bool:
    """Whether a guest may come to have a ring 3: a kernel, or code that loads an IDT or LSTAR."""
    if image is None:
        return False
    if protocol_of(image).PC:
        return True
    for segment in image.segments:
        if not segment.executable:
            continue
        code = bytes(segment.data)
        if _LSTAR in code:
            return True
        at = code.find(_LIDT)
        while at >= 0:
            modrm = code[at + 2] if at + 2 < len(code) else 0
            if modrm >> 3 & 7 == _LIDT_EXTENSION and modrm >> 6 != 3:
                return True
            at = code.find(_LIDT, at + 1)
    return False
