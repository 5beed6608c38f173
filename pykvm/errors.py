"""Every error that pykvm raises, in one tree.

::

    PykvmError
    +-- KVMError         (also an OSError) a KVM ioctl failed: which, its errno, what to do
    +-- HostError        this host cannot do what was asked (no /dev/kvm, too little memory)
    +-- ConfigError      (also a ValueError) the caller asked for something that makes no sense
    |   +-- BusConflict  two devices claim the same port or address
    +-- LoadError        a guest file cannot be loaded: file, header field, value
    +-- MemoryRangeError (also a LookupError) an address outside guest memory
    |   +-- TranslationError  a guest-virtual address that the guest's page tables do not map
    +-- ClosedError      a closed machine, VM, vCPU or device was used
    +-- StateError       the call does not fit the moment (running, already answered, ...)
    +-- GuestError       the guest died; carries the exit, the registers and the cause

What a device raises to end a run on the guest's behalf (`GuestExit` and its siblings) is not an
error and lives in `pykvm.bus`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "BusConflict",
    "ClosedError",
    "ConfigError",
    "GuestError",
    "HostError",
    "KVMError",
    "LoadError",
    "MemoryRangeError",
    "PykvmError",
    "StateError",
    "TranslationError",
]


class PykvmError(Exception):
    """Base of every error that pykvm raises on purpose.

    `hint` is the second line a person reads: what to do about it.  Empty where there is no advice.
    """

    hint: str = ""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

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


class ConfigError(PykvmError, ValueError):
    """A value that the caller gave makes no sense, whatever the host: wrong use."""


class BusConflict(ConfigError):
    """Two devices claim the same port or address."""


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


class GuestError(PykvmError):
    """The guest died.

    `kind` is a short stable name (``"triple fault"``, ``"wild access"``), `cause` one sentence,
    `registers` the general registers and RIP at that moment by name, `exit` the exit that told it.
    `console` has the last lines that a kernel printed, if it was one that died.
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
        super().__init__(f"{kind}: {cause}" if cause else kind, hint=hint)
        self.kind = kind
        self.cause = cause
        self.exit = exit
        self.registers = dict(registers or {})
        self.console = console
