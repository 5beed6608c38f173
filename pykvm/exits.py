"""VM exits as values: one small frozen class per exit reason, made to be matched on.

::

    for exit in vcpu.raw_exits():
        match exit:
            case IoOut(port=0x3F8, data=data):
                sys.stdout.buffer.write(data)
            case IoIn(port=0x3FD) as read:
                read.answer(0x20)
            case Hlt():
                break

`decode` makes one from the bytes of a kvm_run page (Documentation/virt/kvm/api.rst, section 5).
Reads and the MSR exits need an answer.  It goes into the same page, and KVM gives it to the guest
at the next KVM_RUN.  Without one a read gives all ones, as on an open bus.
"""

from __future__ import annotations

import struct

from pykvm.errors import ConfigError, StateError
from pykvm.kvm.run_page import EXIT_REASON, PAYLOAD, PAYLOAD_SIZE
from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import buffer, word
from pykvm.values.frozen import Frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, ClassVar

    _Setter = Callable[[Any, Any], None]

__all__ = [
    "EXITS",
    "BusLock",
    "Debug",
    "DirtyRingFull",
    "ExceptionExit",
    "Exit",
    "FailEntry",
    "Hlt",
    "Hypercall",
    "Hyperv",
    "InternalError",
    "Interrupted",
    "IoIn",
    "IoOut",
    "IoapicEoi",
    "IrqWindowOpen",
    "MemoryFault",
    "MmioRead",
    "MmioWrite",
    "Nmi",
    "Notify",
    "RdMsr",
    "RunPage",
    "SetTpr",
    "Shutdown",
    "SystemEvent",
    "TprAccess",
    "Unknown",
    "UnknownReason",
    "WrMsr",
    "decode",
]

# In words of 32 bits.
REASON_WORD = EXIT_REASON // 4

_ONE = struct.Struct("<I")
_TWO = struct.Struct("<II")
_IO = struct.Struct("<BBHIQ")
_MMIO = struct.Struct("<Q8sIB")
_MSR = struct.Struct("<B7xIIQ")

_IO_OUT = 1

# What an open bus reads as: the longest string input of one exit fills a page.
_FLOATING = b"\xff" * 4096


class RunPage:
    """The mapped kvm_run page of one vCPU, and the exit that it holds.

    `current` is the last exit that `decode` made, while it may still be answered; None after that.
    """

    __slots__ = ("current", "view", "words")

    def __init__(self, view: memoryview) -> None:
        """`view` is writable and as long as KVM_GET_VCPU_MMAP_SIZE says."""
        self.view = view
        self.words = view.cast("I")
        self.current: Exit | None = None

    def release(self) -> None:
        """Let go of the page: the exit that it holds is over, and another cannot be decoded."""
        self.current = None
        self.view = self.words
        self.words.release()


class _Decoded:
    """The page that an exit was decoded from, and what became of it: no part of its value."""

    __slots__ = ("_page", "_taken")
    _page: RunPage
    _taken: bool


class Exit(_Decoded, Frozen):
    """Base of every exit.  `reason` is the kernel's KVM_EXIT_ number."""

    reason: ClassVar[int]

    #: Whether the guest's instruction waits for an answer.
    awaits_answer: ClassVar[bool] = False

    def _view(self) -> memoryview:
        """The page to put an answer into."""
        if not hasattr(self, "_page"):
            raise StateError(f"{self!r} was not made by a vCPU, so it cannot be answered")
        if self._page.current is not self:
            raise StateError(
                f"{self!r} is over: the vCPU has run on since",
                hint="answer an exit before asking for the next one",
            )
        return self._page.view

    def _put(self, offset: int, data: bytes) -> None:
        view = self._view()
        view[offset : offset + len(data)] = data
        _set_taken(self, True)

    def take(self) -> None:
        """Keep the exit from the devices: what comes to ``for exit in machine.exits()`` is yours.

        A write then goes nowhere else, a read that was not answered gives all ones, and the guest
        goes on past a HLT.  To answer an exit takes it as well.  Raises StateError if the vCPU has
        run on since.
        """
        self._view()
        _set_taken(self, True)

    @property
    def taken(self) -> bool:
        """Whether it was answered or taken."""
        return getattr(self, "_taken", False)

    @property
    def is_over(self) -> bool:
        """Whether it can no longer be answered: the vCPU has run on, or a register was set."""
        return not hasattr(self, "_page") or self._page.current is not self

    @property
    def answered(self) -> bytes | None:
        """The bytes that the guest gets, little-endian, as far as this exit was answered.

        All ones for a read that is not answered, of a WRMSR that is accepted none; None where
        the guest gets #GP, for an exit that waits for no answer, and once it `is_over`.
        """
        if self.is_over:
            return None
        return self._answered(self._page.view)

    def _answered(self, view: memoryview) -> bytes | None:
        return None

    def __repr__(self) -> str:
        names = type(self).__fields__
        values = ", ".join(f"{name}={_hexadecimal(getattr(self, name))}" for name in names)
        return f"{type(self).__name__}({values})"


