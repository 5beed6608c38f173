"""fw_cfg, by which QEMU describes the machine to firmware and test kernels: numbered items, files.

Source: QEMU, docs/specs/fw_cfg.rst; keys and structures in <linux/qemu_fw_cfg.h>.

A guest selects an item by its key and reads its bytes one after the other; past the end, and of an
item that is not there, it reads zeros.  Files are items that the directory gives a name.  DMA
copies an item into guest memory: a short one at once, a long one by and by, while the guest waits
for the end of it, as the specification says.
"""

from __future__ import annotations

import struct
from _thread import RLock
from contextlib import suppress

from pykvm.bus.device import NamedDevice
from pykvm.errors import ConfigError, MemoryRangeError
from pykvm.typed import TYPE_CHECKING, Protocol
from pykvm.values.checks import integer
from pykvm.values.frozen import NamedTuple
from pykvm.values.state import State, expect

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from typing_extensions import Buffer

    from pykvm.clock import Timer, TimerState, TimeSource
    from pykvm.devices.line import Lines
    from pykvm.memory import GuestMemory
    from pykvm.values.state import U16, U32, U64

    Bytes = bytes | bytearray | memoryview

__all__ = [
    "Contents",
    "DmaControl",
    "DmaMemory",
    "FwCfg",
    "FwCfgState",
    "Key",
    "TransferState",
    "check_files",
]

# Offsets from port 0x510: two ports, two without a device, eight.
SELECTOR = 0
DATA = 1
DMA_ADDRESS = 4

# So much of a transfer is done at a time; what is longer gives way to whatever else is due, the end
# of the run among it.
PIECE = 128 << 10
# Without a clock there is nothing to give way to: so many zeros may follow the end of an item.
ZEROS_AT_ONCE = 1 << 20

WRITE_CHANNEL = 0x4000
FILE_FIRST = 0x20
# Of the user's; with ours beside them, all have keys below WRITE_CHANNEL.
FILES = 0x3000
LARGEST_FILE = (1 << 32) - 1
NAME_SIZE = 56

VERSION = 1
VERSION_DMA = 2

_DMA_SIGNATURE = b"QEMU CFG"
_DMA_ACCESS = struct.Struct(">IIQ")  # struct fw_cfg_dma_access
_DMA_CONTROL = struct.Struct(">I")
_DIRECTORY_HEAD = struct.Struct(">I")
_DIRECTORY_ENTRY = struct.Struct(f">IHH{NAME_SIZE}s")  # struct fw_cfg_file


class Key:
    """The items that every fw_cfg numbers alike (FW_CFG_...)."""

    SIGNATURE = 0x00
    ID = 0x01
    UUID = 0x02
    RAM_SIZE = 0x03
    NOGRAPHIC = 0x04
    NB_CPUS = 0x05
    KERNEL_ADDR = 0x07
    KERNEL_SIZE = 0x08
    INITRD_ADDR = 0x0A
    INITRD_SIZE = 0x0B
    BOOT_MENU = 0x0E
    MAX_CPUS = 0x0F
    KERNEL_ENTRY = 0x10
    KERNEL_DATA = 0x11
    INITRD_DATA = 0x12
    CMDLINE_ADDR = 0x13
    CMDLINE_SIZE = 0x14
    CMDLINE_DATA = 0x15
    SETUP_ADDR = 0x16
    SETUP_SIZE = 0x17
    SETUP_DATA = 0x18
    FILE_DIR = 0x19
    IRQ0_OVERRIDE = 0x8002


class DmaControl:
    """The control word of a DMA access (FW_CFG_DMA_CTL_...); the upper 16 bits are a key."""

    DONE = 0
    ERROR = 1
    READ = 2
    SKIP = 4
    SELECT = 8
    WRITE = 16


class Contents(NamedTuple):
    """What a guest can read: `items` by key, `files` by name."""

    items: Mapping[int, Bytes]
    files: Mapping[str, Bytes]


