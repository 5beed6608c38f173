"""Every error that pykvm raises, in one tree.

::

    PykvmError
    +-- KVMError         (also an OSError) a KVM ioctl failed: which, its errno, what to do
    +-- HostError        this host cannot do this (no /dev/kvm, too little memory)
    |   +-- ResourceError  descriptors, memory, threads, timers or signals have run out
    |       +-- KVMResourceError  (also a KVMError) an ioctl failed for that reason
    +-- ConfigError      (also a ValueError) an invalid value from the caller
    |   +-- BusConflict  a device over another one, or over memory
    |   +-- UnknownSymbol  (also a KeyError) the guest has no symbol of this name
    +-- LoadError        a guest file cannot be loaded: file, header field, value
    +-- MemoryRangeError (also a LookupError) an address outside guest memory
    |   +-- TranslationError  a guest-virtual address that the guest's page tables do not map
    +-- ClosedError      a closed machine, VM, vCPU or device was used
    +-- StateError       the call is invalid at this moment (running, already answered, ...)
    +-- RunError         a run did not end as asked (`Result.check`); carries the result
        +-- GuestError   the guest crashed: the exit, the registers and the cause
        +-- GuestFailed  it ended in another way: another exit code, HLT, the text of `fail`
        +-- RunTimeout   (also a TimeoutError) the time limit
        +-- RunStopped   the host stopped it: `Machine.stop`, a breakpoint

What a device raises to end the run for the guest (`GuestEnd` and its subclasses) is no error; it is
in `pykvm.bus`.
"""

from __future__ import annotations

import os
from contextlib import contextmanager

from pykvm.printable import printable, printable_lines
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

__all__ = [
    "BusConflict",
    "ClosedError",
    "ConfigError",
    "GuestError",
    "GuestFailed",
    "HostError",
    "KVMError",
    "KVMResourceError",
    "LoadError",
    "MemoryRangeError",
    "PykvmError",
    "ResourceError",
    "RunError",
    "RunStopped",
    "RunTimeout",
    "StateError",
    "TranslationError",
    "UnknownSymbol",
    "exhausted",
    "is_exhaustion",
    "resource_error",
]


class PykvmError(Exception):
    """Base of every error that pykvm raises on purpose.

    `hint` is the second line a person reads: what to do about it.  Empty where there is no advice.
    Both can be shown on a terminal: what they quote of a guest or a file has its control characters
    escaped.
    """

    hint: str = ""
    # A message is one line.
    _plain = staticmethod(printable)

    def __init__(self, message: str, *, hint: str = "") -> None:
        message = self._plain(message)
        super().__init__(message)
        self.message = message
        self.hint = printable_lines(hint)

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class KVMError(PykvmError, OSError):
    """A KVM ioctl failed.

    `ioctl` is its kernel name (``KVM_CREATE_VM``), `errno` and `strerror` are as in OSError.

    >>> error = KVMError("KVM_CREATE_VM", 12)
    >>> error.ioctl, error.errno
    ('KVM_CREATE_VM', 12)
    >>> print(error)
    KVM_CREATE_VM: Cannot allocate memory (ENOMEM)
    """

    def __init__(self, ioctl: str, errno: int, *, detail: str = "", hint: str = "") -> None:
        from errno import errorcode

        strerror = os.strerror(errno)
        message = f"{ioctl}: {strerror} ({errorcode.get(errno, errno)})"
        if detail:
            message += f": {detail}"
        OSError.__init__(self, errno, strerror)
        self.message = message
        self.hint = hint
        self.ioctl = ioctl
        self.detail = detail


class HostError(PykvmError):
    """This host cannot do what was asked: no /dev/kvm, no permission, too little memory."""


class ResourceError(HostError):
    """This host has run out of descriptors, memory, threads, timers or signals.

    The message says of what, the hint what to do.
    """


class KVMResourceError(KVMError, ResourceError):
    """A KVM ioctl was refused because the host has run out of something."""


# By errno: EMFILE, ENFILE, ENOMEM.
_EXHAUSTED = {
    24: "too many open files: raise `ulimit -n`, or close machines that are done",
    23: "this whole system has too many open files: raise fs.file-max, or close some",
    12: "there is no memory left, or a limit is reached: see `ulimit -v`, `ulimit -l`, "
    "vm.max_map_count and the memory limit of the container",
}


def is_exhaustion(errno: int | None) -> bool:
    """Whether an errno says that the host has run out of descriptors or memory."""
    return errno in _EXHAUSTED


def resource_error(what: str, errno: int) -> ResourceError:
    """The error for a system call that failed so: `what` could not be done."""
    return ResourceError(f"{what}: {os.strerror(errno)}", hint=_EXHAUSTED.get(errno, ""))


@contextmanager
def exhausted(what: str) -> Iterator[None]:
    """Turn a bare OSError or MemoryError for want of descriptors or memory into a ResourceError."""
    try:
        yield
    except MemoryError as error:
        raise resource_error(what, 12) from error
    except OSError as error:
        if isinstance(error, PykvmError) or not is_exhaustion(error.errno):
            raise
        raise resource_error(what, error.errno or 0) from error


class ConfigError(PykvmError, ValueError):
    """A value that the caller gave makes no sense, whatever the host: wrong use."""


class BusConflict(ConfigError):
    """A device, or memory, was to stand where another device or memory is."""


class UnknownSymbol(ConfigError, KeyError):
    """A name that the guest has no symbol for."""


class LoadError(PykvmError):
    """A guest file cannot be loaded.  The message names the file, the field and its value."""


class MemoryRangeError(PykvmError, LookupError):
    """An access outside guest memory.  `address` and `length` are what was asked for."""

    def __init__(self, message: str, *, address: int, length: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.address = address
        self.length = length


class TranslationError(MemoryRangeError):
    """A guest-virtual address that the guest's page tables do not map as asked."""


class ClosedError(PykvmError):
    """Something that was closed was used."""


class StateError(PykvmError):
    """The call does not fit the moment: a machine that runs, an exit that was answered already."""


class RunError(PykvmError):
    """A run did not end as it was asked to.  `Result.check` raises one of those below.

    `result` is that Result; `console` has the last lines that the guest printed, and str() shows
    them.
    """

    _plain = staticmethod(printable_lines)

    def __init__(
        self, message: str, *, hint: str = "", console: str = "", result: Any = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.console = console
        self.result = result

    def __str__(self) -> str:
        return with_console(super().__str__(), self.console)


def with_console(text: str, console: str) -> str:
    """`text`, and below it the last lines of a guest's console, if there are any."""
    if not console:
        return text
    return f"{text}\nThe last lines of its console:\n{printable_lines(console)}"


class GuestError(RunError):
    """The guest died.

    `kind` is a short stable name (``"triple fault"``, ``"wild access"``), `cause` one sentence,
    `registers` the general registers and RIP at that moment by name, `exit` the exit that told it.
    """

    def __init__(
        self,
        kind: str,
        cause: str,
        *,
        exit: object = None,
        registers: Mapping[str, int] | None = None,
        console: str = "",
        hint: str = "",
    ) -> None:
        message = printable(f"{kind}: {cause}" if cause else kind)
        super().__init__(message, hint=hint, console=console)
        self.kind = kind
        self.cause = cause
        self.exit = exit
        self.registers = dict(registers or {})


class GuestFailed(RunError):
    """The guest ended otherwise than the run was to end, or said what `fail` waits for."""


class RunTimeout(RunError, TimeoutError):
    """The time given to the run was up."""


class RunStopped(RunError):
    """The host ended the run: by `Machine.stop`, or by a breakpoint or a step."""