def _hexadecimal(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int):
        return repr(value)
    return hex(value) if value > 9 else str(value)


def _answer_bytes(value: int | bytes, size: int, what: str) -> bytes:
    if isinstance(value, int):
        if not 0 <= value < 1 << (8 * size):
            raise ConfigError(f"{value:#x} does not fit the {size} bytes that {what} reads")
        return value.to_bytes(size, "little")
    data = bytes(buffer("an answer that is no int", value))
    if len(data) != size:
        raise ConfigError(f"{what} reads {size} bytes; the answer has {len(data)}")
    return data


class Unknown(Exit):
    """KVM_EXIT_UNKNOWN: the hardware left the guest for a reason that KVM does not know."""

    reason = 0
    hardware_exit_reason: int


class ExceptionExit(Exit):
    """KVM_EXIT_EXCEPTION: an exception that KVM hands out (not used on x86 today)."""

    reason = 1
    exception: int
    error_code: int


class IoIn(Exit):
    """KVM_EXIT_IO, in: the guest reads `count` times `size` bytes from a port.

    `count` is above 1 for ``rep ins`` only.
    """

    reason = 2
    awaits_answer = True
    port: int
    size: int
    count: int = 1

    def answer(self, value: int | bytes) -> None:
        """Give the guest its data: an int (little-endian), or bytes of size * count.

        Raises ConfigError if it does not fit, StateError if the vCPU has run on since.
        """
        data = _answer_bytes(value, self.size * self.count, f"IN from port {self.port:#x}")
        self._put(_IO.unpack_from(self._view(), PAYLOAD)[4], data)

    def _answered(self, view: memoryview) -> bytes | None:
        offset: int = _IO.unpack_from(view, PAYLOAD)[4]
        return bytes(view[offset : offset + self.size * self.count])


class IoOut(Exit):
    """KVM_EXIT_IO, out: the guest wrote `data` to a port, `size` bytes at a time.

    >>> IoOut(port=0x80, size=1, data=b"A")
    IoOut(port=0x80, size=1, data=b'A')
    >>> IoOut(port=0x80, size=2, data=b"ABCD").values
    (16961, 17475)
    """

    reason = 2
    port: int
    size: int
    data: bytes

    @property
    def value(self) -> int:
        """The data as one little-endian number."""
        return int.from_bytes(self.data, "little")

    @property
    def values(self) -> tuple[int, ...]:
        """One number per element: more than one for ``rep outs`` only."""
        step = self.size
        return tuple(
            int.from_bytes(self.data[at : at + step], "little")
            for at in range(0, len(self.data), step)
        )


class Hypercall(Exit):
    """KVM_EXIT_HYPERCALL: a hypercall that KVM_CAP_EXIT_HYPERCALL sends to user space."""

    reason = 3
    awaits_answer = True
    nr: int
    args: tuple[int, ...]
    flags: int = 0

    def answer(self, result: int) -> None:
        """What the guest finds in RAX.  Raises as `MmioRead.answer` does."""
        self._put(PAYLOAD + 56, word("result", result, 64).to_bytes(8, "little"))

    def _answered(self, view: memoryview) -> bytes | None:
        return bytes(view[PAYLOAD + 56 : PAYLOAD + 64])