class DmaMemory(Protocol):
    """Guest memory, as far as DMA needs it."""

    def read(self, address: int, length: int) -> bytes:
        """A copy.  Raises MemoryRangeError."""

    def write(self, address: int, data: Buffer) -> None:
        """Raises MemoryRangeError, or ConfigError where it is read-only; then nothing changed."""

    def fill(self, address: int, length: int) -> None:
        """Zeros.  Raises as `write` does."""

    def is_ram(self, address: int, length: int) -> bool:
        """Whether it can be written as a whole."""


def check_files(files: Mapping[str, bytes]) -> None:
    """Raise ConfigError unless these can be files.

    A name is 1 to 55 printable characters of ASCII; the size, and how many there are, have limits.
    """
    if len(files) > FILES:
        raise ConfigError(f"fw_cfg: {len(files)} files, and a guest can select {FILES} at most")
    for name, data in files.items():
        if not (name.isascii() and name.isprintable() and 0 < len(name) < NAME_SIZE):
            raise ConfigError(
                f"fw_cfg: {name!r} cannot name a file: 1 to {NAME_SIZE - 1} characters of ASCII",
                hint="names for your own use begin with opt/ and a domain: opt/org.example/name",
            )
        if not isinstance(data, bytes):
            raise ConfigError(f"fw_cfg: {name} is to be bytes, not {type(data).__name__}")
        if len(data) > LARGEST_FILE:
            raise ConfigError(f"fw_cfg: {name} has {len(data)} bytes, more than 4 GiB")


class TransferState(State):
    """A transfer under way: `length` bytes of item `key` from its byte `start` on, to `target`.

    `address` is that of the structure that asked for it; `done` bytes are copied.
    """

    address: U64
    key: U16
    start: U64
    target: U64
    length: U32
    done: U32 = 0


class FwCfgState(State):
    """What is selected, half of an address, and a transfer.  The items are the machine's."""

    key: U16
    offset: U64
    dma_high: U32
    transfer: TransferState | None
    timer: TimerState | None


class Transfer:
    """A copy of `data`, and zeros after it, to where `state` says."""

    def __init__(self, memory: DmaMemory, data: memoryview, state: TransferState) -> None:
        self._memory = memory
        self._data = data
        #: How far it is.
        self.state = state

    @property
    def zeros(self) -> int:
        """How many zeros follow the data."""
        return self.state.length - len(self._data)

    def step(self) -> bool:
        """Do some of it; whether that was the end.  Raises as `DmaMemory` does."""
        state = self.state
        done, target = state.done, state.target
        end = min(done + PIECE, state.length)
        piece = self._data[done:end]
        self._memory.write(target + done, piece)
        zeros = done + len(piece)
        self._memory.fill(target + zeros, end - zeros)
        self.state = TransferState(state.address, state.key, state.start, target, state.length, end)
        return end == state.length