class Debug(Exit):
    """KVM_EXIT_DEBUG: a step, a breakpoint or a watchpoint that KVM_SET_GUEST_DEBUG asked for."""

    reason = 4
    exception: int
    pc: int
    dr6: int
    dr7: int


class Hlt(Exit):
    """KVM_EXIT_HLT: the guest executed HLT (only without an in-kernel local APIC)."""

    reason = 5


class MmioRead(Exit):
    """KVM_EXIT_MMIO, read: the guest reads `size` bytes where there is no memory."""

    reason = 6
    awaits_answer = True
    address: int
    size: int

    def answer(self, value: int | bytes) -> None:
        """Give the guest its data: an int (little-endian), or bytes of `size`.

        Raises ConfigError if it does not fit, StateError if the vCPU has run on since.
        """
        data = _answer_bytes(value, self.size, f"the load from {self.address:#x}")
        self._put(PAYLOAD + 8, data)

    def _answered(self, view: memoryview) -> bytes | None:
        return bytes(view[PAYLOAD + 8 : PAYLOAD + 8 + self.size])


class MmioWrite(Exit):
    r"""KVM_EXIT_MMIO, write: the guest wrote `data` where there is no memory, or to a ROM.

    >>> MmioWrite(address=0xD0000000, data=b"\x01\x02").value
    513
    """

    reason = 6
    address: int
    data: bytes

    @property
    def size(self) -> int:
        """Bytes written: 1 to 8."""
        return len(self.data)

    @property
    def value(self) -> int:
        """The data as one little-endian number."""
        return int.from_bytes(self.data, "little")


class IrqWindowOpen(Exit):
    """KVM_EXIT_IRQ_WINDOW_OPEN: the guest can take the interrupt it was asked to wait for."""

    reason = 7


class Shutdown(Exit):
    """KVM_EXIT_SHUTDOWN: a triple fault, as a rule."""

    reason = 8


class FailEntry(Exit):
    """KVM_EXIT_FAIL_ENTRY: the processor refused to enter the guest with this state."""

    reason = 9
    hardware_entry_failure_reason: int
    cpu: int


class Interrupted(Exit):
    """KVM_EXIT_INTR: the vCPU was kicked out of the guest; nothing happened in it."""

    reason = 10


class SetTpr(Exit):
    """KVM_EXIT_SET_TPR: the guest lowered CR8 (only without an in-kernel local APIC)."""

    reason = 11


class TprAccess(Exit):
    """KVM_EXIT_TPR_ACCESS: an access to the TPR that KVM_TPR_ACCESS_REPORTING asked for."""

    reason = 12
    rip: int
    is_write: bool


class Nmi(Exit):
    """KVM_EXIT_NMI: an NMI for the host arrived in the guest."""

    reason = 16


class InternalError(Exit):
    """KVM_EXIT_INTERNAL_ERROR: KVM gave up.

    `suberror` 1 (KVM_INTERNAL_ERROR_EMULATION) is an instruction that KVM's emulator refused;
    then `instruction` has the bytes at RIP, if KVM could read them.
    """

    reason = 17
    suberror: int
    data: tuple[int, ...] = ()

    @property
    def instruction(self) -> bytes:
        """The bytes at RIP when an emulation failed, empty if KVM does not give them."""
        # struct emulation_failure: u64 flags, u8 insn_size, u8 insn_bytes[15], after ndata.
        if self.suberror != 1 or len(self.data) < 3 or not self.data[0] & 1:
            return b""
        raw = b"".join(word.to_bytes(8, "little") for word in self.data[1:3])
        return raw[1 : 1 + raw[0]]


class SystemEvent(Exit):
    """KVM_EXIT_SYSTEM_EVENT: the guest asked the hypervisor for shutdown, reset or crash."""

    reason = 24
    type: int
    data: tuple[int, ...] = ()


class IoapicEoi(Exit):
    """KVM_EXIT_IOAPIC_EOI: end of a level interrupt, for an IOAPIC in user space."""

    reason = 26
    vector: int


class Hyperv(Exit):
    """KVM_EXIT_HYPERV: a Hyper-V SynIC, hypercall or debugger event.

    `data` is the union of struct kvm_hyperv_exit as it stands.
    """

    reason = 27
    type: int
    data: bytes


class RdMsr(Exit):
    """KVM_EXIT_X86_RDMSR: a read of a model-specific register that KVM left to user space.

    `why` is KVM_MSR_EXIT_REASON_INVAL (1), _UNKNOWN (2) or _FILTER (4).  Without an answer the
    guest gets #GP.
    """

    reason = 29
    awaits_answer = True
    index: int
    why: int

    def answer(self, value: int) -> None:
        """What the guest finds in EDX:EAX.  Raises as `MmioRead.answer` does."""
        data = word("value", value, 64).to_bytes(8, "little")
        self._put(PAYLOAD, b"\0")
        self._put(PAYLOAD + 16, data)

    def fail(self) -> None:
        """Inject #GP."""
        self._put(PAYLOAD, b"\1")

    def _answered(self, view: memoryview) -> bytes | None:
        return None if view[PAYLOAD] else bytes(view[PAYLOAD + 16 : PAYLOAD + 24])


class WrMsr(Exit):
    """KVM_EXIT_X86_WRMSR: a write of a model-specific register that KVM left to user space.

    Without an answer the guest gets #GP.
    """

    reason = 30
    awaits_answer = True
    index: int
    value: int
    why: int

    def accept(self) -> None:
        """Let the guest go on."""
        self._put(PAYLOAD, b"\0")

    def fail(self) -> None:
        """Inject #GP."""
        self._put(PAYLOAD, b"\1")

    def _answered(self, view: memoryview) -> bytes | None:
        return None if view[PAYLOAD] else b""


class DirtyRingFull(Exit):
    """KVM_EXIT_DIRTY_RING_FULL: collect the dirty ring before going on."""

    reason = 31


class BusLock(Exit):
    """KVM_EXIT_X86_BUS_LOCK: the guest locked the bus (KVM_CAP_X86_BUS_LOCK_EXIT)."""

    reason = 33


class Notify(Exit):
    """KVM_EXIT_NOTIFY: no event window for too long (KVM_CAP_X86_NOTIFY_VMEXIT)."""

    reason = 37
    flags: int


class MemoryFault(Exit):
    """KVM_EXIT_MEMORY_FAULT: guest memory that the host cannot give; KVM_RUN failed with EFAULT."""

    reason = 39
    flags: int
    address: int
    size: int


class UnknownReason(Exit):
    """An exit reason that this version of pykvm does not know, kept as it came."""

    number: int
    payload: bytes


# The four exits that come by the million are made past __init__: it pays dearly for every field.
_new = object.__new__
_set_page: _Setter = vars(_Decoded)["_page"].__set__
_set_taken: _Setter = vars(_Decoded)["_taken"].__set__


def _setters(cls: type[Exit]) -> Iterator[_Setter]:
    for name in cls.__fields__:
        yield getattr(cls, name).__set__


_in_port, _in_size, _in_count = _setters(IoIn)
_out_port, _out_size, _out_data = _setters(IoOut)
_read_address, _read_size = _setters(MmioRead)
_write_address, _write_data = _setters(MmioWrite)


def _io(page: RunPage) -> Exit:
    view = page.view
    direction, size, port, count, offset = _IO.unpack_from(view, PAYLOAD)
    if direction == _IO_OUT:
        out = _new(IoOut)
        _out_port(out, port)
        _out_size(out, size)
        _out_data(out, view[offset : offset + size * count].tobytes())
        return out
    view[offset : offset + size * count] = _FLOATING[: size * count]
    read = _new(IoIn)
    _in_port(read, port)
    _in_size(read, size)
    _in_count(read, count)
    return read


def _mmio(page: RunPage) -> Exit:
    address, data, size, is_write = _MMIO.unpack_from(page.view, PAYLOAD)
    if is_write:
        write = _new(MmioWrite)
        _write_address(write, address)
        _write_data(write, data[:size])
        return write
    page.view[PAYLOAD + 8 : PAYLOAD + 16] = _FLOATING[:8]
    read = _new(MmioRead)
    _read_address(read, address)
    _read_size(read, size)
    return read


def _words(page: RunPage, offset: int, count: int) -> tuple[int, ...]:
    return struct.unpack_from(f"<{count}Q", page.view, offset)