class FwCfg(NamedDevice):
    r"""The device: selector at offset 0 (port 0x510), data at 1, the address for DMA at 4.

    `contents` is asked for when the guest first selects an item.  Without `memory`, which `attach`
    gives, too, there is no DMA, and FW_CFG_ID says so.  A long transfer goes on by timers; while
    one is under way, another one fails.

    >>> device = FwCfg(lambda: Contents({Key.NB_CPUS: b"\x02\x00"}, {"opt/org.x/a": b"hello"}))
    >>> device.write(SELECTOR, 2, Key.NB_CPUS)
    >>> device.read(DATA, 1), device.read(DATA, 1), device.read(DATA, 1)
    (2, 0, 0)
    >>> device.write(SELECTOR, 2, FILE_FIRST)
    >>> device.read_string(DATA, 1, 8)
    b'hello\x00\x00\x00'
    """

    def __init__(
        self,
        contents: Callable[[], Contents] | None = None,
        memory: DmaMemory | None = None,
        name: str = "fw-cfg",
    ) -> None:
        self.name = name
        self.contents = contents
        self.memory = memory
        self._clock: TimeSource | None = None
        self._timer: Timer | None = None
        # Transfers go on in one vCPU's thread, while another may be at the ports.
        self._lock = RLock()
        self._items: dict[int, memoryview] | None = None
        self.reset()

    def attach(self, lines: Lines, memory: GuestMemory, clock: TimeSource | None) -> None:
        """See `Attaching`."""
        if self.memory is None:
            self.memory = memory
        self._clock, self._timer = clock, None

    def state(self) -> FwCfgState:
        """See `pykvm.values.state.Stateful`."""
        with self._lock:
            transfer = None if self._transfer is None else self._transfer.state
            timer = None if self._timer is None else self._timer.state()
            return FwCfgState(self._key, self._offset, self._dma_high, transfer, timer)

    def restore(self, state: FwCfgState) -> None:
        """See `pykvm.values.state.Stateful`: the item of a transfer is read anew."""
        expect(state, FwCfgState)
        with self._lock:
            self._transfer = None if state.transfer is None else self._resumed(state.transfer)
            self._key, self._offset, self._dma_high = state.key, state.offset, state.dma_high
            if state.timer is not None and self._timer is None and self._clock is not None:
                self._timer = self._clock.timer(self._due)
            if self._timer is not None:
                self._timer.restore(state.timer)

    def _resumed(self, state: TransferState) -> Transfer:
        if self.memory is None or self._clock is None:
            raise ConfigError(f"{self.name}: a transfer needs memory, and a clock to go on by")
        integer(f"{self.name}: bytes copied", state.done, 0, state.length)
        integer(f"{self.name}: the end of a transfer", state.target + state.length, 0, 1 << 64)
        item = self._item(state.key)[state.start : state.start + state.length]
        return Transfer(self.memory, item, state)

    def reset(self) -> None:
        """RESET: the first item is selected."""
        self._key = Key.SIGNATURE
        self._offset = 0
        self._dma_high = 0
        self._transfer = None

    def read(self, offset: int, size: int) -> int:
        """The next `size` bytes of the item, or of the signature that says that there is DMA."""
        if offset < DMA_ADDRESS:
            return int.from_bytes(self._next(size), "little")
        if self.memory is None:
            return (1 << 8 * size) - 1
        at = offset - DMA_ADDRESS
        return int.from_bytes(_DMA_SIGNATURE[at : at + size], "little")

    def read_string(self, offset: int, size: int, count: int) -> bytes:
        """`count` reads of `size` bytes at `offset`, as ``rep ins`` does."""
        if offset < DMA_ADDRESS:
            return self._next(size * count)
        return self.read(offset, size).to_bytes(size, "little") * count

    def write(self, offset: int, size: int, value: int) -> None:
        """Select an item, or start a DMA access.  Data cannot be written."""
        if (offset, size) == (SELECTOR, 2):
            self._select(value)
        elif size == 4 and self.memory is not None:
            value = int.from_bytes(value.to_bytes(4, "little"), "big")
            if offset == DMA_ADDRESS:
                self._dma_high = value
            elif offset == DMA_ADDRESS + 4:
                address, self._dma_high = self._dma_high << 32 | value, 0
                self._begin(self.memory, address)

    def _select(self, key: int) -> None:
        self._key = key & ~WRITE_CHANNEL
        self._offset = 0

    def _item(self, key: int) -> memoryview:
        if self._items is None:
            contents = self.contents() if self.contents is not None else Contents({}, {})
            self._items = _numbered(contents, dma=self.memory is not None)
        return self._items.get(key, _NOTHING)

    def _rest(self) -> memoryview:
        """What is left of the selected item."""
        return self._item(self._key)[self._offset :]

    def _next(self, length: int) -> bytes:
        """The next `length` bytes, zeros from the item's end on."""
        piece = bytes(self._rest()[:length])
        self._offset += len(piece)
        return piece.ljust(length, b"\0")

    def _begin(self, memory: DmaMemory, address: int) -> None:
        """Carry out the access that the structure at `address` describes, and note the result.

        A structure that is not in memory, or in memory that cannot be written, gets no answer.
        """
        try:
            access = _DMA_ACCESS.unpack(memory.read(address, _DMA_ACCESS.size))
        except MemoryRangeError:
            return
        with self._lock:
            transfer = self._access(memory, address, *access)
            if isinstance(transfer, int):
                _answer(memory, address, transfer)
            else:
                self._transfer = transfer
                self._go_on(memory)

    def _access(
        self, memory: DmaMemory, address: int, control: int, length: int, target: int
    ) -> int | Transfer:
        """What remains to be done of an access, or its result.

        It fails where the target is not RAM as a whole, and while another is under way.
        """
        if self._transfer is not None:
            return DmaControl.ERROR
        if control & DmaControl.SELECT:
            self._select(control >> 16)
        if control & DmaControl.READ:
            piece = self._rest()[:length]
            if not memory.is_ram(target, length):
                return DmaControl.ERROR
            transfer = TransferState(address, self._key, self._offset, target, length)
            self._offset += len(piece)
            return Transfer(memory, piece, transfer)
        if control & DmaControl.WRITE:
            return DmaControl.ERROR
        if control & DmaControl.SKIP:
            self._offset += len(self._rest()[:length])
        return DmaControl.DONE

    def _due(self, when: int) -> None:
        if self.memory is not None:
            self._go_on(self.memory)

    def _go_on(self, memory: DmaMemory) -> None:
        """Do the next piece of the transfer."""
        with self._lock:
            transfer = self._transfer
            if transfer is None:
                return
            try:
                done = transfer.step()
            except (MemoryRangeError, ConfigError):
                # Taken away by the host meanwhile.
                self._end(memory, transfer, DmaControl.ERROR)
                return
            if done:
                self._end(memory, transfer, DmaControl.DONE)
                return
            clock = self._clock
            if clock is None:
                self._finish(memory, transfer)
                return
            if self._timer is None:
                self._timer = clock.timer(self._due)
            self._timer.arm(clock.now() + 1)

    def _finish(self, memory: DmaMemory, transfer: Transfer) -> None:
        """Do all the rest, which is refused where it is zeros without end."""
        if transfer.zeros > ZEROS_AT_ONCE:
            self._end(memory, transfer, DmaControl.ERROR)
            return
        while not transfer.step():
            pass
        self._end(memory, transfer, DmaControl.DONE)

    def _end(self, memory: DmaMemory, transfer: Transfer, result: int) -> None:
        self._transfer = None
        if self._timer is not None:
            self._timer.cancel()
        _answer(memory, transfer.state.address, result)

    def __str__(self) -> str:
        return f"{self.name}: item {self._key:#06x} at {self._offset:#x}"


_NOTHING = memoryview(b"")


def _answer(memory: DmaMemory, address: int, result: int) -> None:
    """Let the guest know: the control word is the result from now on."""
    with suppress(MemoryRangeError, ConfigError):
        memory.write(address, _DMA_CONTROL.pack(result))


def _numbered(contents: Contents, *, dma: bool) -> dict[int, memoryview]:
    """Every item by its key: files from FILE_FIRST on, by name, and the directory of them."""
    items: dict[int, Bytes] = {
        Key.SIGNATURE: b"QEMU",
        Key.ID: (VERSION | VERSION_DMA * dma).to_bytes(4, "little"),
        **{int(key): data for key, data in contents.items.items()},
    }
    directory = bytearray(_DIRECTORY_HEAD.pack(len(contents.files)))
    for key, (name, data) in enumerate(sorted(contents.files.items()), FILE_FIRST):
        items[key] = data
        directory += _DIRECTORY_ENTRY.pack(len(data), key, 0, name.encode())
    items[Key.FILE_DIR] = directory
    return {key: memoryview(data).toreadonly() for key, data in items.items()}