def _hypercall(page: RunPage) -> Exit:
    nr, *args = _words(page, PAYLOAD, 7)
    (flags,) = _words(page, PAYLOAD + 64, 1)
    return Hypercall(nr, tuple(args), flags)


def _internal_error(page: RunPage) -> Exit:
    suberror, ndata = _TWO.unpack_from(page.view, PAYLOAD)
    return InternalError(suberror, _words(page, PAYLOAD + 8, min(ndata, 16)))


def _system_event(page: RunPage) -> Exit:
    kind, ndata = _TWO.unpack_from(page.view, PAYLOAD)
    return SystemEvent(kind, _words(page, PAYLOAD + 8, min(ndata, 16)))


def _rdmsr(page: RunPage) -> Exit:
    _error, why, index, _data = _MSR.unpack_from(page.view, PAYLOAD)
    page.view[PAYLOAD] = 1
    return RdMsr(index, why)


def _wrmsr(page: RunPage) -> Exit:
    _error, why, index, value = _MSR.unpack_from(page.view, PAYLOAD)
    page.view[PAYLOAD] = 1
    return WrMsr(index, value, why)


def _hyperv(page: RunPage) -> Exit:
    (kind,) = _ONE.unpack_from(page.view, PAYLOAD)
    return Hyperv(kind, bytes(page.view[PAYLOAD + 8 : PAYLOAD + 40]))


def _plain(cls: type[Any]) -> Callable[[RunPage], Exit]:
    return lambda page: cls()


def _unpacking(cls: type[Any], layout: str) -> Callable[[RunPage], Exit]:
    unpack = struct.Struct("<" + layout).unpack_from
    return lambda page: cls(*unpack(page.view, PAYLOAD))


_DECODERS: dict[int, Callable[[RunPage], Exit]] = {
    0: _unpacking(Unknown, "Q"),
    1: _unpacking(ExceptionExit, "II"),
    2: _io,
    3: _hypercall,
    4: _unpacking(Debug, "I4xQQQ"),
    5: _plain(Hlt),
    6: _mmio,
    7: _plain(IrqWindowOpen),
    8: _plain(Shutdown),
    9: _unpacking(FailEntry, "QI"),
    10: _plain(Interrupted),
    11: _plain(SetTpr),
    12: _unpacking(TprAccess, "Q?"),
    16: _plain(Nmi),
    17: _internal_error,
    24: _system_event,
    26: _unpacking(IoapicEoi, "B"),
    27: _hyperv,
    29: _rdmsr,
    30: _wrmsr,
    31: _plain(DirtyRingFull),
    33: _plain(BusLock),
    37: _unpacking(Notify, "I"),
    39: _unpacking(MemoryFault, "QQQ"),
}

#: The class of each exit reason that x86 has; KVM_EXIT_IO and KVM_EXIT_MMIO have two.
EXITS: tuple[type[Exit], ...] = tuple(
    cls
    for cls in list(globals().values())
    if isinstance(cls, type) and issubclass(cls, Exit) and hasattr(cls, "reason")
)


#: For `pykvm._core.by_hand`: the slots that link an exit with its page, then classes and their
#: slots, in the order of enum pykvm_access_kind.
KINDS: tuple[Any, ...] = (
    vars(_Decoded)["_page"],
    vars(RunPage)["current"],
    *(
        (kind, *(vars(kind)[name] for name in kind.__fields__))
        for kind in (IoOut, IoIn, MmioWrite, MmioRead)
    ),
)


def decode(page: RunPage) -> Exit:
    """The exit that a kvm_run page holds.

    Reads are set to all ones and MSR accesses to failing, until they are answered.

    >>> view = memoryview(bytearray(4096))
    >>> view[8] = 5
    >>> decode(RunPage(view))
    Hlt()
    """
    reason = page.words[REASON_WORD]
    decoder = _DECODERS.get(reason)
    if decoder is None:
        payload = bytes(page.view[PAYLOAD : PAYLOAD + PAYLOAD_SIZE])
        exit: Exit = UnknownReason(reason, payload)
    else:
        exit = decoder(page)
    _set_page(exit, page)
    page.current = exit
    return exit
